"""Does a head park its attention on the first token, on punctuation, or on one slot?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.studies.heads.detectors.rows import (
    HeadScore,
    SequenceRows,
    Stacked,
    by_layer,
    mean_mass,
    require_length,
)

SINK_THRESHOLD = 0.3
"""Epsilon of the sink rate, and the cut for the role; the published A4 table cuts at 0.1."""


@dataclass(frozen=True, slots=True)
class SinkRate:
    """How often heads are sinks, in per cent, thresholded in each sequence and then averaged.

    Attributes:
        percent: Over sequences, layers and heads.
        by_head: Over sequences, for each head.
        epsilon: A head is a sink in a sequence where its alpha exceeds this.
        n: Sequences.
    """

    percent: float
    by_head: Float64[np.ndarray, "layer head"]
    epsilon: float
    n: int


def bos_sink(rows: SequenceRows) -> HeadScore:
    """Mean over queries q >= 1 of the weight on slot 0.

    Query 0 sees nothing else, and would add 1/T to every head. The null is the same score of rows
    with shuffled keys: the row keeps its sharpness, and slot 0 gets the mean of the row. Whether it
    is the place or the token that draws the attention needs another forward, without the token.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="the first token")
    counted = np.arange(rows.n_queries) >= 1
    return mean_mass(rows, _column(rows, 0) & counted[:, None], counted=counted)


def column_alpha(rows: SequenceRows, *, slot: int = 0) -> HeadScore:
    """Mean over queries q >= slot of the weight on it, the slot's own query included (Gu's alpha).

    Raises:
        InputError: The sequence does not reach the slot.
    """
    require_length(rows, at_least=slot + 1, question=f"slot {slot}")
    counted = np.arange(rows.n_queries) >= slot
    return mean_mass(rows, _column(rows, slot) & counted[:, None], counted=counted)


def sink_rate(alphas: Stacked, *, epsilon: float = SINK_THRESHOLD) -> SinkRate:
    """Sink rate from the alpha of every sequence and head; a NaN is left out."""
    above = np.where(np.isnan(alphas), np.nan, 100.0 * (alphas > epsilon))
    by_head = mean_over_prompts(above)
    overall = mean_over_prompts(above.reshape(-1))
    return SinkRate(float(overall), by_head, epsilon, len(alphas))


def _column(rows: SequenceRows, slot: int) -> np.ndarray:
    return np.broadcast_to(np.arange(len(rows.token)) == slot, rows.weights.shape[2:])


DELIMITER_THRESHOLD = 2.0
"""Cut on the multiple of chance, not on the mass."""

Ids = Int64[np.ndarray, " _"]


def delimiter(rows: SequenceRows, delimiters: Ids, *, with_self: bool = False) -> HeadScore:
    """Mean over queries of the mass on delimiters; every query counts, also before the first one.

    Chance is the mean over queries of the share of delimiters among the visible slots: even causal
    attention, not their frequency in the text. The score that decides the role is
    `delimiter(...).over_chance()`, without self-attention: a delimiter that attends to itself has
    found nothing. The multiple cannot exceed 1 / chance. The null is the same on `rows.relabelled`:
    as many delimiters at other places.

    Args:
        rows: The rows.
        delimiters: Ids of the delimiters that are one token each.
        with_self: Whether a delimiter's weight on itself counts, in the score and in chance.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="delimiters")
    is_delimiter = np.isin(rows.token, delimiters)
    if not is_delimiter.any():
        return _nothing(rows)
    chosen = np.broadcast_to(is_delimiter, rows.weights.shape[2:])
    chosen = np.tril(chosen, 0 if with_self else -1)
    return mean_mass(rows, chosen, counted=np.ones(rows.n_queries, bool))


def _nothing(rows: SequenceRows) -> HeadScore:
    """A text without delimiters says nothing about them."""
    empty = np.full(rows.weights.shape[:2], np.nan)
    return HeadScore(empty, empty, np.zeros(len(empty), np.int64))


def verticality(rows: SequenceRows) -> HeadScore:
    """Largest mean weight of a column over the mean of all columns."""
    sight = rows.sight()
    even = sight / np.maximum(sight.sum(-1, keepdims=True), 1)
    n_queries = np.full(len(sight), rows.n_queries)
    chance = by_layer(_largest_over_mean(even), rows.weights.shape[1])
    return HeadScore(_largest_over_mean(rows.weights), chance, n_queries)


def _largest_over_mean(
    weights: Float[np.ndarray, "*head query slot"],
) -> Float64[np.ndarray, "*head"]:
    columns = weights[..., : weights.shape[-2]].mean(-2, dtype=np.float64)
    mean = columns.mean(-1)
    return columns.max(-1) / np.where(mean > 0, mean, np.nan)
