"""Does a head attend to earlier copies of its own token?

Source: the duplicate-token detector of the Goodfire head suite.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from analysis.roles.halves import half_length
from analysis.roles.rows import HeadScore, SequenceRows, Square, at_cells, mean_mass, require_length

THRESHOLD = 0.3
N_FREQUENT = 50

Ids = Int64[np.ndarray, " _"]


def duplicate_token(rows: SequenceRows, *, without: Ids | None = None) -> HeadScore:
    """Mean, over queries whose token occurred before, of the mass on its earlier copies.

    Text repeats its commonest words and marks most, and a head that likes those looks like a
    duplicate head; so report also the version `without` them (`frequent_ids` and the delimiters),
    in which a query with such a token is left out. The first token, if it comes again, counts as a
    copy, sink or not. The null is the same on `rows.relabelled`: the attention keeps its places and
    loses the identities. `n_queries` says how few rows may be behind it.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="earlier copies")
    return mean_mass(rows, _copies(rows, without))


def duplicate_halves(repeated: SequenceRows, *, start: int = 0) -> HeadScore:
    """Mean over i = 0 .. n-1 of the weight from the second half's i-th token to the first's.

    The cleaner version, and the one that decides the role: random tokens have no favourites.

    Raises:
        InputError: The halves are not equal.
    """
    return _stripe(repeated, start, half_length(repeated, start=start, repeated=True))


def duplicate_halves_null(independent: SequenceRows, *, start: int = 0) -> HeadScore:
    """The same cells of [R, R'], where a head of fixed offset n keeps its score and no other does.

    Raises:
        InputError: The halves are equal.
    """
    return _stripe(independent, start, half_length(independent, start=start, repeated=False))


def frequent_ids(texts: Sequence[Int64[np.ndarray, " _"]], *, n: int = N_FREQUENT) -> Ids:
    """The most frequent ids of a battery of texts, ties by id."""
    ids, counts = np.unique(np.concatenate(list(texts)), return_counts=True)
    return ids[np.argsort(-counts, kind="stable")[:n]]


def _copies(rows: SequenceRows, without: Ids | None) -> Square:
    token = rows.token[: rows.n_queries]
    same = np.tril(token[:, None] == rows.token[None, :], k=-1)
    return same if without is None else same & ~np.isin(token, without)[:, None]


def _stripe(rows: SequenceRows, start: int, half: int) -> HeadScore:
    i = np.arange(half)
    return at_cells(rows, query=start + half + i, slot=start + i)
