"""The causal check: silence the heads that separate the sides best, or as many random heads.

The effect is measured on the residual stream after the last layer at the last token, along the
direction that separates the two sides there. Direction and heads are chosen on every other pair and
the effect is measured on the rest. Random heads are matched layer by layer, because the depth of a
head alone changes how far it moves the last stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from tempo.errors import InputError
from tempo.vocabulary import Head
from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval
from tempo_analysis.studies.concepts.separation import TOP, ConceptHeads

# Every other pair, not the first half: neighbouring pairs of a file may share a topic.
FITTED = slice(0, None, 2)
"""Pairs on which heads and directions are chosen."""
MEASURED = slice(1, None, 2)
"""Pairs on which effects are measured."""

Streams = Float32[np.ndarray, "side pair hidden"]


@dataclass(frozen=True, slots=True)
class ConceptEffect:
    """How much of the margin between the sides is lost without some heads.

    The margin of a pair is its positive minus its negative stream, along the direction.

    Attributes:
        base: Mean margin of the unchanged model.
        lost_top: Share of `base` that is lost when the chosen heads are silenced.
        lost_random: The same for matched random heads, averaged over draws.
        difference: `lost_top` minus `lost_random`, paired over pairs.
        n_draws: Number of draws of random heads.
    """

    base: Interval
    lost_top: Interval
    lost_random: Interval
    difference: Interval
    n_draws: int


def concept_effect(
    base: Streams,
    without_top: Streams,
    without_random: Float32[np.ndarray, "draw side pair hidden"],
) -> ConceptEffect:
    """Compare silencing the chosen heads with silencing random ones.

    Args:
        base: Last streams of the unchanged model.
        without_top: Without the chosen heads.
        without_random: Without each draw of random heads.

    Raises:
        InputError: No draws, or a model whose last stream does not separate the sides at all.
    """
    fitted = base[:, FITTED].astype(np.float64)
    # From the unchanged model only, so that all conditions are read along one direction.
    direction = (fitted[0] - fitted[1]).mean(0)
    size = float(np.linalg.norm(direction))
    if not len(without_random) or size == 0:
        raise InputError(
            f"expected draws of random heads and a direction, got {len(without_random)} draws and "
            f"a difference of length {size:g}; draw some or use other pairs"
        )
    margins = margins_along(base, direction / size)
    # shares of the mean margin, not of each pair's own: a pair with a margin near 0 has no share
    scale = float(margins.mean())
    # Positive is a loss: unchanged minus silenced.
    top = (margins - margins_along(without_top, direction / size)) / scale
    random = np.stack([margins - margins_along(one, direction / size) for one in without_random])
    # averaged over draws first: the pair is the unit of the interval, not the draw
    others = random.mean(0) / scale
    return ConceptEffect(
        base=estimate_with_interval(margins),
        lost_top=estimate_with_interval(top),
        lost_random=estimate_with_interval(others),
        # Paired over pairs: a pair with a large margin loses more under any heads.
        difference=estimate_with_interval(top - others),
        n_draws=len(without_random),
    )


def margins_along(
    streams: Streams, direction: Float[np.ndarray, " hidden"]
) -> Float64[np.ndarray, " measured"]:
    """Margin of each measured pair along a direction of length 1."""
    measured = streams[:, MEASURED].astype(np.float64)
    return (measured[0] - measured[1]) @ direction


def chosen_heads(found: ConceptHeads, layers: Sequence[int], *, top: int = TOP) -> tuple[Head, ...]:
    """The `top` heads of highest AUROC on held-out pairs; ties by written length, longest first.

    At most half of the heads of a layer are taken, so that as many others are left to compare with.

    Args:
        found: Scores of every captured head.
        layers: Number of each captured layer.
        top: Number of heads; fewer are given where layers are few.

    Raises:
        InputError: The layers have one head each.
    """
    n_heads = found.auroc.shape[1]
    taken: dict[int, int] = {}
    chosen: list[Head] = []
    # lexsort sorts by its last key first
    for place in np.lexsort((-found.written_norm.ravel(), -found.auroc.ravel())).tolist():
        layer, head = layers[place // n_heads], place % n_heads
        # Half a layer at most: matched_random needs as many others from the same layer.
        if len(chosen) < top and taken.get(layer, 0) < n_heads // 2:
            taken[layer] = taken.get(layer, 0) + 1
            chosen.append(Head(layer, head))
    if not chosen:
        raise InputError(
            "expected layers of at least 2 heads to compare some with others, got layers of "
            f"{n_heads}; leave out the causal check"
        )
    return tuple(chosen)


def matched_random(
    chosen: Sequence[Head], n_heads: int, *, draws: int = 10, seed: int = SEED
) -> tuple[tuple[Head, ...], ...]:
    """Draws of as many heads of each layer as were chosen, from the other heads of the layer.

    Raises:
        InputError: More than half of a layer was chosen, so that too few others are left.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in chosen:
        by_layer.setdefault(layer, []).append(head)
    crowded = [layer for layer, heads in by_layer.items() if 2 * len(heads) > n_heads]
    if crowded:
        raise InputError(
            f"expected at most half of the heads of a layer, got {len(by_layer[crowded[0]])} of "
            f"{n_heads} in layer {crowded[0]}; choose fewer heads"
        )
    rng = np.random.default_rng(seed)  # one stream for all draws, layers in ascending order
    found: list[tuple[Head, ...]] = []
    for _ in range(draws):
        drawn: list[Head] = []
        for layer, heads in sorted(by_layer.items()):
            others = np.setdiff1d(np.arange(n_heads), heads)
            picked = rng.choice(others, len(heads), replace=False)
            drawn += [Head(layer, int(head)) for head in picked]
        found.append(tuple(drawn))
    return tuple(found)
