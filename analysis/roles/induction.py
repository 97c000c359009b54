"""Does a head attend to the token that followed the same token before, in repeated halves?

Source: Olsson et al. 2022, and the induction detector of the Goodfire head suite.
"""

import numpy as np

from analysis.roles.halves import half_length
from analysis.roles.rows import HeadScore, SequenceRows, at_cells

THRESHOLD = 0.3


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
