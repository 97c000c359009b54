"""Does a head attend from an ordinal to the one before it, as in "1, 2, 3"?

Source: the successor detector of the Goodfire head suite, with two more controls. Gould
et al. 2023 define successor heads by their weights instead: that is another score.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from analysis.roles.rows import HeadScore, SequenceRows, at_cells
from tempo.errors import InputError

THRESHOLD = 0.05
"""Cut on the signal, ordinal less words."""


@dataclass(frozen=True, slots=True)
class SuccessorRun:
    """One run under four conditions of one length; differences of scores have chance 0.

    Attributes:
        ordinal: Elements in order.
        words: As many unrelated words.
        shuffled: The same elements in another order.
        descending: The same elements backwards.
    """

    ordinal: HeadScore
    words: HeadScore
    shuffled: HeadScore
    descending: HeadScore

    def signal(self) -> HeadScore:
        """Ordinal less words: what the role's threshold is for."""
        return self.ordinal.less(self.words)

    def null(self) -> HeadScore:
        """Shuffled less words: the null of the signal.

        Words alone cannot be the null. A head that attends to any element of the same class beats
        them as well, and keeps its score when the elements are shuffled.
        """
        return self.shuffled.less(self.words)

    def direction(self) -> HeadScore:
        """Ordinal less descending: positive where the head cares which way the run goes."""
        return self.ordinal.less(self.descending)


def successor_attention(rows: SequenceRows, elements: Int64[np.ndarray, " element"]) -> HeadScore:
    """Mean over consecutive elements of the weight from one to the one before.

    One number for each run, so long runs do not weigh more than short ones when runs are averaged.
    Runs share pairs of elements, so they are less than independent: draw them from several
    families. Among 12 elements an untrained head with sharp attention can pass by its taste in a
    few pairs.

    Args:
        rows: The rows of one run.
        elements: Slots of the elements, ascending; the separators between them are skipped.

    Raises:
        InputError: Fewer than two elements, or slots that do not ascend within the sequence.
    """
    in_range = len(elements) >= 2 and elements[0] >= 0 and elements[-1] < rows.n_queries
    if not in_range or (np.diff(elements) <= 0).any():
        raise InputError(
            f"expected at least two ascending slots below {rows.n_queries}, got "
            f"{elements.tolist()}; give the slots of the elements"
        )
    return at_cells(rows, query=elements[1:], slot=elements[:-1])


def successor_run(
    ordinal: HeadScore, *, words: HeadScore, shuffled: HeadScore, descending: HeadScore
) -> SuccessorRun:
    """Put the four conditions of one run together.

    Raises:
        InputError: They differ in length.
    """
    run = SuccessorRun(ordinal, words, shuffled, descending)
    for each in (words, shuffled, descending):
        same_pairs = np.array_equal(each.n_queries, ordinal.n_queries)
        if not (same_pairs and np.allclose(each.chance, ordinal.chance, equal_nan=True)):
            raise InputError(
                "expected four conditions with elements at the same slots, got other ones; draw "
                "controls of the length of the run"
            )
    return run
