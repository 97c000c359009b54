"""Verdicts: sentences generated from intervals. No other module draws conclusions."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tempo_analysis.stats.intervals import MARGIN, Interval, equivalent

Scale = Literal["ratio", "difference"]
"""Of a comparison: log-ratios, or differences in the unit of the metric."""

ReferenceValue = Literal[
    "chance", "the null", "a token alone", "the reference", "identical readouts"
]
"""What a value is compared with."""

ROUNDING_NATS = 1e-6
"""Divergences below this are what float32 rounding gives."""

# Fixed beforehand and the same for every run, so that no result can move its own bar.
PROMPTS_FOR_A_CLAIM = 50
SETS_FOR_A_CLAIM = 200

# Derived from the margin, so that words and rule cannot part.
_WITHIN = f"within {100 * (np.exp(MARGIN) - 1):.0f} % of"


def verdict(
    against_chance: Interval | None,
    against_null: Interval | None,
    *,
    scale: Scale,
    no_null: str = "",
) -> str:
    """Verdict of two comparisons: with chance (None where there is none) and with the null.

    Args:
        against_chance: Of log(value / chance), or of value - chance.
        against_null: The same with the null.
        scale: Whether the intervals are of log-ratios or of differences.
        no_null: Text in place of the second comparison where there is no null.
    """
    parts = [
        comparison(against_chance, "chance", scale=scale) if against_chance else "",
        comparison(against_null, "the null", scale=scale) if against_null else no_null,
    ]
    # Where there are too few prompts both comparisons have the same text; it is written once.
    return "; ".join(dict.fromkeys(part for part in parts if part))


def comparison(against: Interval, reference: ReferenceValue, *, scale: Scale) -> str:
    """Verdict of one comparison, from its interval."""
    if np.isnan(against.low) or np.isnan(against.high):
        return against.method if against.n else "no data"
    # Before the sign: an effect may be significant and yet smaller than the margin, and then the
    # margin is what matters.
    if scale == "ratio" and equivalent(against):
        return f"{_WITHIN} {reference}"
    # No spread and no difference is a fact about these prompts, not an inconclusive test.
    if against.low == against.high == 0:
        return f"equal to {reference}"
    if against.low <= 0 <= against.high:
        return "indistinguishable from the null" if reference == "the null" else "inconclusive"
    # "below chance", but "lower than the null": chance is a level, the null a run.
    lower, higher = ("below", "above") if reference == "chance" else ("lower than", "higher than")
    # Here the interval excludes 0, so one limit decides.
    side = lower if against.high < 0 else higher
    return f"{side} {reference} by {_size(against.estimate, scale)}"


def change_verdict(against: Interval, reference: ReferenceValue, *, scale: Scale) -> str:
    """As `comparison`, for two runs of the model, which may differ by rounding alone."""
    # Two runs on the same tokens may differ by the order of float32 sums alone.
    if max(abs(against.low), abs(against.high)) <= ROUNDING_NATS:
        return "no difference beyond rounding"
    return comparison(against, reference, scale=scale)


def axes_verdict(axes: Sequence[str]) -> str:
    """Names of the axes that changed in a twin; everything else that was compared is equal."""
    if not axes:
        return "nothing changed"
    unknown = "; relation and bias cannot be compared" if "tokens" in axes else ""
    return f"{', '.join(axes)} changed, nothing else{unknown}"


def divergence_verdict(nats: Interval) -> str:
    """Whether two readouts differ; a divergence is never negative, so rounding is the reference."""
    if np.isnan(nats.low) or np.isnan(nats.high):
        return nats.method if nats.n else "no data"
    if nats.high <= ROUNDING_NATS:
        return "no difference beyond rounding"
    return "the readouts differ" if nats.low > ROUNDING_NATS else "inconclusive"


def parallel_verdict(
    over_null: Interval, drift: Interval, dilution: Interval, *, n_sets: int
) -> str:
    """Verdict on parallel tokens, from three log-ratios over prompts.

    "Below 0" means that the upper limit is below -1e-6 (rounding), "above 0" the mirror image;
    "equivalent" that the whole interval lies strictly within +-log 1.1. The first rule that
    applies gives the verdict:

    1. An interval without limits: "no verdict", which one and why.
    2. Fewer than 50 prompts in one of the intervals, or fewer than 200 sets: "too little data for
       a claim".
    3. Drift below 0 and not equivalent: "down-weighted by x %". The verdict adds whether the
       interval is entirely below -log 1.1, or a drift within the margin is not excluded.
    4. Drift above 0 and not equivalent: "up-weighted by x %", likewise.
    5. Drift equivalent, dilution below 0: "dilution only".
    6. Each of the three equivalent, or neither below nor above 0: "indistinguishable from the
       null".
    7. Otherwise "inconclusive", with the reason.

    The row ratio decides between 6 and 7 only, since it does not depend on dilution but
    does depend on the tokens themselves; it always ends the verdict.

    Args:
        over_null: Of the row ratio without the sink over the same ratio on the greedy run.
        drift: Of delta-lambda, the mean score drift (in the set against alone).
        dilution: Of the competition, the change of log M_R (in the set against alone).
        n_sets: Sets that the intervals rest on, over all prompts.
    """
    three = {"row ratio over its null": over_null, "score drift": drift, "dilution": dilution}
    missing = [
        f"{name}: {comparison(each, 'the null', scale='ratio')}"
        for name, each in three.items()
        if np.isnan(each.low) or np.isnan(each.high)
    ]
    if missing:
        return f"no verdict: {'; '.join(missing)}"
    # The weakest of the three decides: a claim needs all of them.
    n_prompts = min(each.n for each in three.values())
    if n_prompts < PROMPTS_FOR_A_CLAIM or n_sets < SETS_FOR_A_CLAIM:
        return (
            f"too little data for a claim ({n_prompts} of {PROMPTS_FOR_A_CLAIM} prompts, "
            f"{n_sets} of {SETS_FOR_A_CLAIM} sets)"
        )
    ratio = over_null.exponentiated()
    row = f"row ratio {ratio.estimate:.2f} of its null [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{_parallel_effect(over_null, drift, dilution)}; {row}"


def _parallel_effect(over_null: Interval, drift: Interval, dilution: Interval) -> str:
    """Rules 3 to 7 of `parallel_verdict`."""
    # The score drift comes first: it is down-weighting proper, which dilution can imitate in the
    # mass but not in the score.
    if not equivalent(drift) and _side(drift):
        beyond = drift.high < -MARGIN or drift.low > MARGIN
        note = "beyond the 10 % margin" if beyond else "a drift within the 10 % margin is possible"
        direction = "down" if _side(drift) < 0 else "up"
        return f"{direction}-weighted by {_size(drift.estimate, 'ratio')} ({note})"
    if equivalent(drift) and _side(dilution) < 0:
        return f"dilution only (mass lower by {_size(dilution.estimate, 'ratio')})"
    others = {"row ratio": over_null, "competition": dilution}
    # Effects within the 10 % margin do not stand in the way of "indistinguishable".
    apart = [name for name, each in others.items() if _side(each) and not equivalent(each)]
    if not apart:
        return "indistinguishable from the null"
    if _side(dilution) < 0:
        return "inconclusive (dilution, but a score drift beyond the 10 % margin is possible)"
    return f"inconclusive (no score drift shown, yet an effect on the {' and '.join(apart)})"


def _side(log_ratio: Interval) -> int:
    """-1 below 0, 1 above 0, each by more than rounding; 0 if the interval reaches 0."""
    return int(log_ratio.low > ROUNDING_NATS) - int(log_ratio.high < -ROUNDING_NATS)


def _size(estimate: float, scale: Scale) -> str:
    if scale == "difference":
        return f"{abs(estimate):.2g}"
    # expm1: a change of a log-ratio of -0.05 is 4.9 %, and small ones keep their digits.
    percent = 100 * abs(np.expm1(estimate))
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"
