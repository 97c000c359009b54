"""Runs e13 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path

from experiments.command import asked
from experiments.e13_decoded_text.rows import detail, measured, metrics
from experiments.e13_decoded_text.texts import ARMS, Rules, Text, decoded
from experiments.result import hash_of, made_by, write_document
from experiments.standard import MODEL, prompts
from tempo.models.load import load_model
from tempo.run.recorder import facts_of_model, versions
from tempo_analysis.parallel.metrics import metric_row

HERE = Path(__file__).parent


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    batch, rules = options.pop("batch"), Rules(**options)
    model, asked_of = load_model(MODEL), prompts(quick)
    ids = {prompt.id: tuple(model.encode(prompt.text)) for prompt in asked_of}
    texts: dict[str, list[Text]] = {arm: [] for arm in ARMS}
    for start in range(0, len(ids), batch):
        some = dict(list(ids.items())[start : start + batch])
        for arm, found in decoded(model, some, rules).items():
            texts[arm] += found
    numbers = {arm: measured(texts[arm]) for arm in ARMS}
    tables = [
        (name, arm, one.table) for arm in ARMS for name, one in zip(ids, texts[arm], strict=True)
    ]
    made = made_by(
        HERE.name,
        command=f"python experiments/{HERE.name}/run.py" + " --quick" * quick,
        facts=facts_of_model(model),
        versions=versions(),
        trace_hash=hash_of(tables),
    )
    document = {
        "metrics": [metric_row(one) for one in metrics(numbers)],
        "n_sets": {
            arm: sum(int((one.table.rank == 1).sum()) for one in texts[arm]) for arm in ARMS
        },
        "detail": detail(numbers, texts),
    }
    write_document(out, document, made=made, prompts=list(ids))


if __name__ == "__main__":
    asked(main, HERE)
