"""S-inhibition: attention to the repeated name, and the logit that copying a name adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights
from tempo_analysis.studies.heads.detectors.circuit_maps import (
    every_head,
    read_map,
    sized,
    unembedded,
    write_map,
)
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows, at_cells

S_INHIBITION_THRESHOLD = 0.1
"""Cut of the head suite of Goodfire's SPD (pull request 403)."""


def s_inhibition(rows: SequenceRows, *, end: int, second_subject: int) -> HeadScore:
    """Weight from the last token to the second mention of the subject (S2); in [0, 1].

    Chance is 1 / visible slots. The null is the same cell of the ABC prompt, which has a third name
    there: a head that attends to any name at that place, or to the place itself, keeps its score.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 3. They find these heads by their effect
    on name movers, which `tempo.causal.name_effects` measures.

    Args:
        rows: The attention rows of one prompt.
        end: Slot of the last token, which predicts the name.
        second_subject: Slot of S2; in the ABC prompt, of the third name.

    Raises:
        InputError: The second mention does not come before the end.
    """
    if not 0 <= second_subject < end < rows.n_queries:
        raise InputError(
            f"expected 0 <= second mention < end < {rows.n_queries}, got {second_subject} and "
            f"{end}; give the slots in this prompt"
        )
    return at_cells(rows, query=np.array([end]), slot=np.array([second_subject]))


@dataclass(frozen=True, slots=True)
class DirectCopy:
    """Logit that each head adds to a name by attending to it; 0 for random weights.

    Attributes:
        by_name: In logits, before the division by the final norm.
        score: Mean over names.
        others: Mean logit added to the other names, which is high for a head that copies only "a
            name".
        norm: Whether the norms are folded in: the embedding is divided by its size, and the gains
            of input norm and final norm are applied.
        left_out: Parts of the model that the weights alone leave out.
    """

    by_name: Float64[np.ndarray, "layer head name"]
    score: Float64[np.ndarray, "layer head"]
    others: Float64[np.ndarray, "layer head"]
    norm: bool
    left_out: tuple[str, ...]


def direct_copy(weights: CircuitWeights, tokens: Sequence[int], *, norm: bool) -> DirectCopy:
    """OV copy score of every head: mean over names t of W_U[t] W_O W_V W_E[t].

    Below 0 the head lowers the name it attends to.

    Args:
        weights: Of the model.
        tokens: Ids of names, each one token.
        norm: Whether the norms around the head are folded in.

    Raises:
        InputError: Fewer than two tokens.
    """
    if len(tokens) < 2:
        raise InputError(f"expected at least 2 names, got {len(tokens)}; give more")
    output_rows = unembedded(weights, weights.unembedding[list(tokens)], norm=norm)
    shape = (len(weights.layers), weights.n_heads)
    by_name, others = np.empty((*shape, len(tokens))), np.empty(shape)
    rows = weights.embedding[list(tokens)]
    # both maps are those of the query head: `value_of` finds its KV head under grouped queries
    for layer, head in every_head(weights):
        entered = sized(weights.layers[layer].input_norm, rows) if norm else rows
        inner = read_map(weights, layer, head, norm=norm) @ entered.T
        logits = (output_rows @ write_map(weights, layer, head, norm=norm) @ inner).astype(
            np.float64
        )
        # [name said, name attended to]: the diagonal copies
        by_name[layer, head] = np.diagonal(logits)
        others[layer, head] = logits[~np.eye(len(tokens), dtype=bool)].mean()
    return DirectCopy(
        by_name,
        by_name.mean(-1),
        others,
        norm,
        weights.left_out() if norm else ("norms", *weights.left_out()),
    )
