"""Does a head attend to what followed the same token, on any text?

Source: Olsson et al. 2022 (prefix matching).
"""

import numpy as np

from analysis.roles.rows import HeadScore, SequenceRows, Square, mean_mass, require_length

THRESHOLD = 0.3


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
