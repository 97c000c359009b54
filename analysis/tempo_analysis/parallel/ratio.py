"""Does a slot of a parallel set get more or less attention than another earlier slot?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from tempo.errors import NoParallelSetsError
from tempo.vocabulary import SINK_SLOT
from tempo_analysis.parallel.arms import Labels
from tempo_analysis.parallel.observation import GROUP, Observation, ObservedTrace, count_on, mass_on
from tempo_analysis.stats.averages import aligned_steps, mean_over_prompts
from tempo_analysis.stats.intervals import (
    SEED,
    Curve,
    Interval,
    benjamini_hochberg,
    curve,
    estimate_with_interval,
    p_values,
)

CHANCE = 1.0
"""The ratio under even spreading: every visible slot of a row gets the same weight."""

Q_BELOW = 0.05
"""A head differs from its null where its adjusted p is below this."""

Sink = Literal["with", "without"]

# Slot 0 is a part of its own, so that one pass serves both answers, with and without it.
_SETS, _OTHERS, _SINK = range(3)


@dataclass(frozen=True, slots=True)
class LogRatio:
    """Log of (mean weight per slot of earlier sets / mean weight per other earlier slot).

    Numerator and denominator are averaged over the same rows, those that see both kinds, and only
    then divided. NaN without such rows, -inf where the sets get no weight at all.

    Attributes:
        overall: Over every layer, head, query and step.
        by_step: Over the rows of one step; the first entry is step 1.
        by_head: Over the rows of one head.
    """

    overall: float
    by_step: Float64[np.ndarray, " step"]
    by_head: Float64[np.ndarray, "layer head"]


@dataclass(frozen=True, slots=True)
class PromptRatio:
    """One prompt, with slot 0 among the other slots and without it."""

    with_sink: LogRatio
    without_sink: LogRatio


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """One prompt beside its null.

    Attributes:
        arm: Every step of the parallel arm.
        null: The labelled greedy run; NaN where there is none.
        common: The parallel arm over the steps that the greedy run has; NaN where there is none.
    """

    arm: PromptRatio
    null: PromptRatio
    common: PromptRatio


@dataclass(frozen=True, slots=True)
class AttentionRatio:
    """Weight per earlier slot in sets of width >= 2 over weight per other earlier slot.

    Per prompt, numerator and denominator are averaged over every row (layer, head, query) that sees
    both kinds, then the logarithm of their quotient is taken; means and intervals are over prompts,
    so an estimate is a geometric mean of ratios. Left out: the query itself, its siblings, pruned
    slots, slots outside a sliding window, and slot 0 where `sink` is "without". The width of a set
    counts its pruned members. Rows are not rescaled when slot 0 is left out. Under even spreading
    the ratio is exactly 1 (`CHANCE`).

    The null is the same ratio on the same prompt's greedy run, where the slot of step k is labelled
    as the set of step k here, and its row counts as often as that set has members. `over_null`
    compares the two over the steps that both have.

    Attributes:
        sink: "with" or "without" slot 0 among the other slots.
        log_ratio: One value for each prompt; NaN where no row sees both kinds.
        log_null: The same on the labelled greedy run.
        log_over_null: Their difference over common steps.
        ratio: Interval over prompts.
        null: Interval of the null.
        over_null: Interval of ratio / null, paired by prompt.
        by_step: The ratio over the rows of one step; x is the step of the query.
        null_by_step: Its null.
        log_ratio_by_head: Mean over prompts of each head's own log-ratio; NaN without data.
        log_null_by_head: Its null.
        q_value_by_head: Adjusted p of "the head's log-ratio equals its null": paired t over
            prompts, Benjamini-Hochberg over layers x heads; NaN where not tested.
    """

    sink: Sink
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    log_ratio: Float64[np.ndarray, " prompt"]
    log_null: Float64[np.ndarray, " prompt"]
    log_over_null: Float64[np.ndarray, " prompt"]
    ratio: Interval
    null: Interval
    over_null: Interval
    by_step: Curve
    null_by_step: Curve
    log_ratio_by_head: Float64[np.ndarray, "layer head"]
    log_null_by_head: Float64[np.ndarray, "layer head"]
    q_value_by_head: Float64[np.ndarray, "layer head"]

    def heads_off_null(self) -> tuple[int, int, int]:
        """Heads below their null and above it at q < 0.05, and heads tested."""
        # NaN < 0.05 is False, so heads that were not tested count as neither lower nor higher.
        off = self.q_value_by_head < Q_BELOW
        lower = self.log_ratio_by_head < self.log_null_by_head
        tested = ~np.isnan(self.q_value_by_head)
        return int((off & lower).sum()), int((off & ~lower).sum()), int(tested.sum())


def prompt_ratio(observed: ObservedTrace) -> PromptRatio:
    """Ratios of one prompt, by its own sets."""
    split = [_split_own(step) for step in observed.steps]
    # Weight 1 for each step: the queries of a set are rows of their own already.
    return _prompt_ratio(observed, split, np.ones(len(split), np.int64))


def labelled_ratio(
    greedy: ObservedTrace, labels: Labels, widths: Int64[np.ndarray, " _"]
) -> PromptRatio:
    """The null: ratios of a run whose sets have width 1, by labels that its steps inherit.

    Args:
        labels: Whether the set of each step, from 0, is labelled as parallel.
        widths: Number of queries of the labelling arm at each step from 1. The one row of a step
            counts as often, so that the steps have the same weights as in the arm.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    # `labels` begins with the prompt (step 0), so there is one label more than generated steps.
    common = greedy.first(len(labels) - 1)
    split = [_split_labelled(step, labels) for step in common.steps]
    return _prompt_ratio(common, split, widths[: len(split)])


