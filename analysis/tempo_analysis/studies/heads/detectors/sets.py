"""Attention to parallel sets: to siblings, over earlier sets, to their top-ranked member."""

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
"""As for the roles of plain text, but measured from chance to 1 (`from_chance_up`): if half
of the visible slots belong to sets, uniform attention already gives them half of the row."""

SMALLEST_SET = 2
"""A step with one member is no parallel set."""

StepValues = Float64[np.ndarray, "layer head _"]


def averaged(observed: ObservedTrace, pairs: Sequence[tuple[StepValues, StepValues]]) -> HeadScore:
    """Mean over all rows with a value, and of chance over the same rows; NaN if there are none.

    Args:
        observed: The trace.
        pairs: For each step, values and chance values of its rows; NaN for a row without a value.
    """
    # rows count equally, whatever step they belong to
    score = observed.average([values for values, _ in pairs])
    chance = observed.average(
        [np.where(np.isnan(values), np.nan, chances) for values, chances in pairs]
    )
    return HeadScore(score.by_head(), chance.by_head(), score.count.sum(0).min(-1))


def require_data(role: str, scores: Sequence[HeadScore]) -> None:
    """Check that at least one trace has a row for a role.

    Raises:
        NoParallelSetsError: No row of any trace can see a target of the role.
    """
    if all(np.isnan(each.score).all() for each in scores):
        raise NoParallelSetsError(
            f"expected rows that may see what {role} attends to, got none; decode with sets of "
            "width 2 or more, and visible siblings where the role needs them"
        )


def mass_and_chance(
    step: Observation, weights: Weights, chosen: Bool[np.ndarray, "query slot"]
) -> tuple[StepValues, StepValues]:
    """Weight of each row on the chosen slots it can see, and its chance value.

    The weight is NaN for a row that sees none of them. Chance is their share of the visible slots.
    """
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
    """Slots written by earlier steps, the prompt included."""
    return np.broadcast_to(step.table.step < step.step, is_self(step).shape)


def is_self(step: Observation) -> Bool[np.ndarray, "query slot"]:
    """The slot of the query itself."""
    return step.queries[:, None] == np.arange(len(step.table))


def earlier_sets(step: Observation) -> list[np.ndarray]:
    """Slots of each earlier set of at least 2 members, in rank order."""
    table = step.table
    steps = np.unique(table.step[(table.width >= SMALLEST_SET) & (table.step < step.step)])
    return [table.members(int(each)) for each in steps]


def permuted(
    step: Observation, movable: Bool[np.ndarray, "query slot"], rng: np.random.Generator
) -> Weights:
    """Rows whose visible movable slots have their weights in random order, drawn for every head.

    Slot 0 never moves: the weight of an attention sink would dominate wherever it went.
    """
    weights = step.rows()
    seen = step.visible & movable
    seen[..., SINK_SLOT] = False
    # the weights move, the mask does not: labels of slots are random with respect to weights
    source = drawn_source(seen, weights.shape[1], rng)
    return np.take_along_axis(weights, source, axis=-1)


def sibling_attending(observed: ObservedTrace) -> HeadScore:
    """Mean weight on visible siblings, over the rows that can see one; in [0, 1].

    Chance is the mean of siblings / visible slots. NaN where no row can see a sibling, as in an
    isolated arm. Siblings are the nearest slots, so a head that prefers recent slots scores high as
    well: read `parallel.distance` beside it. The null is `sibling_null`.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    pairs = [mass_and_chance(step, step.rows(), siblings_of(step)) for step in observed.steps]
    return averaged(observed, pairs)


def sibling_null(observed: ObservedTrace, *, key: Sequence[int]) -> HeadScore:
    """`sibling_attending` with as many random visible slots in place of the siblings.

    They are drawn for every head among all slots but that of the query and slot 0.

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
    """Mean over rows of the sum over earlier sets of m E; in [0, 1].

    m is the weight on the members of the set that the row sees, at least two; E = H(a / m) / ln n
    is the normalised entropy of the weights a of these n members: 1 if they are equal, 0 if one
    member has all. Chance is the share of such members among the visible slots, because E = 1 under
    uniform attention. Rows that see no such set are left out. Sets are recent, so a head that
    prefers recent slots scores high as well: read `parallel.distance` beside it. The null is
    `broadcast_null`.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    return averaged(observed, [_spread(step, step.rows()) for step in observed.steps])


def broadcast_null(observed: ObservedTrace, *, key: Sequence[int]) -> HeadScore:
    """`set_broadcast` with the weights of all earlier slots but slot 0 in random order in each row.

    The sets become random slots of the same number. A head with uniform attention keeps its score.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    rng = np.random.default_rng(list(key))
    pairs = [_spread(step, permuted(step, earlier_slots(step), rng)) for step in observed.steps]
    return averaged(observed, pairs)


