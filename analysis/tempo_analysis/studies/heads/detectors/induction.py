"""Heads that look back to a repetition: induction, duplicate tokens, prefix matching."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from tempo_analysis.studies.heads.detectors.rows import (
    HeadScore,
    SequenceRows,
    Square,
    at_cells,
    half_length,
    mean_mass,
    require_length,
)

INDUCTION_THRESHOLD = 0.3


def induction(repeated: SequenceRows, *, start: int = 0) -> HeadScore:
    """Mean over i = 0 .. n-2 of the weight from the i-th token of the second half to i + 1.

    The sequence is [R, R] with |R| = n tokens drawn without replacement, after `start` leading
    tokens. The last token of the second half is left out: what followed it is itself the repeat.
    A target out of a layer's window is left out; NaN where all are.

    The null is `induction_null` on [R, R']: the same cells, so a head of fixed offset n - 1, which
    fakes induction at one length, keeps its score there and loses the role.

    Raises:
        InputError: The halves are not equal.
    """
    return _stripe(repeated, start, half_length(repeated, start=start, repeated=True))


def induction_null(independent: SequenceRows, *, start: int = 0) -> HeadScore:
    """The same cells of a sequence [R, R'], in which there is nothing to copy.

    Raises:
        InputError: The halves are equal.
    """
    return _stripe(independent, start, half_length(independent, start=start, repeated=False))


def _stripe(rows: SequenceRows, start: int, half: int) -> HeadScore:
    i = np.arange(half - 1)
    return at_cells(rows, query=start + half + i, slot=start + i + 1)


DUPLICATE_THRESHOLD = 0.3
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
    return _copy_stripe(repeated, start, half_length(repeated, start=start, repeated=True))


def duplicate_halves_null(independent: SequenceRows, *, start: int = 0) -> HeadScore:
    """The same cells of [R, R'], where a head of fixed offset n keeps its score and no other does.

    Raises:
        InputError: The halves are equal.
    """
    return _copy_stripe(independent, start, half_length(independent, start=start, repeated=False))


def frequent_ids(texts: Sequence[Int64[np.ndarray, " _"]], *, n: int = N_FREQUENT) -> Ids:
    """The most frequent ids of a battery of texts, ties by id."""
    ids, counts = np.unique(np.concatenate(list(texts)), return_counts=True)
    return ids[np.argsort(-counts, kind="stable")[:n]]


def _copies(rows: SequenceRows, without: Ids | None) -> Square:
    token = rows.token[: rows.n_queries]
    same = np.tril(token[:, None] == rows.token[None, :], k=-1)
    return same if without is None else same & ~np.isin(token, without)[:, None]


def _copy_stripe(rows: SequenceRows, start: int, half: int) -> HeadScore:
    i = np.arange(half)
    return at_cells(rows, query=start + half + i, slot=start + i)


PREFIX_MATCHING_THRESHOLD = 0.3


def prefix_matching(rows: SequenceRows) -> HeadScore:
    """Mean, over queries whose token occurred before, of the mass on the tokens that followed.

    All earlier occurrences count together. On [R, R] of distinct tokens it is `induction` and one
    query more, the last: what followed its token is the first token of the second half. The null is
    the same on `rows.relabelled`: the attention stays, the identities go.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="prefix matching")
    return mean_mass(rows, _followers(rows))


def _followers(rows: SequenceRows) -> Square:
    query, slot = np.ogrid[: rows.n_queries, : len(rows.token)]
    before = np.concatenate([[-1], rows.token[:-1]])  # no id is -1: nothing stands before slot 0
    same = before[None, :] == rows.token[: rows.n_queries, None]
    return same & (slot <= query)
