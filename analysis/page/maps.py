"""Layer x head maps of the page: what they show, beside chance and null."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64

from analysis.heads import MEASURES
from analysis.page.packing import base64
from analysis.results import ArmResults, Results

LABELS = {
    "sink": "mass on slot 0",
    "self": "mass on the query itself",
    "siblings": "mass on siblings",
    "recent": "mass at most 8 positions back",
    "distant": "mass further back",
    "earlier_sets": "mass on earlier sets",
    "local_without_sink": "local share without slot 0",
    "distant_without_sink": "distant share without slot 0",
    "distance_without_sink": "mean distance without slot 0",
    "max_weight": "largest weight",
    "normalised_entropy": "entropy / ln n",
    "normalised_entropy_without_sink": "entropy / ln n without slot 0",
}
_FIRST = ("normalised_entropy_without_sink", "sink")

HeadMap = dict[str, Any]


def head_maps(results: Results) -> dict[str, list[HeadMap]]:
    """For each free arm its maps, the ratio first."""
    return {arm: [*_ratio_maps(found), *_measures(found)] for arm, found in results.by_arm.items()}


def _ratio_maps(found: ArmResults) -> Iterator[HeadMap]:
    for sink, ratio in found.ratio.items():
        with np.errstate(over="ignore"):
            value, null = np.exp(ratio.log_ratio_by_head), np.exp(ratio.log_null_by_head)
        yield coded_map(
            f"ratio_{sink}_sink",
            f"ratio set slot / other slot, {sink} slot 0",
            value,
            scale="log",
            chance=np.ones_like(value),
            null=null,
            q=ratio.q_value_by_head,
        )


def _measures(found: ArmResults) -> Iterator[HeadMap]:
    table = found.heads
    if table is None:
        return
    for name in (*_FIRST, *(name for name in MEASURES if name not in _FIRST)):
        scale = "positions" if name.startswith("distance") else "share"
        chance = table.chance_column(name)
        yield coded_map(name, LABELS[name], table.column(name), scale=scale, chance=chance)


def coded_map(
    key: str,
    label: str,
    value: Float64[np.ndarray, "layer head"],
    *,
    scale: str,
    **beside: Float64[np.ndarray, "layer head"],
) -> HeadMap:
    """One map of the page.

    `scale` is share (0 to 1), positions (from 0), log (a factor; 1 is in the middle) or score: from
    0 to the largest score or the threshold, on both sides of 0 where scores fall below it.
    """
    arrays = {"value": value, **beside}
    coded = {name: base64(each.astype("<f4").tobytes()) for name, each in arrays.items()}
    return {"key": key, "label": label, "scale": scale} | coded
