"""Does a head, attending to a name, raise or lower that name? The direct OV copy score.

copy(h) = mean over names t of W_U[t] . W_O W_V W_E[t]. Heads that inhibit the repeated subject are
expected to lower it; note that in GPT-2 they act on the queries of other heads, so a negative score
is also the mark of heads that suppress copies (Wang et al. 2022, arXiv 2211.00593).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.circuits.maps import heads_of, read_map, sized, unembedded, write_map
from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights

CHANCE = 0.0
"""Of a head with independent random weights."""


@dataclass(frozen=True, slots=True)
class DirectCopy:
    """Logit that a name gets from being attended to, for every head.

    Attributes:
        by_name: In logits, before the final norm's division.
        score: Mean over names.
        others: Mean logit that the other names get, which a head that copies only "a name" raises.
        norm: Whether the norms around the head are folded in: the embedding divided by its size,
            and the gains of input and final norm.
        left_out: What the weights alone do not show of this model.
    """

    by_name: Float64[np.ndarray, "layer head name"]
    score: Float64[np.ndarray, "layer head"]
    others: Float64[np.ndarray, "layer head"]
    norm: bool
    left_out: tuple[str, ...]


def direct_copy(weights: CircuitWeights, tokens: Sequence[int], *, norm: bool) -> DirectCopy:
    """Score every head on these tokens.

    Raises:
        InputError: Fewer than two tokens.
    """
    if len(tokens) < 2:
        raise InputError(f"expected at least 2 names, got {len(tokens)}; give more")
    said = unembedded(weights, weights.unembedding[list(tokens)], norm=norm)
    shape = (len(weights.layers), weights.n_heads)
    by_name, others = np.empty((*shape, len(tokens))), np.empty(shape)
    rows = weights.embedding[list(tokens)]
    for layer, head in heads_of(weights):
        entered = sized(weights.layers[layer].input_norm, rows) if norm else rows
        inner = read_map(weights, layer, head, norm=norm) @ entered.T
        logits = (said @ write_map(weights, layer, head, norm=norm) @ inner).astype(np.float64)
        by_name[layer, head] = np.diagonal(logits)
        others[layer, head] = logits[~np.eye(len(tokens), dtype=bool)].mean()
    return DirectCopy(
        by_name,
        by_name.mean(-1),
        others,
        norm,
        weights.left_out() if norm else ("norms", *weights.left_out()),
    )
