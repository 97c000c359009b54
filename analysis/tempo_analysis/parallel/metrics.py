"""The numbers of a run, each beside its chance value, its null and a verdict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo.errors import InputError
from tempo_analysis.parallel.divergence import IDENTICAL
from tempo_analysis.parallel.entropy import CHANCE as EVEN_ENTROPY
from tempo_analysis.parallel.per_prompt import PromptMeasures
from tempo_analysis.parallel.ratio import CHANCE as EVEN_RATIO
from tempo_analysis.parallel.ratio import AttentionRatio, Sink
from tempo_analysis.parallel.set_effect import ALONE, Part, SetEffect
from tempo_analysis.parallel.twins import Twin
from tempo_analysis.report.document import number, stated
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.intervals import SEED, Interval, Unanswered, estimate_with_interval
from tempo_analysis.stats.verdict import (
    axes_verdict,
    change_verdict,
    comparison,
    divergence_verdict,
    parallel_verdict,
    verdict,
)

NONE = float("nan")
Values = Float64[np.ndarray, " prompt"]
PromptColumn = Sequence[PromptMeasures | None]
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

    @property
    def estimate(self) -> float:
        """Mean over prompts; NaN without data."""
        return self.interval.estimate

    @property
    def low(self) -> float:
        """Lower 95 % limit; NaN where there are too few prompts for an interval."""
        return self.interval.low

    @property
    def high(self) -> float:
        """Upper 95 % limit; NaN where there are too few prompts for an interval."""
        return self.interval.high

    @property
    def n(self) -> int:
        """Prompts with data."""
        return self.interval.n


@dataclass(frozen=True, slots=True, repr=False)
class MetricRows:
    """The rows of one question: `Results["attention_ratio", "isolated"]`.

    Rows are read in a loop or by number; `.only` is the row where there is one.
    """

    rows: tuple[Metric, ...]

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Metric:
        return self.rows[number]

    @property
    def only(self) -> Metric:
        """The row, where there is exactly one.

        Raises:
            InputError: There are several; the message names them.
        """
        if len(self.rows) != 1:
            named = ", ".join(f"{row.name} of {row.arm}" for row in self.rows)
            raise InputError(f"expected one row, got {len(self.rows)}: {named}; name one of them")
        return self.rows[0]

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a line for each row and the columns of `results.json`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise InputError(
                "expected pandas for to_pandas(), got an installation without it; install "
                "tempo-decoding[pandas]"
            ) from None
        return pd.DataFrame([metric_row(row) for row in self.rows])

    def __repr__(self) -> str:
        return "\n".join(
            f"{row.name}, {row.arm}: {stated(row.interval)}, n {row.n}, chance "
            f"{number(row.chance)}, null {number(row.null)}; {row.verdict}"
            for row in self.rows
        )


def rows_of(metrics: Sequence[Metric], name: str, arm: str | None) -> MetricRows:
    """The rows that a name and an arm ask for.

    The name of a row selects that row only. Any other name selects all rows whose names begin with
    it: `attention_ratio` selects the ratios with and without the sink, and those over their null.

    Raises:
        InputError: No such name or arm; the message has the nearest ones.
    """
    by_arm = [row for row in metrics if arm is None or row.arm == arm]
    if not by_arm:
        raise InputError(_unknown("an arm", str(arm), [row.arm for row in metrics]))
    # The exact name first: `competition` is also the beginning of `competition_with_sink`.
    found = [row for row in by_arm if row.name == name] or [
        row for row in by_arm if row.name.startswith(f"{name}_")
    ]
    if not found:
        raise InputError(_unknown("a metric", name, [row.name for row in by_arm]))
    return MetricRows(tuple(found))


def _unknown(what: str, given: str, known: Sequence[str]) -> str:
    # Without repeats and in the order of the table, so that the message is always the same.
    names = list(dict.fromkeys(known))
    # One that is spelled alike is close enough at half; without any, all of them are listed.
    near = get_close_matches(given, names, n=4, cutoff=0.5) or names
    return f"expected {what} such as {', '.join(near)}, got {given!r}; choose one of them"


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
    """The same rows, without data, where no prompt has a parallel set."""
    # No prompt gives NaN limits and "too few prompts", the same as everywhere else.
    nothing = estimate_with_interval(np.full(0, np.nan))
    # The rows stay, with the reason: a missing row would read as a question not asked.
    names = [name for sink in ("without", "with") for name in _ratio_names(sink)]
    return [Metric(name, arm, "ratio", nothing, NONE, NONE, reason) for name in names]


def arm_metrics(
    arm: str, column: PromptColumn, null: PromptColumn | None, *, no_null: str, seed: int = SEED
) -> list[Metric]:
    """Everything else about one arm; `null` holds the greedy runs of the same prompts."""
    return [
        _arm_metric(arm, quantity, column, null, no_null=no_null, seed=seed)
        for quantity in _QUANTITIES
    ]


def null_metrics(arm: str, column: PromptColumn, *, seed: int = SEED) -> list[Metric]:
    """The numbers of the greedy arm itself, which has no null."""
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
    # Chance is a ratio of 1, a logarithm of 0: the log-interval is the comparison itself.
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
    # n is 0 where no prompt has both runs; a NaN interval would read as "no data", not "no null".
    return ratio.over_null.logarithm() if ratio.over_null.n else None


def _arm_metric(
    arm: str,
    quantity: _Quantity,
    column: PromptColumn,
    null: PromptColumn | None,
    *,
    no_null: str,
    seed: int,
) -> Metric:
    value = _values(column, quantity.value)
    chance = np.full(len(column), np.nan)
    if quantity.chance:
        # Chance and null only on prompts that have the value: means over other prompts would not be
        # comparable with it.
        chance = np.where(np.isnan(value), np.nan, _values(column, quantity.chance))
    nothing = np.full(len(column), np.nan)
    has_null = null is not None and quantity.name not in _OF_SETS_ONLY
    other = _values(null, quantity.value) if null is not None and has_null else nothing
    other = np.where(np.isnan(value), np.nan, other)
    text = verdict(
        # Differences are taken within a prompt, so variation between prompts cancels.
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


def _values(column: PromptColumn, value: Callable[[PromptMeasures], float]) -> Values:
    return np.array([np.nan if one is None else value(one) for one in column], np.float64)


UNCHANGED = 1.0
"""Row ratio of a twin over its reference where the change has no effect."""

DISTANCES = ("kl_forward", "kl_backward", "js")
SIMILARITIES = ("cosine", "top_1_overlap", "top_overlap")
_MASSES = {"sets": "earlier_set_mass_change", "sink": "sink_mass_change"}
_OF_SPLIT = {
    "total": "member_gain",
    "drift": "score_drift",
    "competition": "competition",
    "predicted": "dilution_predicted",
    "elsewhere": "mass_elsewhere",
    "sink_gain": "sink_gain",
    "set_gain": "set_gain",
}
"""Name of each part of the split among the metrics."""

# The others involve only the members' own mass or that of slot 0, which is not affected by whether
# slot 0 is in the reference.
_OF_REFERENCE = ("drift", "competition", "elsewhere")
"""Parts that depend on whether slot 0 is among the reference slots."""


def twin_metrics(twin: Twin) -> list[Metric]:
    """What changed in a twin, and what followed; only the first where tokens differ."""
    return [_axes_metric(twin), *_row_metrics(twin), *_readout_metrics(twin)]


def refused_twin_metric(refusal: Unanswered) -> Metric:
    """The row of a twin in which something else differs."""
    text = f"refused: {refusal.reason}"
    return Metric("axes_changed", refusal.arm, "axes", _nothing(), NONE, NONE, text)


def split_metrics(
    effects: Mapping[Sink, SetEffect], over_null: Interval | None, *, no_null: str
) -> list[Metric]:
    """The split of all sets and of first sets, and the verdict over it.

    Args:
        effects: "without" and "with" slot 0 in the reference.
        over_null: Row ratio without the sink over its null, as a factor; None without a null.
        no_null: Text in place of the verdict where there is no null.
    """
    # The verdict rests on the reference without the sink: slot 0 takes most of the mass and would
    # hide what happens on the rest of the prompt.
    metrics = [_verdict_metric(effects["without"], over_null, no_null)]
    for prefix in ("", "first_"):
        for sink, effect in effects.items():
            part = effect.first if prefix else effect.all_sets
            metrics += _part_metrics(effect.arm, part, prefix=prefix, sink=sink)
    return metrics


def refused_split_metric(refusal: Unanswered) -> Metric:
    """The row of the verdict for a paired run that could not be split."""
    text = f"no verdict: {refusal.reason}"
    return Metric("parallel_verdict", refusal.arm, "factor", _nothing(), ALONE, NONE, text)


def _axes_metric(twin: Twin) -> Metric:
    text = axes_verdict(twin.axes)
    return Metric("axes_changed", twin.pair, "axes", twin.n_axes, NONE, NONE, text)


def _row_metrics(twin: Twin) -> list[Metric]:
    metrics = []
    for sink, found in twin.ratio.items():
        text = change_verdict(found.logarithm(), "the reference", scale="ratio")
        name = f"paired_ratio_{sink}_sink"
        metrics.append(Metric(name, twin.pair, "factor", found, UNCHANGED, NONE, text))
    for kind, found in twin.mass.items():
        text = change_verdict(found, "the reference", scale="difference")
        unit = "change of the share of the row"
        metrics.append(Metric(_MASSES[kind], twin.pair, unit, found, 0.0, NONE, text))
    return metrics


def _readout_metrics(twin: Twin) -> list[Metric]:
    # None where tokens differ: readouts of other texts are not comparable.
    if twin.by_step is None:
        return []
    # Too small a divergence could be read as no difference, so its unit has the warning.
    bound = ", lower bound" if twin.by_step.lower_bounds else ""
    metrics = []
    for measure in (*DISTANCES, *SIMILARITIES):
        found, same = twin.readouts[measure], IDENTICAL[measure]
        is_distance = measure in DISTANCES
        # A divergence is never negative, so an interval around 0 cannot arise and "not 0" needs a
        # rounding limit of its own.
        text = divergence_verdict(found) if is_distance else _similarity_verdict(found, same)
        unit = f"nats{bound}" if is_distance else "cosine" if measure == "cosine" else "share"
        metrics.append(Metric(f"readout_{measure}", twin.pair, unit, found, same, NONE, text))
    return metrics


def _similarity_verdict(found: Interval, same: float) -> str:
    # Shifted so that identical readouts are at 0, which is what `comparison` tests against.
    below = {name: getattr(found, name) - same for name in ("estimate", "low", "high")}
    return change_verdict(replace(found, **below), "identical readouts", scale="difference")


def _verdict_metric(effect: SetEffect, over_null: Interval | None, no_null: str) -> Metric:
    factor = effect.all_sets.factor
    text = f"no verdict: {no_null}"
    if over_null is not None:
        # Factors are for readers; the rules of the verdict are stated in nats.
        three = (each.logarithm() for each in (over_null, factor.drift, factor.competition))
        text = parallel_verdict(*three, n_sets=effect.n_sets)
    return Metric("parallel_verdict", effect.arm, "factor", factor.total, ALONE, NONE, text)


def _part_metrics(arm: str, part: Part, *, prefix: str, sink: Sink) -> list[Metric]:
    """One row for each part; with slot 0 in the reference, only the parts that depend on it."""
    # The other rows would repeat the same numbers under a second name.
    kept = _OF_SPLIT if sink == "without" else {k: _OF_SPLIT[k] for k in _OF_REFERENCE}
    suffix = "" if sink == "without" else "_with_sink"
    metrics = []
    for term, name in kept.items():
        found: Interval = getattr(part.factor, term)
        text = comparison(found.logarithm(), "a token alone", scale="ratio")
        row = Metric(f"{prefix}{name}{suffix}", arm, "factor", found, ALONE, NONE, text)
        metrics.append(row)
    return metrics


def _nothing() -> Interval:
    return estimate_with_interval(np.full(0, np.nan))
