"""The detectors of plain text on parallel traces, by logical position instead of slot.

"The token before" is then a set: the slots one position behind. Members of the query's own set are
never copies of it, nor what followed a copy. Positions are rounded to whole distances, so members a
fraction apart count as one place. On sets of width 1 each score is that of plain text, over the
generated queries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from tempo.policy.slots import SlotTable
from tempo.vocabulary import PROMPT_STEP
from tempo_analysis.parallel.observation import Observation, ObservedTrace
from tempo_analysis.studies.heads.detectors.rows import HeadScore
from tempo_analysis.studies.heads.detectors.sets import (
    averaged,
    earlier_slots,
    is_self,
    mass_and_chance,
)

Chosen = Bool[np.ndarray, "query slot"]


@dataclass(frozen=True, slots=True)
class PreviousPosition:
    """Attention to the set of tokens one position behind.

    Attributes:
        total: Mass on all of them.
        per_token: The same over their number: comparable between wide sets and single tokens.
    """

    total: HeadScore
    per_token: HeadScore


def previous_position(observed: ObservedTrace) -> PreviousPosition:
    """Mean attention to the earlier slots one position behind, over the rows that see one.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    totals, means = [], []
    for step in observed.steps:
        chosen = earlier_slots(step) & (positions_behind(step) == 1)
        mass, chance = mass_and_chance(step, step.rows(), chosen)
        n = np.maximum((step.visible & chosen).sum(-1), 1)[:, None]
        totals.append((mass, chance))
        means.append((mass / n, chance / n))
    return PreviousPosition(total=averaged(observed, totals), per_token=averaged(observed, means))


def logical_duplicates(observed: ObservedTrace) -> HeadScore:
    """Mean mass on copies of the query's token in earlier steps, over the rows that see one.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    return _mean(observed, _copies)


def logical_prefix_matching(observed: ObservedTrace) -> HeadScore:
    """Mean mass on what stands one position behind an earlier copy of the query's token.

    The query itself counts where its own token stood just before, its siblings never do.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    return _mean(observed, _followers)


def positions_behind(step: Observation) -> Int64[np.ndarray, "query slot"]:
    """How many whole positions each slot lies behind each query."""
    position = step.table.position.astype(np.float64)
    return np.rint(position[step.queries, None] - position[None, :]).astype(np.int64)


def _mean(observed: ObservedTrace, chosen: Callable[[Observation], Chosen]) -> HeadScore:
    pairs = [mass_and_chance(step, step.rows(), chosen(step)) for step in observed.steps]
    return averaged(observed, pairs)


def _copies(step: Observation) -> Chosen:
    token = step.table.token
    return earlier_slots(step) & (token[step.queries, None] == token[None, :])


def _followers(step: Observation) -> Chosen:
    after_copy = _copies(step).astype(np.int64) @ _is_next(step.table).astype(np.int64) > 0
    return after_copy & (earlier_slots(step) | is_self(step))


def _is_next(table: SlotTable) -> Bool[np.ndarray, "slot slot"]:
    """Whether the second slot stands one position after the first, and was written later."""
    position = table.position.astype(np.float64)
    one_after = np.rint(position[None, :] - position[:, None]) == 1
    later_step = table.step[None, :] > table.step[:, None]
    prompt = (table.step[None, :] == PROMPT_STEP) & (table.step[:, None] == PROMPT_STEP)
    return one_after & (later_step | prompt)
