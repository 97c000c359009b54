"""What siblings pay each other, beside even spreading: rows of a twin for `result.json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.parallel.ratio import Sink
from tempo_analysis.parallel.within_set import IntraStep, PromptIntraStep, RankSums, intra_step
from tempo_analysis.stats.verdict import comparison

SINKS: tuple[Sink, Sink] = ("with", "without")
Axes = tuple[tuple[int, ...], tuple[int, ...]]


def spread_metrics(arm: str, prompts: Sequence[PromptIntraStep], axes: Axes) -> list[Metric]:
    """Share of a row on its siblings, and on the query itself, less chance."""
    made: list[Metric] = []
    for sink in SINKS:
        found = _found(prompts, sink, axes)
        for part, against in (("sibling", found.siblings), ("own", found.own)):
            chance = against.chance.estimate
            text = comparison(against.excess, "chance", scale="difference")
            share, excess = f"{part}_share_{sink}_sink", f"{part}_excess_{sink}_sink"
            made += [
                Metric(share, arm, "", against.share, chance, float("nan"), text),
                Metric(excess, arm, "", against.excess, 0.0, float("nan"), text),
            ]
    return made


def spread_detail(prompts: Sequence[PromptIntraStep], axes: Axes) -> dict[str, Any]:
    """By difference of ranks and by layer; and the largest weight where nothing may be seen."""
    return {
        "largest_unseen": max(_unseen(one.with_sink) for one in prompts),
        **{sink: _curves(_found(prompts, sink, axes)) for sink in SINKS},
    }


def _found(prompts: Sequence[PromptIntraStep], sink: Sink, axes: Axes) -> IntraStep:
    layers, heads = axes
    return intra_step(prompts, sink=sink, layers=layers, heads=heads)


def _curves(found: IntraStep) -> dict[str, Any]:
    return {
        "by_difference": found.by_difference,
        "chance_by_difference": found.chance_by_difference.estimate,
        "siblings_by_layer": found.siblings.by_layer.estimate,
        "siblings_chance_by_layer": found.siblings.chance_by_layer.estimate,
    }


def _unseen(sums: RankSums) -> float:
    """Weight that members got from members that may not see them."""
    hidden = sums.weight[sums.seen == 0]
    return float(np.abs(hidden).max()) if hidden.size else 0.0
