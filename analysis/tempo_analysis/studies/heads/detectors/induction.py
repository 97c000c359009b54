"""Attention to earlier copies of the current token, or to what followed them."""

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

# The cuts of 0.3 in this file are those of the head suite of Goodfire's SPD (pull request 403),
# which flags previous-token, induction and duplicate-token heads above 0.3 of the row.
INDUCTION_THRESHOLD = 0.3


def induction(repeated: SequenceRows, *, start: int = 0) -> HeadScore:
    """Induction score: mean weight on the token that followed the first copy of the current token.

    On `start` leading tokens and then [R, R], with R of n tokens drawn without replacement, it is
    the mean over i = 0 .. n-2 of the weight from query start + n + i to slot start + i + 1; in
    [0, 1]. The last query is left out: its first copy was followed by the second half itself.
    Targets outside the window of a layer are left out; NaN if all are. Chance: the mean over these
    queries of 1 / visible slots.

    The null is `induction_null`, the same cells on [R, R'] of two independent halves. A head that
    always attends n - 1 slots back scores high here by its offset alone; it keeps its score on
    [R, R'] and is not assigned the role.

    Source: Olsson et al. 2022 (arXiv 2209.11895), on one repetition.

    Raises:
        InputError: The halves are not equal.
    """
    return _stripe(repeated, start, half_length(repeated, start=start, repeated=True))


def induction_null(independent: SequenceRows, *, start: int = 0) -> HeadScore:
    """The cells of `induction` on [R, R'], where no token repeats in the second half.

    Raises:
        InputError: The halves are equal.
    """
    return _stripe(independent, start, half_length(independent, start=start, repeated=False))


def _stripe(rows: SequenceRows, start: int, half: int) -> HeadScore:
    # the diagonal at offset half - 1, in the rows of the second half but the last
    i = np.arange(half - 1)
    return at_cells(rows, query=start + half + i, slot=start + i + 1)


DUPLICATE_THRESHOLD = 0.3
N_FREQUENT = 50
"""Ids that `duplicate_rare` leaves out as too frequent: function words and marks are about 50."""

Ids = Int64[np.ndarray, " _"]


def duplicate_token(rows: SequenceRows, *, without: Ids | None = None) -> HeadScore:
    """Duplicate-token score on text: mean weight on all earlier copies of the current token.

    The mean is over the queries whose token occurred before; in [0, 1]. Chance: the mean over these
    queries of copies / visible slots. The null is the same score on `rows.relabelled`, which keeps
    the weights and permutes the ids.

    Frequent words and marks make up most repetitions in text, so a head that prefers them scores
    like a duplicate-token head. Report the version `without` them as well. A first token that
    occurs again counts as a copy, even if it is an attention sink. `n_queries` may be small.

    Args:
        rows: The attention rows of one text.
        without: Ids whose queries are left out: `frequent_ids` and the delimiters.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="earlier copies")
    return mean_mass(rows, _copies(rows, without))


def duplicate_halves(repeated: SequenceRows, *, start: int = 0) -> HeadScore:
    """Duplicate-token score on [R, R]: mean weight from each token of the second half to its copy.

    The mean is over i = 0 .. n-1 of the weight from query start + n + i to slot start + i; in
    [0, 1]. Chance: the mean of 1 / visible slots. This version decides the role `duplicate_token`,
    since no random token is more frequent than another. The null is `duplicate_halves_null`.

    Raises:
        InputError: The halves are not equal.
    """
    return _copy_stripe(repeated, start, half_length(repeated, start=start, repeated=True))


def duplicate_halves_null(independent: SequenceRows, *, start: int = 0) -> HeadScore:
    """The cells of `duplicate_halves` on [R, R']: only a head of fixed offset n keeps its score.

    Raises:
        InputError: The halves are equal.
    """
    return _copy_stripe(independent, start, half_length(independent, start=start, repeated=False))


def frequent_ids(texts: Sequence[Int64[np.ndarray, " _"]], *, n: int = N_FREQUENT) -> Ids:
    """The `n` most frequent ids of the texts; of equally frequent ids the lower ones."""
    ids, counts = np.unique(np.concatenate(list(texts)), return_counts=True)
    # ids are ascending, so a stable sort breaks ties by id
    return ids[np.argsort(-counts, kind="stable")[:n]]


def _copies(rows: SequenceRows, without: Ids | None) -> Square:
    token = rows.token[: rows.n_queries]
    same = np.tril(token[:, None] == rows.token[None, :], k=-1)  # k=-1: the token itself is no copy
    return same if without is None else same & ~np.isin(token, without)[:, None]


def _copy_stripe(rows: SequenceRows, start: int, half: int) -> HeadScore:
    i = np.arange(half)  # the diagonal at offset half
    return at_cells(rows, query=start + half + i, slot=start + i)


PREFIX_MATCHING_THRESHOLD = 0.3


def prefix_matching(rows: SequenceRows) -> HeadScore:
    """Prefix-matching score: mean weight on all tokens that followed earlier copies of this one.

    The mean is over the queries whose token occurred before; in [0, 1]. Chance: the mean of targets
    / visible slots. On [R, R] of distinct tokens the cells are those of `induction` and one more:
    the last query, whose target is the first token of the second half. The null is the same score
    on `rows.relabelled`, which keeps the weights and permutes the ids.

    Source: Olsson et al. 2022 (arXiv 2209.11895), on natural text instead of repetitions.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="prefix matching")
    return mean_mass(rows, _followers(rows))


def _followers(rows: SequenceRows) -> Square:
    query, slot = np.ogrid[: rows.n_queries, : len(rows.token)]
    # token before each slot; no id is -1, so slot 0 follows nothing
    before = np.concatenate([[-1], rows.token[:-1]])
    same = before[None, :] == rows.token[: rows.n_queries, None]
    # slot == query counts: in "a a" the second token itself followed the first
    return same & (slot <= query)
