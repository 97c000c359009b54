"""What heads do with parallel sets: attend to siblings, spread over sets, follow winners."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import xlogy

from tempo.errors import NoParallelSetsError
from tempo.trace.attention import Weights
from tempo.vocabulary import SINK_SLOT
from tempo_analysis.parallel.arms import Labels
from tempo_analysis.parallel.entropy import SMALLEST_REST
from tempo_analysis.parallel.observation import GROUP, Observation, ObservedTrace
from tempo_analysis.parallel.ratio import paired_ratio
from tempo_analysis.stats.intervals import MARGIN
from tempo_analysis.studies.heads.detectors.rows import HeadScore, drawn_source

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


SET_IGNORING_THRESHOLD = MARGIN
"""At least 10 % less, on the scale of logarithms."""

LARGEST = float(np.log(1e6))
"""A head that pays sets nothing has an infinite score, which no mean survives: it gets this."""

_OTHERS = ("recent_prompt", "other_prompt", "earlier_singletons")


def set_ignoring(
    observed: ObservedTrace, greedy: ObservedTrace, labels: Labels
) -> tuple[HeadScore, HeadScore]:
    """Minus the log-ratio of `parallel.ratio` without the sink, and its null, for one prompt.

    The ratio is the mean weight per slot of earlier sets over that per other earlier slot, both
    over the rows that see both kinds; 0 is chance. Sets are younger than the prompt, so a head
    that likes old slots ignores them too: the null is the greedy run of the same prompt, whose
    steps inherit the labels of the sets beside them (`parallel.arms`). Steps that both runs have
    count.

    Returns:
        The score and its null, each NaN without rows.
    """
    pair = paired_ratio(observed, greedy, labels)
    n_rows = _rows_with_both(observed.first(len(labels) - 1))
    score, null = (run.without_sink.by_head for run in (pair.common, pair.null))
    return _as_score(score, n_rows), _as_score(null, n_rows)


def _as_score(log_ratio: Float64[np.ndarray, "layer head"], n_rows: np.ndarray) -> HeadScore:
    chance = np.where(np.isnan(log_ratio), np.nan, 0.0)
    return HeadScore(np.clip(-log_ratio, -LARGEST, LARGEST), chance, n_rows)


def _rows_with_both(observed: ObservedTrace) -> Int64[np.ndarray, " layer"]:
    found = np.zeros(len(observed.layers), np.int64)
    for step in observed.steps:
        others = sum(step.count[..., GROUP[name]] for name in _OTHERS)
        found += ((step.count[..., GROUP["earlier_sets"]] > 0) & (others > 0)).sum(-1)
    return found
