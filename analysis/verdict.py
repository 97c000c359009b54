"""Sentences generated from intervals; nothing is concluded anywhere else."""

from typing import Literal

import numpy as np

from analysis.statistics import MARGIN, Interval, equivalent

Scale = Literal["ratio", "difference"]
"""Of a comparison: log-ratios, or differences in the unit of the metric."""

ROUNDING_NATS = 1e-6
"""Divergences below this are what float32 rounding gives."""

_WITHIN = f"within {100 * (np.exp(MARGIN) - 1):.0f} % of"


def verdict(
    against_chance: Interval | None,
    against_null: Interval | None,
    *,
    scale: Scale,
    no_null: str = "",
) -> str:
    """What two comparisons show: with chance (None where there is none) and with the null.

    Args:
        against_chance: Of log(value / chance), or of value - chance.
        against_null: The same with the null.
        scale: Which of the two.
        no_null: Said in place of the second comparison where there is no null.
    """
    parts = [
        comparison(against_chance, "chance", scale=scale) if against_chance else "",
        comparison(against_null, "the null", scale=scale) if against_null else no_null,
    ]
    return "; ".join(dict.fromkeys(part for part in parts if part))


def comparison(against: Interval, reference: Literal["chance", "the null"], *, scale: Scale) -> str:
    """One comparison in words, from its interval alone."""
    if np.isnan(against.low) or np.isnan(against.high):
        return against.method if against.n else "no data"
    if scale == "ratio" and equivalent(against):
        return f"{_WITHIN} {reference}"
    if against.low == against.high == 0:
        return f"equal to {reference}"
    if against.low <= 0 <= against.high:
        return "indistinguishable from the null" if reference == "the null" else "inconclusive"
    lower, higher = ("below", "above") if reference == "chance" else ("lower than", "higher than")
    side = lower if against.high < 0 else higher
    return f"{side} {reference} by {_size(against.estimate, scale)}"


def divergence_verdict(nats: Interval) -> str:
    """Whether two readouts differ; a divergence is never negative, so rounding is the reference."""
    if np.isnan(nats.low) or np.isnan(nats.high):
        return nats.method if nats.n else "no data"
    if nats.high <= ROUNDING_NATS:
        return "no difference beyond rounding"
    return "the readouts differ" if nats.low > ROUNDING_NATS else "inconclusive"


def _size(estimate: float, scale: Scale) -> str:
    if scale == "difference":
        return f"{abs(estimate):.2g}"
    percent = 100 * abs(np.expm1(estimate))
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"
