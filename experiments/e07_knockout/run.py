"""Runs e07 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path

import numpy as np

from experiments.command import asked
from experiments.e07_knockout.measures import knocked_sets
from experiments.e07_knockout.rows import Table, metrics
from experiments.pairs import write_run
from experiments.standard import MODEL, paired_run
from tempo.models.load import load_model

HERE = Path(__file__).parent
REFERENCE = "isolated"


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = paired_run(quick=quick)
    traces = [run.trace(prompt.id, REFERENCE) for prompt in run.prompts]
    sets = list(knocked_sets(load_model(MODEL), traces, batch=options["batch"]))
    detail = {
        "n_knocked_sets": len(sets),
        "n_members": sum(len(one.effect) for one in sets),
        "largest_error_of_stored_readout": max((one.stored_error for one in sets), default=np.nan),
        "largest_effect_nats": max((one.effect.max() for one in sets), default=np.nan),
    }
    rows = metrics(Table(sets, n_prompts=len(traces)))
    write_run(out, run, rows, made_for=(HERE.name, quick), detail=detail, arms=(REFERENCE,))


if __name__ == "__main__":
    asked(main, HERE)
