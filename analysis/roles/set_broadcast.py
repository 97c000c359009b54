"""Does a head read earlier sets as wholes, evenly over their members?"""

from collections.abc import Sequence

import numpy as np
from scipy.special import xlogy

from analysis.roles.rows import HeadScore
from analysis.roles.trace_rows import (
    SMALLEST_SET,
    Cells,
    averaged,
    earlier_sets,
    earlier_slots,
    permuted,
)
from tempo.trace.attention import Weights
from tempo_analysis.parallel.observation import Observation, ObservedTrace


def set_broadcast(observed: ObservedTrace) -> HeadScore:
    """Mean over rows of the sum over earlier sets of m E, in [0, 1].

    m is the mass on the members of the set that the row sees (two at least), E = H(a / m) / ln n
    the normalised entropy of its weights within the set: 1 where they are equal, 0 where one member
    takes all. Chance is the share of such members among the visible slots, since even rows have E =
    1. A row that sees no such set is left out. A head that likes recent slots scores too, because
    sets are recent: read `logical_profile` beside it.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    return averaged(observed, [_spread(step, step.rows()) for step in observed.steps])


def broadcast_null(observed: ObservedTrace, *, key: Sequence[int]) -> HeadScore:
    """The same with the slots of all earlier steps, but slot 0, relabelled at random in each row.

    Pseudo-sets of the same sizes hold whatever the head pays to earlier slots; a head that is even
    over everything keeps its score.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    rng = np.random.default_rng(list(key))
    pairs = [_spread(step, permuted(step, earlier_slots(step), rng)) for step in observed.steps]
    return averaged(observed, pairs)


def _spread(step: Observation, weights: Weights) -> tuple[Cells, Cells]:
    value = np.zeros(weights.shape[:-1])
    even = np.zeros(weights.shape[:-1])
    known = np.zeros(weights.shape[:-1], bool)
    n_slots = np.maximum(step.visible.sum(-1), 1)[:, None]
    for members in earlier_sets(step):
        part = weights[..., members].astype(np.float64)
        n = step.visible[..., members].sum(-1)[:, None]
        whole = n >= SMALLEST_SET
        mass = part.sum(-1)
        entropy_mass = xlogy(mass, mass) - xlogy(part, part).sum(-1)
        value += np.where(whole, entropy_mass / np.log(np.maximum(n, SMALLEST_SET)), 0.0)
        even += np.where(whole, n / n_slots, 0.0)
        known |= whole
    return np.where(known, value, np.nan), even
