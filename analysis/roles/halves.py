"""A sequence made of two halves of one length, after as many leading tokens as the model wants."""

import numpy as np

from analysis.roles.rows import SequenceRows, require_length
from tempo.errors import InputError


def half_length(rows: SequenceRows, *, start: int, repeated: bool) -> int:
    """Length of a half, once the halves are what they should be.

    Args:
        rows: The sequence.
        start: Tokens before the first half, such as a beginning-of-sequence token.
        repeated: Whether the second half must repeat the first, or must not (the control).

    Raises:
        InputError: Too short, of odd length, or with halves of the other kind; or a token stands
            twice in the first half, so that "the token after it" is not one slot.
    """
    require_length(rows, at_least=start + 4, question="two halves")
    body = rows.token[start : rows.n_queries]
    half, odd = divmod(len(body), 2)
    if odd:
        raise InputError(
            f"expected two halves of equal length after {start} leading tokens, got {len(body)} "
            "tokens; give an even number"
        )
    if len(np.unique(body[:half])) < half:
        raise InputError(
            "expected a first half without repeated tokens, got some; draw it without replacement"
        )
    if bool((body[:half] == body[half:]).all()) != repeated:
        wanted, found = ("equal", "unequal") if repeated else ("independent", "equal")
        raise InputError(
            f"expected {wanted} halves, got {found} ones; give the "
            f"{'repeated' if repeated else 'control'} sequences"
        )
    return half
