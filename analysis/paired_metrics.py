"""The numbers of a paired run, each beside the value of no effect and a verdict."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from analysis.divergence import IDENTICAL
from analysis.metrics import NONE, Metric
from analysis.pairing import Twin
from analysis.ratio import Sink
from analysis.refusal import Refusal
from analysis.set_effect import ALONE, Part, SetEffect
from analysis.statistics import Interval, estimate_with_interval
from analysis.verdict import (
    axes_verdict,
    change_verdict,
    comparison,
    divergence_verdict,
    parallel_verdict,
)

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

_OF_REFERENCE = ("drift", "competition", "elsewhere")
"""Parts that depend on whether slot 0 is among the reference slots."""


def twin_metrics(twin: Twin) -> list[Metric]:
    """What changed in a twin, and what followed; only the first where tokens differ."""
    return [_axes_metric(twin), *_row_metrics(twin), *_readout_metrics(twin)]


def refused_twin_metric(refusal: Refusal) -> Metric:
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
        no_null: Said in place of the verdict where there is no null.
    """
    metrics = [_verdict_metric(effects["without"], over_null, no_null)]
    for prefix in ("", "first_"):
        for sink, effect in effects.items():
            part = effect.first if prefix else effect.all_sets
            metrics += _part_metrics(effect.arm, part, prefix=prefix, sink=sink)
    return metrics


def refused_split_metric(refusal: Refusal) -> Metric:
    """The headline of a paired run that could not be split."""
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
    if twin.by_step is None:
        return []
    bound = ", lower bound" if twin.by_step.lower_bounds else ""
    metrics = []
    for measure in (*DISTANCES, *SIMILARITIES):
        found, same = twin.readouts[measure], IDENTICAL[measure]
        is_distance = measure in DISTANCES
        text = divergence_verdict(found) if is_distance else _similarity_verdict(found, same)
        unit = f"nats{bound}" if is_distance else "cosine" if measure == "cosine" else "share"
        metrics.append(Metric(f"readout_{measure}", twin.pair, unit, found, same, NONE, text))
    return metrics


def _similarity_verdict(found: Interval, same: float) -> str:
    below = {name: getattr(found, name) - same for name in ("estimate", "low", "high")}
    return change_verdict(replace(found, **below), "identical readouts", scale="difference")


def _verdict_metric(effect: SetEffect, over_null: Interval | None, no_null: str) -> Metric:
    factor = effect.all_sets.factor
    text = f"no verdict: {no_null}"
    if over_null is not None:
        three = (each.logarithm() for each in (over_null, factor.drift, factor.competition))
        text = parallel_verdict(*three, n_sets=effect.n_sets)
    return Metric("parallel_verdict", effect.arm, "factor", factor.total, ALONE, NONE, text)


def _part_metrics(arm: str, part: Part, *, prefix: str, sink: Sink) -> list[Metric]:
    """With the sink in the reference, only the parts that this changes."""
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
