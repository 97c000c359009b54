"""Numbers of a result in words, also where a row has no data or no limits; and rows to write."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tempo.trace.run import Run
from tempo_analysis.parallel.arms import arms_of
from tempo_analysis.parallel.metrics import NONE, Metric
from tempo_analysis.stats.intervals import Curve, Interval
from tempo_analysis.stats.verdict import PROMPTS_FOR_A_CLAIM, SETS_FOR_A_CLAIM, comparison

Row = Mapping[str, Any]


def told(row: Row) -> str:
    """An estimate with its interval, or why there is none."""
    if row["estimate"] is None:
        return "no data"
    if row["low"] is None or row["high"] is None:
        return f"{row['estimate']:.3g} (no interval, {_prompts(row['n'])})"
    if row["low"] == row["high"]:
        return f"{row['estimate']:.3g} (every prompt)"
    return f"{row['estimate']:.3g} ({row['low']:.3g} to {row['high']:.3g})"


def number(value: float | None) -> str:
    """A number, or "no data"."""
    return "no data" if value is None else f"{value:.3g}"


def below(row: Row, value: float) -> bool:
    """Whether the whole interval lies below a value; False without an interval."""
    return row["high"] is not None and row["high"] < value


def above(row: Row, value: float) -> bool:
    """Whether the whole interval lies above a value; False without an interval."""
    return row["low"] is not None and row["low"] > value


def within(row: Row, factor: float) -> bool:
    """Whether the whole interval of a ratio lies within 1 / factor and factor."""
    return above(row, 1 / factor) and below(row, factor)


def enough(n_prompts: int, n_sets: int) -> bool:
    """Whether there is data enough for a claim (judging.md, section 7)."""
    return n_prompts >= PROMPTS_FOR_A_CLAIM and n_sets >= SETS_FOR_A_CLAIM


def point(curve: Curve, place: int) -> Interval:
    """One point of a curve as an interval."""
    return Interval(
        estimate=float(curve.estimate[place]),
        low=float(curve.low[place]),
        high=float(curve.high[place]),
        n=int(curve.n[place]),
        method=curve.methods[place],
    )


def difference_metric(name: str, arm: str, unit: str, found: Interval, against: str) -> Metric:
    """A difference beside 0, in the unit of the metric."""
    return Metric(name, arm, unit, found, 0.0, NONE, said(found, against, "difference"))


def factor_metric(name: str, arm: str, log_ratio: Interval, against: str) -> Metric:
    """A ratio beside 1, from the interval of its logarithm."""
    text = said(log_ratio, against, "ratio")
    return Metric(name, arm, "factor", log_ratio.exponentiated(), 1.0, NONE, text)


def said(found: Interval, against: str, scale: Any) -> str:
    """A comparison with something else than the references of `tempo_analysis.stats.verdict`."""
    return comparison(found, "the reference", scale=scale).replace("the reference", against)


def curve_rows(curve: Curve) -> dict[str, Any]:
    """What a curve leaves in the result; the layers stand beside it."""
    return {name: getattr(curve, name) for name in ("estimate", "low", "high", "n")}


def n_sets(run: Run) -> dict[str, int]:
    """Sets of width >= 2 in each arm that has traces of its own."""
    counts = {
        arm: [int((trace.slots.rank == 1).sum()) for _, (trace,) in run.pairs(arm)]
        for arm in run.arms
    }
    return {arm: sum(each) for arm, each in counts.items() if each}


def alone_arm(run: Run) -> str:
    """The arm whose members were decoded alone too.

    Raises:
        AssertionError: The run was not paired.
    """
    arm = arms_of(run).alone
    assert arm is not None
    return arm


def largest(values: list[float]) -> float:
    """The largest; NaN where there is none."""
    return float(np.max(values)) if values else NONE


def _prompts(n: int) -> str:
    return f"{n} prompt{'' if n == 1 else 's'}"
