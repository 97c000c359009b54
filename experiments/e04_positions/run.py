"""Runs e04 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from pathlib import Path
from typing import Any

from experiments.command import asked
from experiments.pairs import Row, Twins, changes_of, compared_with, read_twins, write_run
from experiments.standard import compared
from tempo_analysis.parallel.metrics import Metric

HERE = Path(__file__).parent
RATIO = "log_ratio_without_sink"
TEXT = "sequential"


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = compared(HERE.name, tuple(options.pop("arms")), quick=quick, **options)
    twins = read_twins(run, changes_of(run))
    metrics = [*twins.metrics(), swapped_over_unique(twins), *js_less_than_text(twins)]
    write_run(out, run, metrics, made_for=(HERE.name, quick), detail=by_delta(metrics))


def swapped_over_unique(twins: Twins) -> Metric:
    """Row ratio with the lowest rank first over that with the highest first."""
    logs = twins.column("swapped", RATIO) - twins.column("unique", RATIO)
    return compared_with(
        logs, "unique", name="paired_ratio_over_unique", arm="swapped", scale="ratio"
    )


def js_less_than_text(twins: Twins) -> list[Metric]:
    """How much nearer to the reference each twin's readouts stay than plain causal text's."""
    text = twins.column(TEXT, "js")
    return [
        compared_with(twins.column(change, "js") - text, TEXT, name="js_less_text", arm=change)
        for change in twins.by_change
        if change != TEXT
    ]


def by_delta(metrics: list[Metric]) -> dict[str, Any]:
    """What an offset does as a function of its size."""
    names = ("paired_ratio_without_sink", "earlier_set_mass_change", "readout_js")
    rows = {
        (row.name, float(row.arm.rpartition(":")[2])): row.interval
        for row in metrics
        if "offset:" in row.arm and row.name in names
    }
    deltas = sorted({delta for _, delta in rows})
    curves: dict[str, Row] = {
        name: {
            field: [getattr(rows[name, delta], field) for delta in deltas]
            for field in ("estimate", "low", "high", "n")
        }
        for name in names
    }
    return {"delta": deltas, **curves}


if __name__ == "__main__":
    asked(main, HERE)
