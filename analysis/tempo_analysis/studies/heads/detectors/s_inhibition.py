"""Heads that inhibit a repeated name: where they look, and whether writing it lowers it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights
from tempo_analysis.studies.heads.detectors.circuit_maps import (
    heads_of,
    read_map,
    sized,
    unembedded,
    write_map,
)
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows, at_cells

S_INHIBITION_THRESHOLD = 0.1


def s_inhibition(rows: SequenceRows, *, end: int, second_subject: int) -> HeadScore:
    """Weight from the end to the second mention of the subject.

    The null is the same cell of the ABC prompt, in which a third name stands there: a head that
    attends to any name at that place, or to that place, keeps its score.

    Args:
        rows: The rows of one prompt.
        end: Slot of the last token, which predicts the name.
        second_subject: Slot of the second mention; in the ABC prompt, of the third name.

    Raises:
        InputError: The second mention does not come before the end.
    """
    if not 0 <= second_subject < end < rows.n_queries:
        raise InputError(
            f"expected 0 <= second mention < end < {rows.n_queries}, got {second_subject} and "
            f"{end}; give the slots in this prompt"
        )
    return at_cells(rows, query=np.array([end]), slot=np.array([second_subject]))


COPY_CHANCE = 0.0
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
