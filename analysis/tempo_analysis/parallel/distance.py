"""Do members of a set get the weight that single tokens get at the same distance?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tempo.errors import InputError, NoParallelSetsError
from tempo.vocabulary import PROMPT_STEP
from tempo_analysis.parallel.arms import Labels
from tempo_analysis.parallel.entropy import SMALLEST_REST
from tempo_analysis.parallel.observation import GROUP, Observation, ObservedTrace, count_on, mass_on
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval

SMALLEST_KERNEL = 8
"""A kernel value is a mean over at least this many weights of single tokens."""

_WEIGHT, _EVEN, _COUNT = range(3)
DistanceSums = Float64[np.ndarray, "column layer head _"]
"""Sums over the weights that earlier generated slots of one kind get, by distance: the weights,
rescaled to the mass of their row outside slot 0; what even spreading over the visible slots other
than slot 0 would give them; how many they are."""

_Chosen = Callable[[Observation], Bool[np.ndarray, " slot"]]
_Times = Callable[[int, Int64[np.ndarray, " distance"]], Int64[np.ndarray, " distance"]]


@dataclass(frozen=True, slots=True)
class PromptDistances:
    """Members of sets of one prompt, and the single tokens they are matched with."""

    members: DistanceSums
    singles: DistanceSums


@dataclass(frozen=True, slots=True)
class PairedDistances:
    """One prompt beside its null.

    Attributes:
        arm: Every step of the parallel arm.
        null: The labelled greedy run; no members where there is none.
        common: The arm over the steps that the greedy run has, matched with the single tokens of
            the null; no members where there is none.
    """

    arm: PromptDistances
    null: PromptDistances
    common: PromptDistances


@dataclass(frozen=True, slots=True)
class MatchedRatio:
    """Weight of members of earlier sets over the weight of single tokens at the same distance.

    Distance is position of query minus position of slot, to the nearest whole number; recency
    does not affect this ratio. Rows are rescaled to their mass outside slot 0. For each prompt,
    layer and head: log of (mean weight of the members / mean, over the same members, of the kernel
    at their distance). The kernel is the mean weight of earlier generated single tokens (width 1)
    of the run and of the greedy run of the same prompt. Where these give fewer than 8 weights
    (`SMALLEST_KERNEL`) at a distance, those of all other prompts are pooled, the prompt itself left
    out; where these are too few as well, the members there are left out and counted. Averaged over
    layers and heads, then over prompts. Left out: siblings, the query, pruned slots, rows with less
    than 1e-6 of mass outside slot 0.

    Single tokens are seen in other rows than members are, so even spreading does not give exactly
    1: `chance` is the ratio it gives on these rows, `over_chance` the quotient. The null treats the
    slots of the greedy run as members that inherit the label of a set; each weight counts as often
    as the arm has members there. Its kernel leaves the labelled slots out, and so does the kernel
    of the arm in `over_null`, which therefore compares members with labelled slots.

    Attributes:
        log_ratio: One value for each prompt; NaN without members that can be matched.
        log_chance: The same under even spreading.
        log_null: The same of the labelled greedy run.
        log_over_null: The difference to the null over the steps that both have.
        log_ratio_by_head: Mean over prompts; NaN without data.
        n_own: Weights of members matched with singles of the prompt itself, for each prompt.
        n_pooled: Those matched with singles of the other prompts.
        n_left_out: Those whose distance has too few singles anywhere.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    log_ratio: Float64[np.ndarray, " prompt"]
    log_chance: Float64[np.ndarray, " prompt"]
    log_null: Float64[np.ndarray, " prompt"]
    log_over_null: Float64[np.ndarray, " prompt"]
    ratio: Interval
    chance: Interval
    over_chance: Interval
    null: Interval
    over_null: Interval
    log_ratio_by_head: Float64[np.ndarray, "layer head"]
    n_own: Int64[np.ndarray, " prompt"]
    n_pooled: Int64[np.ndarray, " prompt"]
    n_left_out: Int64[np.ndarray, " prompt"]


def outside_sink(
    rows: Observation,
) -> tuple[Float64[np.ndarray, "layer head query"], Int64[np.ndarray, "layer query"]]:
    """Mass of each row outside slot 0 (NaN below 1e-6), and number of visible slots there."""
    # Summed, not 1 - sink: where the sink takes nearly the whole row the difference has no digits
    # left.
    rest = np.delete(rows.mass, GROUP["sink"], axis=-1).sum(-1)
    seen = rows.count.sum(-1) - rows.count[..., GROUP["sink"]]
    # NaN below 1e-6: dividing by a smaller rest would turn float32 rounding into weights.
    return np.where(rest >= SMALLEST_REST, rest, np.nan), seen


