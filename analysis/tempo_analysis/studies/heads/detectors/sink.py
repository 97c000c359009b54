"""Attention to the first token, to delimiters, or to one column."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.studies.heads.detectors.induction import Ids
from tempo_analysis.studies.heads.detectors.rows import (
    HeadScore,
    SequenceRows,
    Stacked,
    by_layer,
    mean_mass,
    require_length,
)

SINK_THRESHOLD = 0.3
"""Epsilon of the sink rate of Gu et al. 2024 (arXiv 2410.10781), and the cut of the role; the head
suite of Goodfire's SPD (pull request 403) cuts at 0.1."""


@dataclass(frozen=True, slots=True)
class SinkRate:
    """Share of (sequence, head) pairs that are sinks: each is thresholded first, then averaged.

    Attributes:
        percent: Over sequences, layers and heads, in per cent.
        by_head: Over sequences, for each head, in per cent.
        epsilon: A head is a sink in a sequence if its alpha exceeds this.
        n: Number of sequences.
    """

    percent: float
    by_head: Float64[np.ndarray, "layer head"]
    epsilon: float
    n: int


def bos_sink(rows: SequenceRows) -> HeadScore:
    """Sink score: mean over queries q >= 1 of the weight on slot 0; in [0, 1].

    Query 0 sees slot 0 only, which would add 1 / T to the score of every head. Chance is the mean
    of 1 / visible slots. The null is the same score of rows with shuffled keys: a row keeps its
    sharpness, and slot 0 gets the mean of the row. Whether the position or the token is the cause
    cannot be seen here; that takes a forward pass without the token.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="the first token")
    counted = np.arange(rows.n_queries) >= 1
    # queries whose window no longer reaches slot 0 count with 0: `counted` is given, not derived
    return mean_mass(rows, _column(rows, 0) & counted[:, None], counted=counted)


def column_alpha(rows: SequenceRows, *, slot: int = 0) -> HeadScore:
    """Alpha of Gu et al. 2024: mean over queries q >= slot of the weight on the slot; in [0, 1].

    The query of the slot itself counts, so alpha of slot 0 includes the 1 of query 0.

    Raises:
        InputError: The sequence does not reach the slot.
    """
    require_length(rows, at_least=slot + 1, question=f"slot {slot}")
    counted = np.arange(rows.n_queries) >= slot
    return mean_mass(rows, _column(rows, slot) & counted[:, None], counted=counted)


def sink_rate(alphas: Stacked, *, epsilon: float = SINK_THRESHOLD) -> SinkRate:
    """Sink rate from the alpha of every sequence and head; NaN is left out."""
    # a comparison with NaN would be False and count as "no sink"
    above = np.where(np.isnan(alphas), np.nan, 100.0 * (alphas > epsilon))
    by_head = mean_over_prompts(above)
    overall = mean_over_prompts(above.reshape(-1))
    return SinkRate(float(overall), by_head, epsilon, len(alphas))


def _column(rows: SequenceRows, slot: int) -> np.ndarray:
    return np.broadcast_to(np.arange(len(rows.token)) == slot, rows.weights.shape[2:])


DELIMITER_THRESHOLD = 2.0
"""Cut on the multiple of chance, not on the weight; that of the SPD suite."""


def delimiter(rows: SequenceRows, delimiters: Ids, *, with_self: bool = False) -> HeadScore:
    """Delimiter score: mean over all queries of the total weight on delimiters; in [0, 1].

    Queries before the first delimiter count with 0. Chance is the mean over queries of delimiters /
    visible slots, that is uniform attention, not the frequency of delimiters in the text. The role
    is decided by `delimiter(...).over_chance()` without self-attention, because a delimiter that
    attends to itself has found nothing. That multiple is at most 1 / chance. The null is the same
    on `rows.relabelled`: as many delimiters at random slots.

    Args:
        rows: The attention rows of one text.
        delimiters: Ids of the delimiters that are one token each.
        with_self: Whether the weight of a delimiter on itself counts, in the score and in chance.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="delimiters")
    is_delimiter = np.isin(rows.token, delimiters)
    if not is_delimiter.any():
        return _nothing(rows)
    chosen = np.broadcast_to(is_delimiter, rows.weights.shape[2:])
    # future slots have weight 0 and are outside the mask: tril matters for the diagonal only
    chosen = np.tril(chosen, 0 if with_self else -1)
    return mean_mass(rows, chosen, counted=np.ones(rows.n_queries, bool))


def _nothing(rows: SequenceRows) -> HeadScore:
    """The score of a text without delimiters: NaN."""
    empty = np.full(rows.weights.shape[:2], np.nan)
    return HeadScore(empty, empty, np.zeros(len(empty), np.int64))


def verticality(rows: SequenceRows) -> HeadScore:
    """Largest mean weight of a column, divided by the mean over columns; at least 1.

    It is T for a head that attends to one slot only, and sum of 1 / i for i = 1 .. T (chance) under
    uniform causal attention: the first columns are seen by more queries.
    """
    visible = rows.visibility()
    even = visible / np.maximum(visible.sum(-1, keepdims=True), 1)
    n_queries = np.full(len(visible), rows.n_queries)
    # uniform attention differs between layers by their windows only, not between heads
    chance = by_layer(_largest_over_mean(even), rows.weights.shape[1])
    return HeadScore(_largest_over_mean(rows.weights), chance, n_queries)


def _largest_over_mean(
    weights: Float[np.ndarray, "*head query slot"],
) -> Float64[np.ndarray, "*head"]:
    # slots after the last query belong to no row
    columns = weights[..., : weights.shape[-2]].mean(-2, dtype=np.float64)
    mean = columns.mean(-1)
    return columns.max(-1) / np.where(mean > 0, mean, np.nan)
