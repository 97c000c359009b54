"""Measures of one slot by layer, and the attention it gets compared with chance."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from tempo.trace.glyphs import token_glyphs
from tempo_analysis.stats.association import rank_correlations
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.studies.follow.logit_lens import Lens

_LEAST = 2.0**-25
"""Half of the float32 spacing below 1: the most that a weight rounded to 1 leaves to the rest."""

SeenByLayer = Bool[np.ndarray, "layer query"]


def mean_where_seen(
    weights: Float[np.ndarray, "layer head query"], sees: SeenByLayer
) -> Float64[np.ndarray, "layer head"]:
    """Mean over the queries that may see the slot; NaN where none may."""
    # Masked before the sum: a cell that is not visible may hold any value, NaN included.
    total = np.where(sees[:, None], weights, 0.0).astype(np.float64).sum(-1)
    count = sees.sum(-1)[:, None]
    # maximum only keeps the unused branch of where from dividing by 0.
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def chance_where_seen(
    visible: Bool[np.ndarray, "layer query slot"], sees: SeenByLayer
) -> Float64[np.ndarray, " layer"]:
    """Mean of 1 / visible slots over the queries that may see the slot; NaN where none may."""
    # Per query, then averaged: the mean of 1/n is not 1 over the mean of n.
    even = 1.0 / np.maximum(visible.sum(-1), 1)
    # Chance is the same for all heads, so an axis of one head is added and removed.
    return mean_where_seen(even[:, None], sees)[:, 0]


def odds_law(
    alone: Float[np.ndarray, "member layer head query"],
) -> Float64[np.ndarray, "member layer head query"]:
    """Weight of each member of a set if every member keeps the odds that it has alone.

    The weight is o / (1 + sum of o over the set), with m the weight alone and o = m / (1 - m).
    Exact where keys and query equal those of the member alone, which is layer 0.
    """
    mass = alone.astype(np.float64)
    # Odds, not weights: exp(score) over the rest of the row does not change when members join.
    odds = mass / np.maximum(1.0 - mass, _LEAST)
    return odds / (1.0 + odds.sum(0))


_LONGEST = 24

ByLayer = Float64[np.ndarray, " layer"]


@dataclass(frozen=True, slots=True)
class KnockedOut:
    """Effect on the readout of hiding one slot from the queries of the next step.

    The slot is masked before the softmax, so the other visible slots take its share.

    Attributes:
        one_layer_nats: KL(readout || readout without the slot in this one layer), in nats, over the
            whole vocabulary; NaN in a layer where no query of the step may see it.
        every_layer_nats: The same, without it in all layers at once.
    """

    one_layer_nats: ByLayer
    every_layer_nats: float

    @property
    def strongest(self) -> int:
        """The layer in which it matters most."""
        return int(np.nanargmax(self.one_layer_nats))


@dataclass(frozen=True, slots=True)
class Course:
    """The measures of one member by layer, in its set or alone.

    Attributes:
        slot: Its slot in the trace, also where it is alone.
        text: Of its token.
        rank: In its set, from 0.
        probability: Under the readout that chose it.
        attention: Mean weight over the queries of each later step that may see it; NaN where none
            may.
        norm: L2 norm of its residual state, by depth.
        value_norm: L2 norm of what its value writes through each head, per unit of attention; NaN
            where the model's output projections are not plain.
        knocked: Effect of hiding it on the next readout; None if no query of the next step may
            see it.
    """

    slot: int
    token: int
    text: str
    rank: int
    probability: float
    attention: Float64[np.ndarray, "later layer head"]
    norm: Float64[np.ndarray, " depth"]
    value_norm: ByHead
    lens: Lens
    knocked: KnockedOut | None

    @property
    def attention_by_layer(self) -> ByLayer:
        """From the next step, mean over heads."""
        return self.attention[0].mean(-1)

    @property
    def written_by_layer(self) -> ByLayer:
        """Attention from the next step times the norm of the value, mean over heads."""
        # Product before the mean: a sink head has a large weight and a small value.
        return (self.attention[0] * self.value_norm).mean(-1)


@dataclass(frozen=True, slots=True)
class Control:
    """The prompt slot, other than slot 0, with the mean attention nearest to that of the member.

    Attributes:
        attention: Mean weight over the queries of the next step that may see it.
    """

    slot: int
    text: str
    attention: ByHead
    knocked: KnockedOut

    @property
    def attention_by_layer(self) -> ByLayer:
        """Mean over heads."""
        return self.attention.mean(-1)


def correlation(course: Course | Control) -> float:
    """Spearman's, over layers, of the attention a slot gets and the effect of its knock-out.

    Layers where nothing sees it are left out; NaN with fewer than 3 others. Unrelated quantities
    give 0. One slot of one run is one case: no interval.
    """
    if course.knocked is None:
        return float("nan")
    # The helper takes one row for each prompt; here there is one.
    pair = (course.attention_by_layer[None], course.knocked.one_layer_nats[None])
    return float(rank_correlations(*pair)[0])


def shown(text: str) -> str:
    """A token on one line, its spaces and line ends visible."""
    return token_glyphs(text, longest=_LONGEST)


def quoted(text: str) -> str:
    """The same inside a sentence."""
    return f"\u201c{shown(text)}\u201d"
