"""Runs e08 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path

from experiments.command import asked
from experiments.e08_pruning.free import free_runs
from experiments.e08_pruning.measures import pruned_sets
from experiments.e08_pruning.rows import detail, metrics
from experiments.pairs import write_run
from experiments.result import hash_of
from experiments.standard import MODEL, paired_run
from tempo.models.load import load_model

HERE = Path(__file__).parent
REFERENCE = "isolated"


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = paired_run(quick=quick)
    model, batch = load_model(MODEL), options["batch"]
    traces = [run.trace(prompt.id, REFERENCE) for prompt in run.prompts]
    sets = list(pruned_sets(model, traces, batch=batch))
    free, tables = free_runs(
        model, traces, settings=run.settings, share=options["share"], batch=batch
    )
    more = {"share": options["share"], "free_trace_hash": hash_of(tables)}
    write_run(
        out,
        run,
        metrics(sets, free),
        made_for=(HERE.name, quick),
        detail=detail(sets, free) | more,
        arms=(REFERENCE,),
    )


if __name__ == "__main__":
    asked(main, HERE)
