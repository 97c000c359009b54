"""Effect of one change on identical tokens: each twin compared with the arm it replays.

What differs is found by comparing the two traces (`compare.check_axes`). A twin in which anything
else differs is refused and has no numbers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tempo.errors import TwinError
from tempo.trace.compare import AXES, check_axes
from tempo.trace.run import Run
from tempo.trace.trace import Trace
from tempo.vocabulary import PROMPT_STEP
from tempo_analysis.parallel.arms import Arms, pair_name
from tempo_analysis.parallel.divergence import (
    MEASURES,
    Divergence,
    PromptDivergence,
    divergence,
    divergence_means,
    readout_distance,
)
from tempo_analysis.parallel.observation import GROUP, ObservedTrace, observe
from tempo_analysis.parallel.ratio import prompt_ratio
from tempo_analysis.stats.intervals import SEED, Interval, Unanswered, estimate_with_interval

OTHER_TOKENS = (
    "its tokens differ from those of its reference, so rows and readouts belong to other texts; "
    "read it beside a twin with as many copies"
)


@dataclass(frozen=True, slots=True)
class RowNumbers:
    """Attention of one prompt, over its layers, heads, queries and steps.

    Attributes:
        log_ratio_without_sink: Log of weight per set slot over weight per other earlier slot
            (`tempo_analysis.parallel.ratio.LogRatio`), slot 0 left out; NaN without sets.
        log_ratio_with_sink: The same with slot 0.
        set_mass: Mean mass of a row on earlier sets of width >= 2, over rows that may see one.
        sink_mass: Mean mass of a row on slot 0, over rows that may see it.
    """

    log_ratio_without_sink: float
    log_ratio_with_sink: float
    set_mass: float
    sink_mass: float

    def minus(self, other: "RowNumbers") -> "RowNumbers":
        """The difference in each; NaN where one has no data, or both ratios are 0."""
        with np.errstate(invalid="ignore"):
            # Both ratios may be -inf (no weight on sets at all); -inf - -inf is NaN, which is right
            # here.
            pairs = {name: (getattr(self, name), getattr(other, name)) for name in ROW_NUMBERS}
            return RowNumbers(**{n: float(np.subtract(*both)) for n, both in pairs.items()})


ROW_NUMBERS = ("log_ratio_without_sink", "log_ratio_with_sink", "set_mass", "sink_mass")


@dataclass(frozen=True, slots=True)
class PromptTwin:
    """One prompt of a twin beside its reference.

    Attributes:
        axes: What differs.
        change: Row numbers of the twin minus those of the reference; None where tokens differ.
        readouts: Distances of the readouts step by step; None where tokens differ.
    """

    axes: frozenset[str]
    change: RowNumbers | None
    readouts: PromptDivergence | None


@dataclass(frozen=True, slots=True)
class Twin:
    """A twin over the prompts; intervals are paired, prompt by prompt.

    Attributes:
        reference: The arm whose sets it was fed.
        pair: Name of the two, as `isolated|visible`.
        axes: What differs on any prompt, in the order of `compare.AXES`; nothing else does.
        n_axes: Number of axes that differ on a prompt.
        n_prompts: Prompts compared.
        ratio: Row ratio of the twin over that of the reference, "without" and "with" slot 0
            (geometric mean over prompts); empty where tokens differ.
        mass: Change of the mass on earlier "sets" and on the "sink"; empty where tokens differ.
        readouts: Each of `parallel.divergence.MEASURES`, averaged over the steps of a prompt first;
            empty where tokens differ.
        by_step: The same step by step; None where tokens differ.
    """

    reference: str
    pair: str
    axes: tuple[str, ...]
    n_axes: Interval
    n_prompts: int
    ratio: Mapping[str, Interval]
    mass: Mapping[str, Interval]
    readouts: Mapping[str, Interval]
    by_step: Divergence | None


def row_numbers(observed: ObservedTrace) -> RowNumbers:
    """Ratio and masses of one trace, at any level."""
    ratio = prompt_ratio(observed)
    return RowNumbers(
        log_ratio_without_sink=ratio.without_sink.overall,
        log_ratio_with_sink=ratio.with_sink.overall,
        set_mass=_mean_mass(observed, "earlier_sets"),
        sink_mass=_mean_mass(observed, "sink"),
    )


def prompt_twin(
    reference: Trace, twin: Trace, *, allowed: Collection[str], rows: RowNumbers
) -> PromptTwin:
    """Compare one prompt.

    Args:
        reference: The run whose sets were forced.
        twin: The run they were forced on.
        allowed: What may differ.
        rows: Row numbers of the reference.

    Raises:
        TwinError: Something else differs.
    """
    axes = check_axes(reference, twin, allowed)
    # With other tokens neither rows nor readouts pair up: their difference would be that of the
    # texts.
    if "tokens" in axes:
        return PromptTwin(axes, None, None)
    return PromptTwin(axes, row_numbers(observe(twin)).minus(rows), _readouts(reference, twin))


def twin_over_prompts(
    arm: str, reference: str, prompts: Sequence[PromptTwin], *, seed: int = SEED
) -> Twin:
    """Combine prompts; the tokens of a twin differ where they do on any prompt."""
    changes = [one.change for one in prompts if one.change is not None]
    readouts = [one.readouts for one in prompts if one.readouts is not None]
    table = {name: np.array([getattr(one, name) for one in changes]) for name in ROW_NUMBERS}
    found = {name: estimate_with_interval(values, seed=seed) for name, values in table.items()}
    # One prompt with other tokens empties the tables: the rest alone would be a selection of
    # prompts by outcome.
    same = len(changes) == len(prompts)
    sinks = ("without", "with")
    counts = np.array([len(one.axes) for one in prompts], np.float64)
    return Twin(
        reference=reference,
        pair=pair_name(reference, arm),
        # In the fixed order of AXES: a frozenset has none, and recorded text must not vary.
        axes=tuple(axis for axis in AXES if any(axis in one.axes for one in prompts)),
        n_axes=estimate_with_interval(counts, seed=seed),
        n_prompts=len(prompts),
        # Exponentiated last: limits of the mean log-ratio, so the factor is a geometric mean.
        ratio={s: found[f"log_ratio_{s}_sink"].exponentiated() for s in sinks} if same else {},
        mass={"sets": found["set_mass"], "sink": found["sink_mass"]} if same else {},
        readouts=divergence_means(readouts, seed=seed) if same else {},
        by_step=divergence(readouts, seed=seed) if same else None,
    )


def twins_of(run: Run, arms: Arms, *, seed: int = SEED) -> tuple[dict[str, Twin], list[Unanswered]]:
    """Every twin of a run, and the refused comparisons; reads the run prompt by prompt.

    A twin in which more than its axes differ on any prompt is refused for all prompts. A trace
    that was not decoded to its end counts as absent.
    """
    prompts = [_prompt_twins(_finished(run, prompt.id, arms), arms) for prompt in run.prompts]
    twins: dict[str, Twin] = {}
    refusals: list[Unanswered] = []
    for arm, reference in arms.replays.items():
        ones = [each[arm] for each in prompts if arm in each]
        found = [one for one in ones if isinstance(one, PromptTwin)]
        # One bad prompt refuses the twin: the rest would silently stand for the whole run.
        errors = [str(one) for one in ones if isinstance(one, TwinError)]
        pair = pair_name(reference, arm)
        if errors:
            reason = f"on {len(errors)} of {len(ones)} prompts: {errors[0]}"
            refusals.append(Unanswered("twin", pair, reason))
        elif found:
            twins[arm] = twin_over_prompts(arm, reference, found, seed=seed)
            same = bool(twins[arm].ratio)
            refusals += [] if same else [Unanswered("paired_ratio", pair, OTHER_TOKENS)]
        else:
            refusals.append(Unanswered("twin", pair, "no prompt has both traces"))
    return twins, refusals


def _finished(run: Run, prompt_id: str, arms: Arms) -> dict[str, Trace]:
    """The twins of one prompt and their references, those decoded to their end."""
    # Sorted, so that traces are read in an order that does not depend on hashing.
    named = {*arms.replays, *arms.replays.values()}
    found = {arm: run.traces.get((prompt_id, arm)) for arm in sorted(named)}
    return {arm: trace for arm, trace in found.items() if trace and _is_whole(trace)}


def _is_whole(trace: Trace) -> bool:
    # last_step is -1 where not even the prompt was written.
    return trace.header.stopped != "running" and trace.header.last_step >= 0


def _prompt_twins(traces: Mapping[str, Trace], arms: Arms) -> dict[str, PromptTwin | TwinError]:
    """Each twin of one prompt, or the error with which it is refused."""
    pairs = {arm: ref for arm, ref in arms.replays.items() if arm in traces and ref in traces}
    # A reference may have several twins; its rows are the costly part and are read once.
    rows = {ref: row_numbers(observe(traces[ref])) for ref in dict.fromkeys(pairs.values())}
    found: dict[str, PromptTwin | TwinError] = {}
    for arm, ref in pairs.items():
        try:
            found[arm] = prompt_twin(
                traces[ref], traces[arm], allowed=arms.axes[arm], rows=rows[ref]
            )
        except TwinError as error:
            found[arm] = error
    return found


def _mean_mass(observed: ObservedTrace, group: str) -> float:
    """Mean over the rows that may see a slot of the group; NaN where none may."""
    number = GROUP[group]
    masses = [
        # Rows that may see no slot of the group have mass 0 by the mask, which says nothing of
        # attention.
        np.where(step.count[..., number][:, None] > 0, step.mass[..., number], np.nan)
        for step in observed.steps
    ]
    return observed.average(masses).overall()


def _readouts(reference: Trace, twin: Trace) -> PromptDivergence:
    """As `tempo_analysis.parallel.divergence.prompt_divergence`, also where positions differ."""
    by_step = np.full((reference.n_steps, len(MEASURES)), np.nan)
    widths = np.bincount(reference.slots.step, minlength=reference.n_steps + 1)
    # The prompt has many slots in one step, but it is no parallel set.
    widths[PROMPT_STEP] = 0
    complete = True
    # Before the first wide set both runs compute the same: zeros there would only pull the mean.
    for step in np.flatnonzero(np.logical_or.accumulate(widths >= 2)).tolist():
        distance = readout_distance(reference.readout(step), twin.readout(step))
        # Entry 0 is step 1; step 0, the readout after the prompt, is the same in both.
        by_step[step - 1] = [getattr(distance, name) for name in MEASURES]
        complete = complete and distance.complete
    return PromptDivergence(by_step, complete)
