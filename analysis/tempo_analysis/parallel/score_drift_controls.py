"""Control of down-weighting by rank: slopes of lambda on rank and probability in a set.

Lambda is the log of a member's mass over that of the prompt, as in `parallel.set_effect`; here one
value for each member, averaged over the same layers, heads and queries in the set and alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy import stats

from tempo.errors import NoParallelSetsError
from tempo.trace.trace import Trace
from tempo_analysis.parallel.alone_pairs import (
    SMALLEST_SET,
    check_twin,
    reference_slots,
    rows_after,
)
from tempo_analysis.parallel.ratio import Sink
from tempo_analysis.stats.intervals import (
    BOOTSTRAP,
    BOOTSTRAP_FROM,
    LEVEL,
    RESAMPLES,
    SEED,
    SMALLEST_SAMPLE,
    Interval,
    too_few,
)

JACKKNIFE = "Student t, prompts left out in turn"
NO_SLOPE = "no slope: the predictors do not vary apart"

# Of the smallest eigenvalue of a correlation matrix (at most 1): below it two predictors are the
# same up to rounding, and their slopes are noise.
_ROUNDING = 1e-9
# Resamples in memory at once: a small matrix for each prompt of each.
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class PromptLambdas:
    """The members of the sets of one prompt; lambda in nats.

    Attributes:
        step: The set.
        rank: By probability, from 0.
        log_probability: Of the member when it was chosen.
        in_set: Lambda in the set.
        alone: Lambda without the siblings.
    """

    step: Int64[np.ndarray, " member"]
    rank: Int64[np.ndarray, " member"]
    log_probability: Float64[np.ndarray, " member"]
    in_set: Float64[np.ndarray, " member"]
    alone: Float64[np.ndarray, " member"]


@dataclass(frozen=True, slots=True)
class Slopes:
    """How one quantity changes inside a set.

    Attributes:
        rank: For each rank further down, nats.
        log_probability: For each nat of probability.
        rank_given_probability: For each rank, both predictors fitted at once.
        probability_given_rank: For each nat of probability, both fitted at once.
    """

    rank: Interval
    log_probability: Interval
    rank_given_probability: Interval
    probability_given_rank: Interval


@dataclass(frozen=True, slots=True)
class LambdaSlopes:
    """Slopes within sets: least squares over all members, an intercept for each set.

    Sets are pooled over prompts, since few prompts have members enough for a fit of their own; the
    prompt stays the unit: it is what is resampled (BCa bootstrap from 30 prompts on) or left out in
    turn (jackknife, Student t, from 8 on).

    Attributes:
        in_set: Of lambda in the set.
        alone: Of lambda alone; a slope as large as in the set is not an effect of siblings.
        drift: Of their difference: whether siblings lower the lambda of low-ranked members more.
        n_members: Members, over all prompts.
    """

    in_set: Slopes
    alone: Slopes
    drift: Slopes
    n_members: int


def prompt_lambdas(
    in_set: Trace, alone: Mapping[tuple[int, int], Trace], *, reference: Sink
) -> PromptLambdas:
    """Lambda of every member of the sets that have a step after them and a twin for each member.

    Args:
        in_set: The run with its sets.
        alone: The twin of each member, by (step, rank).
        reference: The prompt "with" or "without" slot 0.

    Raises:
        TwinError: A twin differs by more than its siblings.
        LevelError: A trace was reduced to group masses.
    """
    # The empty block gives a prompt without sets its five columns.
    columns: list[Float64[np.ndarray, "member 5"]] = [np.zeros((0, 5))]
    # Not the last step: no query follows it, so its set has no rows.
    for step in range(1, in_set.n_steps):
        members = in_set.members(step)
        twins = [alone.get((step, rank)) for rank in range(len(members))]
        whole = [twin for twin in twins if twin is not None]
        if len(members) < SMALLEST_SET or len(whole) < len(members):
            continue
        # The logarithm: rank and log p are nearly linear in each other, p is not.
        logs = np.log(in_set.slots.probability[members].astype(np.float64))
        pair = _set_lambdas(in_set, whole, step=step, reference=reference)
        known = [np.full(len(members), step), np.arange(len(members)), logs]
        columns.append(np.column_stack([*known, *pair]))
    step, rank, logs, inside, apart = np.concatenate(columns).T
    return PromptLambdas(step.astype(np.int64), rank.astype(np.int64), logs, inside, apart)


def lambda_slopes(prompts: Sequence[PromptLambdas], *, seed: int = SEED) -> LambdaSlopes:
    """Combine prompts.

    Raises:
        NoParallelSetsError: No prompt has a member of a set.
    """
    n_members = sum(len(prompt.step) for prompt in prompts)
    if n_members == 0:
        raise NoParallelSetsError(
            "expected a set of width 2 or more, with a step after it and a twin for each member, "
            "got none; lower the threshold or decode more steps"
        )
    return LambdaSlopes(
        in_set=_slopes([one.in_set for one in prompts], prompts, seed),
        alone=_slopes([one.alone for one in prompts], prompts, seed),
        drift=_slopes([one.in_set - one.alone for one in prompts], prompts, seed),
        n_members=n_members,
    )


def pooled_slopes(
    y: Sequence[Float[np.ndarray, " _"]],
    x: Sequence[Float[np.ndarray, "_ predictor"]],
    groups: Sequence[Int64[np.ndarray, " _"]],
    *,
    seed: int = SEED,
) -> tuple[Interval, ...]:
    """Least-squares slopes over the items of all prompts, an intercept for each group of a prompt.

    Args:
        y: What is explained, prompt by prompt; NaN is no item.
        x: The predictors of the same items.
        groups: Labels within a prompt.

    Returns:
        One interval for each predictor, in y per unit of it. A prompt without two items in any
        group has no data.
    """
    # Moments of each prompt are all that a pooled fit needs, so leaving out or resampling a prompt
    # is a sum of small matrices and no new fit.
    moments = np.stack([_moments(*prompt) for prompt in zip(y, x, groups, strict=True)])
    # All products of predictors are 0 where each group has one item: such a prompt says nothing of
    # a slope and is counted as dropped, not as evidence of 0.
    has_data = moments[:, 1:, 1:].any((1, 2))
    kept, n_predictors = moments[has_data], moments.shape[-1] - 1
    estimate = _solved(kept.sum(0))
    n, n_dropped = len(kept), int(np.sum(~has_data))
    low, high, method = _limits(kept, estimate, seed)
    return tuple(
        Interval(float(estimate[p]), float(low[p]), float(high[p]), n, method, n_dropped=n_dropped)
        for p in range(n_predictors)
    )


Moments = Float64[np.ndarray, "*sample column column2"]
"""Sums of products of (y, predictors), each less the mean of its group."""


def _set_lambdas(
    in_set: Trace, alones: Sequence[Trace], *, step: int, reference: Sink
) -> tuple[Float64[np.ndarray, " member"], Float64[np.ndarray, " member"]]:
    """In the set and alone, over the cells that every member has in both."""
    # Checked before any row is read: a twin that differs elsewhere would give a false drift.
    for rank, alone in enumerate(alones):
        check_twin(in_set, alone, step=step, rank=rank)
    inside, apart = rows_after(in_set, step), [rows_after(alone, step) for alone in alones]
    slots = reference_slots(inside.n_prompt, reference)
    together = inside.log_mass(slots)
    here = np.stack([inside.log_mass([int(slot)]) - together for slot in inside.members])
    there = np.stack([one.log_mass([int(one.members[0])]) - one.log_mass(slots) for one in apart])
    # Cells that all members have, in the set and alone: ranks would otherwise be compared over
    # different heads and layers.
    known = ~np.isnan(here + there).any(0)
    n_known = int(known.sum())
    if n_known == 0:
        nothing = np.full(len(alones), np.nan)
        return nothing, nothing
    return here[:, known].mean(-1), there[:, known].mean(-1)


def _slopes(
    y: Sequence[Float64[np.ndarray, " _"]], prompts: Sequence[PromptLambdas], seed: int
) -> Slopes:
    groups = [one.step for one in prompts]
    both = [np.column_stack([one.rank, one.log_probability]) for one in prompts]
    # Each predictor alone, then both at once: rank and probability are confounded, and only the
    # joint fit separates them.
    single = (
        pooled_slopes(y, [each[:, [column]] for each in both], groups, seed=seed)[0]
        for column in range(2)
    )
    found = [*single, *pooled_slopes(y, both, groups, seed=seed)]
    return Slopes(**{field.name: one for field, one in zip(fields(Slopes), found, strict=True)})


def _moments(
    y: Float[np.ndarray, " item"],
    x: Float[np.ndarray, "item predictor"],
    groups: Int64[np.ndarray, " item"],
) -> Float64[np.ndarray, "column column2"]:
    items = np.column_stack([y, x]).astype(np.float64)
    known = ~np.isnan(items).any(-1)
    items, labels = items[known], groups[known]
    for label in np.unique(labels):
        # Centring within groups is least squares with an intercept for each group (Frisch and Waugh
        # 1933), so levels of sets do not enter the slope.
        items[labels == label] -= items[labels == label].mean(0)
    return items.T @ items


def _solved(moments: Moments) -> Float64[np.ndarray, "*sample predictor"]:
    """Slopes by the normal equations; NaN where the predictors do not vary apart."""
    square, product = moments[..., 1:, 1:], moments[..., 1:, :1]
    # Predictors are brought to unit length first: rank and log p have other units, and the rounding
    # test below must not depend on them.
    size = np.sqrt(np.einsum("...pp->...p", square))
    scale = np.where(size > 0, size, 1.0)
    correlation = square / (scale[..., :, None] * scale[..., None, :])
    solvable = np.linalg.eigvalsh(correlation)[..., 0] > _ROUNDING
    # One singular resample would make the solver raise for the whole batch; the identity takes its
    # place and the result is dropped.
    safe = np.where(solvable[..., None, None], correlation, np.eye(square.shape[-1]))
    found = np.linalg.solve(safe, product / scale[..., None])[..., 0] / scale
    return np.where(solvable[..., None], found, np.nan)


def _limits(
    moments: Float64[np.ndarray, "prompt column column2"],
    estimate: Float64[np.ndarray, " predictor"],
    seed: int,
) -> tuple[Float64[np.ndarray, " predictor"], Float64[np.ndarray, " predictor"], str]:
    n = len(moments)
    nothing = np.full(len(estimate), np.nan)
    if n < SMALLEST_SAMPLE:
        return nothing, nothing, too_few(n)
    # The slope without each prompt in turn: the jackknife, and also what BCa needs to be finite.
    left_out = _solved(moments.sum(0) - moments)
    if np.isnan(estimate).any() or np.isnan(left_out).any():
        return nothing, nothing, NO_SLOPE
    if n >= BOOTSTRAP_FROM:
        return *_bootstrap_limits(moments, len(estimate), seed), BOOTSTRAP
    # Jackknife standard error: pseudo-values differ by (n - 1) times the leave-one-out values, ddof
    # 1 as they are a sample (Efron and Tibshirani 1993, chapter 11).
    spread = (n - 1) * np.sqrt(left_out.var(0, ddof=1) / n)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * spread
    return estimate - half, estimate + half, JACKKNIFE


def _bootstrap_limits(
    moments: Float64[np.ndarray, "prompt column column2"], n_predictors: int, seed: int
) -> tuple[Float64[np.ndarray, " predictor"], Float64[np.ndarray, " predictor"]]:
    """BCa limits, prompts resampled whole; every predictor with the same draws."""

    def slope(drawn: np.ndarray, predictor: int) -> np.ndarray:
        return _solved(moments[drawn].sum(-3))[..., predictor]

    found = [
        stats.bootstrap(
            (np.arange(len(moments)),),
            # The default binds this predictor; a closure would see the last one of the loop.
            lambda drawn, axis, p=predictor: slope(drawn, p),
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="BCa",
            batch=_BATCH,
            vectorized=True,
            # A new generator with the same seed each time: all predictors see the same draws.
            rng=np.random.default_rng(seed),
        ).confidence_interval
        for predictor in range(n_predictors)
    ]
    return np.array([each.low for each in found]), np.array([each.high for each in found])
