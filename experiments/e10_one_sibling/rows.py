"""The rows and curves of e10 over prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from experiments.e10_one_sibling.layers import Sibling
from experiments.means import curve_of, factor_of, mean_known, mean_of
from experiments.pairs import compared_with
from tempo_analysis.parallel.metrics import Metric

LAYERS = slice(1, None)
"""Depths after the embedding."""
N_RANKS = 3
Values = Float64[np.ndarray, " prompt"]
Curve = Float64[np.ndarray, "prompt depth"]


def metrics(found: Sequence[Sibling]) -> list[Metric]:
    """Every row of the experiment."""
    between = _values(found, lambda one: one.cosine_between[LAYERS].mean())
    cosine = [_of_rank(found, rank)[:, LAYERS].mean(1) for rank in range(N_RANKS)]
    change = _values(found, lambda one: one.own_change.max())
    last = np.stack([one.cosine[-1, 0] for one in found]) if found else np.empty(0)
    attention = _values(
        found, lambda one: np.log(one.attention_in_set / one.attention_alone).mean()
    )
    made = [
        factor_of("attention_in_set", "member", attention, other="a member alone"),
        mean_of("own_state_change", "member", change, unit="share of norm", chance=0.0),
        *(mean_of("cosine", f"rank {rank}", each) for rank, each in enumerate(cosine)),
        mean_of("cosine_last", "rank 0", last),
        mean_of("cosine_between", "members alone", between),
        *_lower_ranks(cosine),
        compared_with(
            cosine[0] - between, "members alone", name="cosine_less_between", arm="rank 0"
        ),
    ]
    return made + _nearest(found) + _lens(found)


def detail(found: Sequence[Sibling]) -> dict[str, Any]:
    """Curves by depth or layer, with simultaneous bands, and checks."""
    curves = {
        "cosine_rank_0": _of_rank(found, 0),
        "cosine_rank_1": _of_rank(found, 1),
        "cosine_between": _curve(found, lambda one: one.cosine_between),
        "own_state_change": _curve(found, lambda one: one.own_change.max(1)),
        "attention_in_set": _curve(found, lambda one: one.attention_in_set.mean(1)),
        "attention_alone": _curve(found, lambda one: one.attention_alone.mean(1)),
        "norm_member": _curve(found, lambda one: one.norm.mean(1)),
        "norm_next_query": _curve(found, lambda one: one.norm_after_set),
        "lens_own": _curve(found, lambda one: one.lens_own.mean(1)),
        "lens_set_less_own": _curve(found, lambda one: (one.lens_set - one.lens_own).mean(1)),
    }
    return {
        "n_first_sets": len(found),
        "n_members": sum(one.norm.shape[1] for one in found),
        "largest_own_change": max((float(one.own_change.max()) for one in found), default=np.nan),
        "largest_lens_error": max((one.lens_error for one in found), default=np.nan),
        "curves": {name: curve_of(values) for name, values in curves.items()} if found else {},
    }


def _lower_ranks(cosine: Sequence[Values]) -> list[Metric]:
    return [
        compared_with(
            cosine[rank] - cosine[0], "rank 0", name="cosine_less_rank_0", arm=f"rank {rank}"
        )
        for rank in range(1, N_RANKS)
    ]


def _nearest(found: Sequence[Sibling]) -> list[Metric]:
    """How often the nearest state is that of the member attended to most, or of the first."""
    attended = _values(found, lambda one: (one.nearest == one.attended).mean())
    top = _values(found, lambda one: (one.nearest == 0).mean())
    chance = _values(found, lambda one: 1 / one.norm.shape[1])
    return [
        mean_of("nearest_is", "attended", attended, unit="share of queries", null=chance),
        mean_of("nearest_is", "rank 0", top, unit="share of queries", null=chance),
        compared_with(attended - chance, "chance", name="nearest_is_less_chance", arm="attended"),
        compared_with(attended - top, "rank 0", name="nearest_is_less_rank_0", arm="attended"),
    ]


def _lens(found: Sequence[Sibling]) -> list[Metric]:
    """Distances of the lens from the set's readout less those from the member's own, in nats."""
    made: list[Metric] = []
    for name, part in (("first", 0), ("middle", 1), ("last", 2)):
        values = _values(found, lambda one, part=part: _third(one.lens_set - one.lens_own, part))
        made.append(mean_of("lens_set_less_own", f"{name} third", values, unit="nats", chance=0.0))
    return made


def _third(by_depth: Float64[np.ndarray, "depth member"], part: int) -> float:
    return mean_known(np.array_split(by_depth[LAYERS], 3)[part])


def _values(found: Sequence[Sibling], value: Callable[[Sibling], float]) -> Values:
    return np.array([value(one) for one in found], np.float64)


def _curve(found: Sequence[Sibling], value: Callable[[Sibling], np.ndarray]) -> Curve:
    return np.array([value(one) for one in found], np.float64)


def _of_rank(found: Sequence[Sibling], rank: int) -> Curve:
    """Cosine after one member alone; NaN where the set has no such rank."""
    return np.array(
        [
            one.cosine[:, rank] if rank < one.cosine.shape[1] else np.full(len(one.cosine), np.nan)
            for one in found
        ]
    )
