"""Does a head attend to punctuation and line ends?

Source: the delimiter detector of the Goodfire head suite, with its null put right.
"""

import numpy as np
from jaxtyping import Int64

from analysis.roles.rows import HeadScore, SequenceRows, mean_mass, require_length

THRESHOLD = 2.0
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