def paired_distances(
    observed: ObservedTrace, greedy: ObservedTrace | None = None, labels: Labels | None = None
) -> PairedDistances:
    """One prompt under a parallel arm beside its labelled greedy run, if there is one.

    Args:
        labels: Of the steps of the greedy run, by `tempo_analysis.parallel.arms.inherited_labels`.

    Raises:
        LevelError: A trace was reduced to group masses.
    """
    # Zero steps give empty sums of the right layers and heads.
    nothing = _prompt_distances(observed.first(0), None)
    if greedy is None or labels is None:
        return PairedDistances(_prompt_distances(observed, None), nothing, nothing)
    # `labels` has an entry for the prompt (step 0), so one more than there are steps.
    cut, cut_greedy = (run.first(len(labels) - 1) for run in (observed, greedy))
    null = _labelled_distances(cut, cut_greedy, labels)
    return PairedDistances(
        arm=_prompt_distances(observed, greedy),
        null=null,
        # The kernel of the null serves both sides here, so that it cancels in their difference.
        common=PromptDistances(_sums(cut, _is_member), null.singles),
    )


def matched_ratio(
    prompts: Sequence[PairedDistances],
    *,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    seed: int = SEED,
) -> MatchedRatio:
    """Combine prompts.

    Raises:
        NoParallelSetsError: No row of any prompt sees a member of an earlier set.
        InputError: No member is seen at a distance with enough single tokens.
    """
    arm, null, common = (
        _match([getattr(prompt, run) for prompt in prompts]) for run in ("arm", "null", "common")
    )
    _check_matched(arm)
    over_null = common.overall() - null.overall()
    # Chance is subtracted prompt by prompt, before the interval: the two are paired.
    logs = (arm.overall(), arm.chance, arm.overall() - arm.chance, null.overall(), over_null)
    intervals = [estimate_with_interval(values, seed=seed).exponentiated() for values in logs]
    return MatchedRatio(
        layers,
        heads,
        arm.overall(),
        arm.chance,
        null.overall(),
        over_null,
        *intervals,
        log_ratio_by_head=mean_over_prompts(arm.by_head),
        n_own=arm.n_own,
        n_pooled=arm.n_pooled,
        n_left_out=arm.n_left_out,
    )


@dataclass(frozen=True, slots=True)
class _Matched:
    """Log-ratios of every prompt in one role; NaN where nothing is matched."""

    by_head: Float64[np.ndarray, "prompt layer head"]
    chance: Float64[np.ndarray, " prompt"]
    n_own: Int64[np.ndarray, " prompt"]
    n_pooled: Int64[np.ndarray, " prompt"]
    n_left_out: Int64[np.ndarray, " prompt"]

    def overall(self) -> Float64[np.ndarray, " prompt"]:
        return _over_heads(self.by_head)


def _is_member(rows: Observation) -> Bool[np.ndarray, " slot"]:
    return rows.table.width >= 2


def _is_single(rows: Observation) -> Bool[np.ndarray, " slot"]:
    return rows.table.width == 1


def _prompt_distances(observed: ObservedTrace, greedy: ObservedTrace | None) -> PromptDistances:
    # An arm may have hardly any single tokens of its own; the greedy run of the same prompt
    # consists of them.
    runs = [observed] if greedy is None else [observed, greedy]
    # Sums and counts are added, not means: every weight then counts once.
    singles = _aligned([_sums(run, _is_single) for run in runs]).sum(0)
    return PromptDistances(_sums(observed, _is_member), singles)


def _labelled_distances(
    arm: ObservedTrace, greedy: ObservedTrace, labels: Labels
) -> PromptDistances:
    # The leading 1 is the prompt, so that the index is the step.
    widths = np.array([1, *(len(step.queries) for step in arm.steps)], np.int64)

    def times(step: int, distance: Int64[np.ndarray, " distance"]) -> np.ndarray:
        # The arm has width(query's step) x width(key's step) weights where the greedy run has one;
        # the step of the key is the query's less the distance, since one step is one position
        # there. Clipped at the prompt, where no chosen slot is and the product is multiplied by 0.
        return widths[step] * widths[np.maximum(step - distance, PROMPT_STEP)]

    # Labelled slots serve as members here, so they may not be in the kernel too.
    plain = _sums(greedy, lambda rows: ~labels[rows.table.step])
    singles = _aligned([plain, _sums(arm, _is_single)]).sum(0)
    return PromptDistances(_sums(greedy, lambda rows: labels[rows.table.step], times), singles)


def _sums(observed: ObservedTrace, chosen: _Chosen, times: _Times | None = None) -> DistanceSums:
    """Sums over all rows for the chosen slots of earlier sets; `times` is how often each counts."""
    distance = np.arange(_n_distances(observed))
    # float64 sums of many float32 weights.
    sums = np.zeros((3, len(observed.layers), len(observed.heads), len(distance)))
    for rows in observed.steps:
        repeats = np.ones_like(distance) if times is None else times(rows.step, distance)
        parts = _parts(rows, chosen(rows), distance)
        rest, n_seen = outside_sink(rows)
        usable = ~np.isnan(rest)[..., None]
        # A row without mass outside the sink counts in no column, so the three stay comparable.
        seen = count_on(rows.visible, parts)[:, None] * usable
        weight = np.where(usable, mass_on(rows.rows(), parts) / rest[..., None], 0.0)
        # What the same slots would get if the row outside slot 0 were spread evenly.
        even = seen / np.maximum(n_seen, 1)[:, None, :, None]
        # Axis 3 is the query: rows add up, layers and heads stay apart (averaged last).
        sums += np.stack([weight, even, seen]).sum(3) * repeats
    return sums


