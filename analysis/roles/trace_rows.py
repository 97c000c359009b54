"""Scores of one parallel trace: rows of every step after the prompt, averaged for each head."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from analysis.roles.rows import HeadScore
from analysis.roles.shuffling import drawn_source
from tempo.errors import NoParallelSetsError
from tempo.trace.attention import Weights
from tempo.vocabulary import SINK_SLOT
from tempo_analysis.parallel.observation import Observation, ObservedTrace

CUT = 0.3
"""As for the roles of plain text, but counted from chance to 1 (`assignment.from_chance_up`): half
of a row's slots may belong to sets, and then half of an even row does, too."""

SMALLEST_SET = 2

Cells = Float64[np.ndarray, "layer head _"]
Seen = Bool[np.ndarray, "layer query slot"]


def averaged(observed: ObservedTrace, pairs: Sequence[tuple[Cells, Cells]]) -> HeadScore:
    """Mean over all rows that have a value, and of chance over the same rows; NaN without any.

    Args:
        observed: The trace.
        pairs: For each step, values and chance values of its rows, NaN for a row without a value.
    """
    score = observed.average([values for values, _ in pairs])
    chance = observed.average(
        [np.where(np.isnan(values), np.nan, chances) for values, chances in pairs]
    )
    return HeadScore(score.by_head(), chance.by_head(), score.count.sum(0).min(-1))


def require_data(role: str, scores: Sequence[HeadScore]) -> None:
    """Refuse to judge a role for which no trace holds a row.

    Raises:
        NoParallelSetsError: No row of any trace may see what the role attends to.
    """
    if all(np.isnan(each.score).all() for each in scores):
        raise NoParallelSetsError(
            f"expected rows that may see what {role} attends to, got none; decode with sets of "
            "width 2 or more, and visible siblings where the role needs them"
        )


def mass_and_chance(
    step: Observation, weights: Weights, chosen: Bool[np.ndarray, "query slot"]
) -> tuple[Cells, Cells]:
    """Mass of each row on the chosen slots it may see, NaN where it sees none; and its chance."""
    targets = step.visible & chosen
    seen = np.expand_dims(targets.any(-1), 1)
    mass = np.einsum("lhqs,lqs->lhq", weights, targets, dtype=np.float64)
    share = targets.sum(-1) / np.maximum(step.visible.sum(-1), 1)
    return np.where(seen, mass, np.nan), np.broadcast_to(share[:, None], mass.shape)


def siblings_of(step: Observation) -> Bool[np.ndarray, "query slot"]:
    """The other members of each query's own set."""
    own_step = step.table.step == step.step
    return own_step & ~is_self(step)


def earlier_slots(step: Observation) -> Bool[np.ndarray, "query slot"]:
    """Slots written by the steps before."""
    return np.broadcast_to(step.table.step < step.step, is_self(step).shape)


def is_self(step: Observation) -> Bool[np.ndarray, "query slot"]:
    """The query's own slot."""
    return step.queries[:, None] == np.arange(len(step.table))


def earlier_sets(step: Observation) -> list[np.ndarray]:
    """Slots of each earlier set of width >= 2, in rank order."""
    table = step.table
    steps = np.unique(table.step[(table.width >= SMALLEST_SET) & (table.step < step.step)])
    return [table.members(int(each)) for each in steps]


def permuted(
    step: Observation, movable: Bool[np.ndarray, "query slot"], rng: np.random.Generator
) -> Weights:
    """The rows with the weights of the movable slots they see in random order, for every head.

    Slot 0 never moves: wherever its weight went, it would drown everything else there.
    """
    weights = step.rows()
    seen = step.visible & movable
    seen[..., SINK_SLOT] = False
    source = drawn_source(seen, weights.shape[1], rng)
    return np.take_along_axis(weights, source, axis=-1)
