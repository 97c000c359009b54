"""Does a member of a set attend to its siblings, where it may see them?"""

from collections.abc import Sequence

import numpy as np

from analysis.roles.rows import HeadScore
from analysis.roles.trace_rows import averaged, is_self, mass_and_chance, permuted, siblings_of
from tempo_analysis.parallel.observation import ObservedTrace


def sibling_attending(observed: ObservedTrace) -> HeadScore:
    """Mean mass on the siblings that a row may see, over the rows that see one.

    NaN where none does, as in an isolated arm. Siblings are as near as a slot can be, so a head
    that likes near slots scores too: read `logical_profile` beside it.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    pairs = [mass_and_chance(step, step.rows(), siblings_of(step)) for step in observed.steps]
    return averaged(observed, pairs)


def sibling_null(observed: ObservedTrace, *, key: Sequence[int]) -> HeadScore:
    """The same with the label "sibling" on as many visible slots at random.

    They are drawn among all slots but the query itself and slot 0, separately for every head.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    rng = np.random.default_rng(list(key))
    pairs = [
        mass_and_chance(step, permuted(step, ~is_self(step), rng), siblings_of(step))
        for step in observed.steps
    ]
    return averaged(observed, pairs)
