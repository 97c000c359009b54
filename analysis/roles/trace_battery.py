"""Every role that parallel sets can give, trace by trace beside its null, assigned at the end."""

from collections.abc import Callable, Mapping, Sequence

from analysis.roles import set_ignoring as ignoring
from analysis.roles.assignment import RoleScores, from_chance_up, role_scores
from analysis.roles.rows import HeadScore
from analysis.roles.set_broadcast import broadcast_null, set_broadcast
from analysis.roles.sibling_attending import sibling_attending, sibling_null
from analysis.roles.text_battery import Reading
from analysis.roles.trace_rows import CUT, require_data
from analysis.roles.winner_following import winner_following, winner_null
from tempo_analysis.parallel.arms import Labels
from tempo_analysis.parallel.observation import ObservedTrace
from tempo_analysis.stats.intervals import SEED

Null = Callable[..., HeadScore]

UNITS: Mapping[str, str] = {
    "sibling_attending": "share of the row",
    "set_broadcast": "share of the row, times evenness",
    "winner_following": "share of the mass on the set",
    "set_ignoring": "log-ratio",
}

_ROLES: Mapping[str, tuple[Callable[[ObservedTrace], HeadScore], Null]] = {
    "sibling_attending": (sibling_attending, sibling_null),
    "set_broadcast": (set_broadcast, broadcast_null),
    "winner_following": (winner_following, winner_null),
}


def read_trace(
    observed: ObservedTrace,
    *,
    key: Sequence[int],
    greedy: tuple[ObservedTrace, Labels] | None = None,
) -> dict[str, Reading]:
    """All scores of one prompt.

    Args:
        observed: The trace of a parallel arm.
        key: What its nulls are keyed by: the seed and the number of the prompt.
        greedy: The greedy run of the same prompt and the labels its steps inherit; without it
            `set_ignoring` is not asked.

    Raises:
        LevelError: A trace was reduced to group masses.
    """
    found = {
        role: Reading(ask(observed), null(observed, key=key))
        for role, (ask, null) in _ROLES.items()
    }
    if greedy is not None:
        found["set_ignoring"] = Reading(*ignoring.set_ignoring(observed, *greedy))
    return found


def trace_role(
    role: str, readings: Sequence[Mapping[str, Reading]], *, seed: int = SEED
) -> RoleScores:
    """One role over prompts; a role without data is refused by name, so ask one at a time.

    Raises:
        NoParallelSetsError: No row of any trace may see what the role attends to.
        TooFewPromptsError: Fewer than 8 prompts.
    """
    scores = [each[role].score for each in readings]
    require_data(role, scores)
    cut = ignoring.THRESHOLD if role == "set_ignoring" else from_chance_up(CUT, scores)
    nulls = [each[role].null for each in readings]
    return role_scores(role, scores, nulls, threshold=cut, unit=UNITS[role], seed=seed)