def _prompt_ratio(
    observed: ObservedTrace, split: Sequence["_Split"], counts: Int64[np.ndarray, " step"]
) -> PromptRatio:
    return PromptRatio(
        with_sink=_log_ratio(observed, split, counts, others=[_OTHERS, _SINK]),
        without_sink=_log_ratio(observed, split, counts, others=[_OTHERS]),
    )


def paired_ratio(
    observed: ObservedTrace, greedy: ObservedTrace | None = None, labels: Labels | None = None
) -> PairedRatio:
    """One prompt under a parallel arm beside its labelled greedy run, if there is one.

    Raises:
        LevelError: The greedy run was reduced to group masses.
    """
    arm = prompt_ratio(observed)
    if greedy is None or labels is None:
        # A run of no steps has NaN everywhere in the right shape, so prompts still line up.
        nothing = prompt_ratio(observed.first(0))
        return PairedRatio(arm, null=nothing, common=nothing)
    n_common = len(labels) - 1
    # The greedy run may stop earlier. A ratio over the arm's later steps, where more sets lie
    # behind, against a null without those steps would compare different steps, not different
    # policies.
    common = arm if n_common == len(observed.steps) else prompt_ratio(observed.first(n_common))
    widths = np.array([len(step.queries) for step in observed.steps[:n_common]], np.int64)
    return PairedRatio(arm, null=labelled_ratio(greedy, labels, widths), common=common)


def attention_ratio(
    prompts: Sequence[PairedRatio],
    *,
    sink: Sink,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    seed: int = SEED,
) -> AttentionRatio:
    """Combine prompts.

    Raises:
        NoParallelSetsError: No row of any prompt sees a slot of a set and another earlier slot.
    """
    arm, null, common = (
        [getattr(getattr(prompt, run), f"{sink}_sink") for prompt in prompts]
        for run in ("arm", "null", "common")
    )
    # The unit is the prompt: log first, mean over prompts last, so that the mean of ratios and of
    # their inverses agree (a geometric mean).
    log_ratio, log_null, log_common = (_overall(rows) for rows in (arm, null, common))
    if np.isnan(log_ratio).all():
        raise NoParallelSetsError(
            "expected a row that sees a slot of a parallel set and another earlier slot, got none; "
            "lower the threshold or decode more steps"
        )
    heads_arm, heads_null, heads_common = (_by_head(rows) for rows in (arm, null, common))
    return AttentionRatio(
        sink=sink,
        layers=layers,
        heads=heads,
        log_ratio=log_ratio,
        log_null=log_null,
        # Not log_ratio - log_null: the arm may have more steps than its null.
        log_over_null=log_common - log_null,
        ratio=estimate_with_interval(log_ratio, seed=seed).exponentiated(),
        null=estimate_with_interval(log_null, seed=seed).exponentiated(),
        over_null=estimate_with_interval(log_common - log_null, seed=seed).exponentiated(),
        by_step=_by_step(arm, seed),
        null_by_step=_by_step(null, seed),
        # Every head is one test, hence the correction over layers x heads; heads are not replicates
        # of each other, so they enter no interval.
        log_ratio_by_head=mean_over_prompts(heads_arm),
        log_null_by_head=mean_over_prompts(heads_null),
        q_value_by_head=benjamini_hochberg(p_values(heads_common - heads_null)),
    )


