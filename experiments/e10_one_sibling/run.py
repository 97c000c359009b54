"""Runs e10 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path

from experiments.command import asked
from experiments.e10_one_sibling.layers import first_sets, sibling
from experiments.e10_one_sibling.rows import detail, metrics
from experiments.pairs import write_run
from experiments.standard import MODEL, paired_run
from tempo.models.load import load_model

HERE = Path(__file__).parent


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    arm = options["reference"]
    run = paired_run(quick=quick)
    model = load_model(MODEL)
    tables = [run.trace(prompt.id, arm).slots for prompt in run.prompts]
    found = [sibling(model, tables[place]) for place in first_sets(tables)]
    write_run(
        out,
        run,
        metrics(found),
        made_for=(HERE.name, quick),
        detail=detail(found),
        arms=(arm,),
        n_sets={arm: len(found)},
    )


if __name__ == "__main__":
    asked(main, HERE)
