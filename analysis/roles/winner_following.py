"""Does a head read of an earlier set the top-ranked member only?"""

from collections.abc import Sequence

import numpy as np

from analysis.roles.rows import HeadScore
from analysis.roles.trace_rows import SMALLEST_SET, Cells, averaged, earlier_sets, permuted
from tempo.trace.attention import Weights
from tempo_analysis.parallel.entropy import SMALLEST_REST
from tempo_analysis.parallel.observation import Observation, ObservedTrace


def winner_following(observed: ObservedTrace) -> HeadScore:
    """Share of the mass on an earlier set that its top-ranked member gets.

    Averaged over pairs of a row and a set of which it sees the top member and another; pairs with
    less than 1e-6 of the row on the set are left out. Chance is 1 / members seen. Where members
    stand at positions of their own (unique, offset), rank and distance go together, and so they do
    in an ordered arm: only shared positions without an order tell them apart.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    return averaged(observed, [_top_shares(step, step.rows()) for step in observed.steps])


def winner_null(observed: ObservedTrace, *, key: Sequence[int]) -> HeadScore:
    """The same with the ranks of every set permuted, for every row and head.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    rng = np.random.default_rng(list(key))
    pairs = [_top_shares(step, _permuted_ranks(step, rng)) for step in observed.steps]
    return averaged(observed, pairs)


def _top_shares(step: Observation, weights: Weights) -> tuple[Cells, Cells]:
    """For each row and set, laid side by side."""
    nothing = np.empty((*weights.shape[:2], 0))
    shares, evens = [nothing], [nothing]
    for members in earlier_sets(step):
        seen = step.visible[..., members]
        n = seen.sum(-1)[:, None]
        part = weights[..., members].astype(np.float64)
        mass = part.sum(-1)
        known = (n >= SMALLEST_SET) & seen[..., 0][:, None] & (mass >= SMALLEST_REST)
        shares.append(np.where(known, part[..., 0] / np.where(known, mass, 1), np.nan))
        evens.append(np.broadcast_to(1 / np.maximum(n, 1), mass.shape))
    return np.concatenate(shares, axis=-1), np.concatenate(evens, axis=-1)


def _permuted_ranks(step: Observation, rng: np.random.Generator) -> Weights:
    weights = step.rows().copy()
    slots = np.arange(len(step.table))
    for members in earlier_sets(step):
        inside = np.broadcast_to(np.isin(slots, members), (len(step.queries), len(slots)))
        weights[..., members] = permuted(step, inside, rng)[..., members]
    return weights
