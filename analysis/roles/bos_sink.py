"""Does a head park its attention on the first token?

Source: Gu et al. 2024 (arXiv 2410.10781) for the sink rate.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.roles.rows import HeadScore, SequenceRows, Stacked, mean_mass, require_length
from tempo_analysis.stats.averages import mean_over_prompts

THRESHOLD = 0.3
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


def sink_rate(alphas: Stacked, *, epsilon: float = THRESHOLD) -> SinkRate:
    """Sink rate from the alpha of every sequence and head; a NaN is left out."""
    above = np.where(np.isnan(alphas), np.nan, 100.0 * (alphas > epsilon))
    by_head = mean_over_prompts(above)
    overall = mean_over_prompts(above.reshape(-1))
    return SinkRate(float(overall), by_head, epsilon, len(alphas))


def _column(rows: SequenceRows, slot: int) -> np.ndarray:
    return np.broadcast_to(np.arange(len(rows.token)) == slot, rows.weights.shape[2:])
