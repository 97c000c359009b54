"""One slot through the layers: a member in its set or alone, or a prompt slot beside it.

Depth 0 is the embedding and depth d the residual stream after d layers, so layer d - 1 lies between
depths d - 1 and d.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.member.lens import Lens
from tempo.trace.glyphs import token_glyphs
from tempo_analysis.stats.association import rank_correlations

_LONGEST = 24

ByLayer = Float64[np.ndarray, " layer"]
ByHead = Float64[np.ndarray, "layer head"]


@dataclass(frozen=True, slots=True)
class KnockedOut:
    """What taking one slot from the sight of the next step does to the readout after it.

    The slot's column goes before the softmax, so other slots take its share.

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
    """One member through the layers, in its set or alone.

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
        knocked: What the next readout loses without it; None where nothing of the next step may see
            it.
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
        return (self.attention[0] * self.value_norm).mean(-1)


@dataclass(frozen=True, slots=True)
class Control:
    """The prompt slot, slot 0 left out, whose mean attention is nearest to the member's.

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
    pair = (course.attention_by_layer[None], course.knocked.one_layer_nats[None])
    return float(rank_correlations(*pair)[0])


def shown(text: str) -> str:
    """A token on one line, its spaces and line ends visible."""
    return token_glyphs(text, longest=_LONGEST)


def quoted(text: str) -> str:
    """The same inside a sentence."""
    return f"\u201c{shown(text)}\u201d"
