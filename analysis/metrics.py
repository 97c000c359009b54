"""The numbers of a run, each beside its chance value, its null and a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.averages import mean_over_prompts
from analysis.entropy import CHANCE as EVEN_ENTROPY
from analysis.measure import PromptMeasures
from analysis.ratio import CHANCE as EVEN_RATIO
from analysis.ratio import AttentionRatio
from analysis.statistics import SEED, Interval, estimate_with_interval
from analysis.verdict import verdict

NONE = float("nan")
Values = Float64[np.ndarray, " prompt"]
Column = Sequence[PromptMeasures | None]
"""One arm's measures, a place for each prompt of the run; None where it was not decoded."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number.

    Attributes:
        name: Stable key.
        arm: Arm, or pair of arms as `isolated|visible`.
        unit: Unit of estimate, limits, chance and null.
        interval: Mean over prompts and its interval (geometric mean for ratios).
        chance: Value under even attention, or where a twin or a set has no effect; NaN where there
            is none.
        null: Estimate of the same quantity on the greedy runs; NaN where there is none.
        verdict: Generated from the intervals of the comparisons with both.
    """

    name: str
    arm: str
    unit: str
    interval: Interval
    chance: float
    null: float
    verdict: str


@dataclass(frozen=True, slots=True)
class _Quantity:
    """How to get one number of a prompt and, where it has one, its chance value."""

    name: str
    unit: str
    value: Callable[[PromptMeasures], float]
    chance: Callable[[PromptMeasures], float] | None = None


_QUANTITIES = (
    _Quantity(
        "normalised_entropy",
        "fraction of ln n",
        lambda one: one.entropy.normalised.overall(),
        lambda one: EVEN_ENTROPY,
    ),
    _Quantity(
        "normalised_entropy_without_sink",
        "fraction of ln n",
        lambda one: one.entropy.normalised_without_sink.overall(),
        lambda one: EVEN_ENTROPY,
    ),
    _Quantity(
        "sink_mass",
        "share of the row",
        lambda one: one.entropy.sink_mass.overall(),
        lambda one: one.entropy.sink_chance.overall(),
    ),
    _Quantity(
        "sibling_mass",
        "share of the row",
        lambda one: one.siblings.mass.overall(),
        lambda one: one.siblings.chance.overall(),
    ),
    _Quantity("mean_width", "slots per set", lambda one: one.widths.mean_width),
    _Quantity("parallel_share", "share of sets", lambda one: one.widths.parallel_share),
    _Quantity("repetition", "share of trigrams", lambda one: one.widths.repetition),
)
_OF_SETS_ONLY = frozenset({"sibling_mass"})
"""Without a value on a greedy run, so without a null."""


def ratio_metrics(arm: str, ratios: Sequence[AttentionRatio], *, no_null: str) -> list[Metric]:
    """The ratio with and without the sink, and over its null."""
    return [
        metric
        for ratio in ratios
        for metric in (_ratio_metric(arm, ratio, no_null), _over_null_metric(arm, ratio, no_null))
    ]


def missing_ratio_metrics(arm: str, reason: str) -> list[Metric]:
    """The same rows where no prompt has a parallel set to look at."""
    nothing = estimate_with_interval(np.full(0, np.nan))
    names = [name for sink in ("without", "with") for name in _ratio_names(sink)]
    return [Metric(name, arm, "ratio", nothing, NONE, NONE, reason) for name in names]


def arm_metrics(
    arm: str, column: Column, null: Column | None, *, no_null: str, seed: int = SEED
) -> list[Metric]:
    """Everything else about one arm; `null` holds the greedy runs of the same prompts."""
    return [
        _arm_metric(arm, quantity, column, null, no_null=no_null, seed=seed)
        for quantity in _QUANTITIES
    ]


def null_metrics(arm: str, column: Column, *, seed: int = SEED) -> list[Metric]:
    """What can be said of the greedy arm itself, which has no null."""
    return [
        _arm_metric(arm, quantity, column, None, no_null="this arm is the null", seed=seed)
        for quantity in _QUANTITIES
        if quantity.name not in _OF_SETS_ONLY
    ]


def metric_row(metric: Metric) -> Mapping[str, str | float | int]:
    """The nine keys of `results.json`."""
    return {
        "name": metric.name,
        "arm": metric.arm,
        "estimate": metric.interval.estimate,
        "low": metric.interval.low,
        "high": metric.interval.high,
        "n": metric.interval.n,
        "chance": metric.chance,
        "null": metric.null,
        "verdict": metric.verdict,
    }


def _ratio_names(sink: str) -> tuple[str, str]:
    return f"attention_ratio_{sink}_sink", f"attention_ratio_{sink}_sink_over_null"


def _ratio_metric(arm: str, ratio: AttentionRatio, no_null: str) -> Metric:
    text = verdict(
        ratio.ratio.logarithm(),
        _null_comparison(ratio),
        scale="ratio",
        no_null=no_null,
    )
    name = _ratio_names(ratio.sink)[0]
    return Metric(name, arm, "ratio", ratio.ratio, EVEN_RATIO, ratio.null.estimate, text)


def _over_null_metric(arm: str, ratio: AttentionRatio, no_null: str) -> Metric:
    against = _null_comparison(ratio)
    text = verdict(None, against, scale="ratio", no_null=no_null)
    null = NONE if against is None else 1.0
    return Metric(_ratio_names(ratio.sink)[1], arm, "ratio", ratio.over_null, NONE, null, text)


def _null_comparison(ratio: AttentionRatio) -> Interval | None:
    return ratio.over_null.logarithm() if ratio.over_null.n else None


def _arm_metric(
    arm: str, quantity: _Quantity, column: Column, null: Column | None, *, no_null: str, seed: int
) -> Metric:
    value = _values(column, quantity.value)
    chance = np.full(len(column), np.nan)
    if quantity.chance:
        chance = np.where(np.isnan(value), np.nan, _values(column, quantity.chance))
    nothing = np.full(len(column), np.nan)
    has_null = null is not None and quantity.name not in _OF_SETS_ONLY
    other = _values(null, quantity.value) if null is not None and has_null else nothing
    other = np.where(np.isnan(value), np.nan, other)
    text = verdict(
        estimate_with_interval(value - chance, seed=seed) if quantity.chance else None,
        estimate_with_interval(value - other, seed=seed) if has_null else None,
        scale="difference",
        no_null="" if quantity.name in _OF_SETS_ONLY else no_null,
    )
    return Metric(
        name=quantity.name,
        arm=arm,
        unit=quantity.unit,
        interval=estimate_with_interval(value, seed=seed),
        chance=float(mean_over_prompts(chance)),
        null=float(mean_over_prompts(other)),
        verdict=text,
    )


def _values(column: Column, value: Callable[[PromptMeasures], float]) -> Values:
    return np.array([np.nan if one is None else value(one) for one in column], np.float64)