@dataclass(frozen=True, slots=True)
class _Split:
    """Mass and number of visible slots in earlier sets, other earlier slots and slot 0."""

    mass: Float64[np.ndarray, "layer head query part"]
    count: Int64[np.ndarray, "layer query part"]


def _split_own(rows: Observation) -> _Split:
    """Split by the slot groups that traces of every level store."""
    # Siblings and the query itself are in no part: what a row gives to its own step is not an
    # earlier slot, and in an isolated set siblings are not visible at all.
    parts = (
        [GROUP["earlier_sets"]],
        [GROUP["recent_prompt"], GROUP["other_prompt"], GROUP["earlier_singletons"]],
        [GROUP["sink"]],
    )
    mass = np.stack([rows.mass[..., part].sum(-1) for part in parts], -1)
    return _Split(mass, np.stack([rows.count[..., part].sum(-1) for part in parts], -1))


def _split_labelled(rows: Observation, labels: Labels) -> _Split:
    """Split by labels of the steps, for a run whose sets all have width 1."""
    step_of = rows.table.step
    # Slot 0 belongs to the prompt, whose label is False, but as a sink it would fill the
    # denominator: it is kept apart.
    sink = np.arange(len(rows.table)) == SINK_SLOT
    earlier = (step_of < rows.step) & ~sink
    # The slot of step k takes the label of the arm's set of step k: same place in the text, same
    # distance to the query. What is left of the ratio then is not recency.
    labelled = labels[step_of]
    parts = np.stack([earlier & labelled, earlier & ~labelled, sink], -1)
    chosen = np.broadcast_to(parts, (len(rows.queries), *parts.shape))
    return _Split(mass_on(rows.rows(), chosen), count_on(rows.visible, chosen))


def _log_ratio(
    observed: ObservedTrace,
    split: Sequence[_Split],
    counts: Int64[np.ndarray, " step"],
    *,
    others: list[int],
) -> LogRatio:
    per_set, per_other = [], []
    for step in split:
        n_sets, n_others = step.count[..., _SETS], step.count[..., others].sum(-1)
        # Both means must come from the same rows. A row that sees only one kind would put its layer
        # (window) or step into one side of the quotient alone.
        both = ((n_sets > 0) & (n_others > 0))[:, None]
        # Weight per slot, not per group: under even spreading the quotient is then 1 whatever the
        # number of slots. The maximum avoids 0 / 0 in rows that are dropped below.
        set_weight = step.mass[..., _SETS] / np.maximum(n_sets, 1)[:, None]
        other_weight = step.mass[..., others].sum(-1) / np.maximum(n_others, 1)[:, None]
        # NaN, not 0: `average` leaves NaN rows out, a 0 would count as a row without weight.
        per_set.append(np.where(both, set_weight, np.nan))
        per_other.append(np.where(both, other_weight, np.nan))
    # Means over rows first, then the logarithm: single weights reach 0 in float32, where a mean of
    # logarithms would be -inf, and rows with tiny weights would decide it.
    top = observed.average(per_set).weighted(counts)
    bottom = observed.average(per_other).weighted(counts)
    return LogRatio(
        overall=float(_log_quotient(np.array(top.overall()), np.array(bottom.overall()))),
        by_step=_log_quotient(top.by_step(), bottom.by_step()),
        by_head=_log_quotient(top.by_head(), bottom.by_head()),
    )


def _log_quotient(
    top: Float64[np.ndarray, "*cell"], bottom: Float64[np.ndarray, "*cell"]
) -> Float64[np.ndarray, "*cell"]:
    # log 0 = -inf is a finding (the sets get no weight) and stays; NaN - NaN marks no rows.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(top) - np.log(bottom))


def _overall(prompts: Sequence[LogRatio]) -> Float64[np.ndarray, " prompt"]:
    return np.array([prompt.overall for prompt in prompts])


def _by_head(prompts: Sequence[LogRatio]) -> Float64[np.ndarray, "prompt layer head"]:
    return np.stack([prompt.by_head for prompt in prompts])


def _by_step(prompts: Sequence[LogRatio], seed: int) -> Curve:
    table = aligned_steps([prompt.by_step for prompt in prompts])
    # Step 0 is the prompt, whose rows are left out: the first column is step 1.
    return curve(np.arange(1, table.shape[1] + 1), table, seed=seed).exponentiated()
