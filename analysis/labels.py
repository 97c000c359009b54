"""Which slots of a greedy run stand for the parallel sets of the run beside it?"""

import numpy as np
from jaxtyping import Bool

from tempo.errors import InputError
from tempo.policy.slots import SlotTable
from tempo.vocabulary import PROMPT_STEP

Labels = Bool[np.ndarray, " step"]
"""For each step from 0, whether its slot is labelled as a parallel set."""


def inherited_labels(arm: SlotTable, greedy: SlotTable) -> Labels:
    """For each step that both runs have (from 0): was the arm's set of width >= 2?

    Raises:
        InputError: The greedy run holds a set of width >= 2, so it is no null.
    """
    if (greedy.width >= 2).any():
        raise InputError("expected the null run to have one slot in each step, got wider sets")
    n_steps = min(arm.n_steps, greedy.n_steps)
    labels = np.bincount(arm.step, minlength=n_steps + 1)[: n_steps + 1] >= 2
    labels[PROMPT_STEP] = False
    return labels