def _spread(step: Observation, weights: Weights) -> tuple[StepValues, StepValues]:
    """Sum of m E over earlier sets for each row, and its chance value."""
    value = np.zeros(weights.shape[:-1])
    even = np.zeros(weights.shape[:-1])
    known = np.zeros(weights.shape[:-1], bool)
    n_slots = np.maximum(step.visible.sum(-1), 1)[:, None]
    for members in earlier_sets(step):
        part = weights[..., members].astype(np.float64)
        n = step.visible[..., members].sum(-1)[:, None]
        counted = n >= SMALLEST_SET  # windows may hide a part of a set; one member is none
        mass = part.sum(-1)
        # m H(a / m) = m ln m - sum(a ln a): no division, and 0 for a set without weight
        entropy_mass = xlogy(mass, mass) - xlogy(part, part).sum(-1)
        value += np.where(counted, entropy_mass / np.log(np.maximum(n, SMALLEST_SET)), 0.0)
        even += np.where(counted, n / n_slots, 0.0)
        known |= counted
    return np.where(known, value, np.nan), even


def winner_following(observed: ObservedTrace) -> HeadScore:
    """Share of the weight on an earlier set that its top-ranked member gets; in [0, 1].

    The mean is over pairs of a row and a set whose top member and another the row sees; pairs
    with a weight below 1e-6 on the set are left out. Chance is 1 / visible members. Where members
    have positions of their own (unique, offset) or see one another in order, rank and distance go
    together: only shared positions without an order separate them. The null is `winner_null`.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    return averaged(observed, [_top_shares(step, step.rows()) for step in observed.steps])


def winner_null(observed: ObservedTrace, *, key: Sequence[int]) -> HeadScore:
    """`winner_following` with the ranks of every set permuted, for every row and head.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    rng = np.random.default_rng(list(key))
    pairs = [_top_shares(step, _permuted_ranks(step, rng)) for step in observed.steps]
    return averaged(observed, pairs)


def _top_shares(step: Observation, weights: Weights) -> tuple[StepValues, StepValues]:
    """Share of the top member and its chance value, for each row and set; sets side by side."""
    # an empty first block gives concatenate a shape where there is no earlier set
    nothing = np.empty((*weights.shape[:2], 0))
    shares, evens = [nothing], [nothing]
    for members in earlier_sets(step):
        seen = step.visible[..., members]
        n = seen.sum(-1)[:, None]
        part = weights[..., members].astype(np.float64)
        mass = part.sum(-1)
        # members are in rank order: index 0 is the top-ranked one
        known = (n >= SMALLEST_SET) & seen[..., 0][:, None] & (mass >= SMALLEST_REST)
        shares.append(np.where(known, part[..., 0] / np.where(known, mass, 1), np.nan))
        evens.append(np.broadcast_to(1 / np.maximum(n, 1), mass.shape))
    return np.concatenate(shares, axis=-1), np.concatenate(evens, axis=-1)


def _permuted_ranks(step: Observation, rng: np.random.Generator) -> Weights:
    """Rows whose weights within each earlier set are in random order."""
    weights = step.rows().copy()
    slots = np.arange(len(step.table))
    for members in earlier_sets(step):
        # one set at a time, so that weights move within their own set only
        inside = np.broadcast_to(np.isin(slots, members), (len(step.queries), len(slots)))
        weights[..., members] = permuted(step, inside, rng)[..., members]
    return weights


SET_IGNORING_THRESHOLD = MARGIN
"""ln 1.1, the margin of equivalence: at least 10 % less."""

LARGEST = float(np.log(1e6))
"""Bound of the score: a head without weight on sets would have an infinite one, and so any mean."""

_OTHERS = ("recent_prompt", "other_prompt", "earlier_singletons")


def set_ignoring(
    observed: ObservedTrace, greedy: ObservedTrace, labels: Labels
) -> tuple[HeadScore, HeadScore]:
    """Minus the log-ratio of `parallel.ratio` without the sink, and its null, for one prompt.

    The ratio is the mean weight per slot of earlier sets over that of the other earlier slots, over
    the rows that see both kinds. The score is 0 by chance, positive where sets get less, and
    clipped to +-ln 1e6. Sets are more recent than the prompt, so a head that prefers old slots also
    scores high: the null is the greedy run of the same prompt, whose steps take over the labels of
    the sets at the same step (`parallel.arms`). Only steps that both runs have count.

    Args:
        observed: Trace of a parallel arm.
        greedy: Trace of the greedy arm of the same prompt.
        labels: Whether each step of the parallel arm wrote a set, from `inherited_labels`.

    Returns:
        The score and its null, each NaN without rows.
    """
    # the labels include the prompt, so there is one step fewer than labels
    pair = paired_ratio(observed, greedy, labels)
    n_rows = _rows_with_both(observed.first(len(labels) - 1))
    score, null = (run.without_sink.by_head for run in (pair.common, pair.null))
    return _as_score(score, n_rows), _as_score(null, n_rows)


def _as_score(log_ratio: Float64[np.ndarray, "layer head"], n_rows: np.ndarray) -> HeadScore:
    chance = np.where(np.isnan(log_ratio), np.nan, 0.0)
    return HeadScore(np.clip(-log_ratio, -LARGEST, LARGEST), chance, n_rows)


def _rows_with_both(observed: ObservedTrace) -> Int64[np.ndarray, " layer"]:
    """Rows of each layer that see slots of earlier sets and other earlier slots."""
    found = np.zeros(len(observed.layers), np.int64)
    for step in observed.steps:
        others = sum(step.count[..., GROUP[name]] for name in _OTHERS)
        found += ((step.count[..., GROUP["earlier_sets"]] > 0) & (others > 0)).sum(-1)
    return found