def _n_distances(observed: ObservedTrace) -> int:
    """One more than the largest distance between two generated slots."""
    if not observed.steps:
        return 1
    table = observed.steps[-1].table
    # Rounded: shared or offset positions may be fractional, and the axis counts whole ones.
    return 1 + int(np.rint(np.ptp(table.position[table.step != PROMPT_STEP])))


def _parts(
    rows: Observation, chosen: Bool[np.ndarray, " slot"], distance: Int64[np.ndarray, " distance"]
) -> Bool[np.ndarray, "query slot distance"]:
    """Chosen slots of earlier sets at each rounded distance; negative distances count as 0."""
    table = rows.table
    # Only slots of earlier steps: siblings share the query's position, at which no single token can
    # be, so there is nothing to match them with.
    kept = chosen & (table.step != PROMPT_STEP) & (table.step < rows.step)
    behind = np.rint(table.position[rows.queries, None] - table.position[None, :])
    # An offset may put an earlier slot level with the query or ahead of it: these go to 0.
    return kept[None, :, None] & (np.maximum(behind, 0)[..., None] == distance)


def _aligned(sums: Sequence[DistanceSums]) -> Float64[np.ndarray, "one column layer head distance"]:
    """Several sums, padded with zeros to a common distance axis."""
    n = max(each.shape[-1] for each in sums)
    return np.stack([np.pad(each, [(0, 0)] * 3 + [(0, n - each.shape[-1])]) for each in sums])


def _match(prompts: Sequence[PromptDistances]) -> _Matched:
    # Members and singles alternate, so that all get one distance axis; places 0, 2, ... are
    # members.
    table = _aligned([part for one in prompts for part in (one.members, one.singles)])
    members, singles = table[::2], table[1::2]
    # The sum over all prompts less the prompt itself: a prompt is never matched with its own
    # weights under the name of pooled ones.
    others = singles.sum(0) - singles
    # A kernel from a few weights is noisy, and its noise does not average out: the logarithm of a
    # noisy denominator is biased (Jensen).
    own = singles[:, _COUNT] >= SMALLEST_KERNEL
    pooled = ~own & (others[:, _COUNT] >= SMALLEST_KERNEL)
    used = np.where(own[:, None], singles, others)
    n_own, n_pooled, n_left_out = (
        np.where(kind, members[:, _COUNT], 0).sum((1, 2, 3)).astype(np.int64)
        for kind in (own, pooled, ~(own | pooled))
    )
    matched = (own | pooled) & (members[:, _COUNT] > 0)
    kernel = used / np.maximum(used[:, _COUNT], 1)[:, None]
    # The kernel weighted by where the members are; distances enter in their proportion.
    expected = kernel * members[:, _COUNT][:, None]
    weights, evens = (
        _log_quotient(members[:, column], expected[:, column], matched)
        for column in (_WEIGHT, _EVEN)
    )
    return _Matched(weights, _over_heads(evens), n_own, n_pooled, n_left_out)


def _log_quotient(
    found: Float64[np.ndarray, "prompt layer head distance"],
    expected: Float64[np.ndarray, "prompt layer head distance"],
    matched: Bool[np.ndarray, "prompt layer head distance"],
) -> Float64[np.ndarray, "prompt layer head"]:
    """Log of the quotient of two sums over the matched distances; NaN without any."""
    # Sums over distances first, then one logarithm: single weights may be 0, means hardly.
    top, bottom = (np.where(matched, values, 0.0).sum(-1) for values in (found, expected))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(matched.any(-1), np.log(top) - np.log(bottom), np.nan)


def _over_heads(values: Float64[np.ndarray, "prompt layer head"]) -> Float64[np.ndarray, " prompt"]:
    # Transposed, because `mean_over_prompts` averages the first axis, here the heads.
    return mean_over_prompts(values.reshape(len(values), -1).T)


def _check_matched(arm: _Matched) -> None:
    if not np.isnan(arm.overall()).all():
        return
    # No member at all and members that found no kernel ask for different remedies.
    if not arm.n_left_out.any():
        raise NoParallelSetsError(
            "expected a row that sees a member of an earlier parallel set, got none; lower the "
            "threshold or decode more steps"
        )
    raise InputError(
        f"expected at least {SMALLEST_KERNEL} weights of single tokens at the distance of some "
        "member, got fewer at each; add the greedy runs of the same prompts, prompts or steps"
    )
