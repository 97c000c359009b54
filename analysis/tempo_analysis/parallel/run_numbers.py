"""The numbers of a run: every measure of every arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tempo.errors import InputError, NoParallelSetsError
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import Arms, arms_of
from tempo_analysis.parallel.divergence import Divergence
from tempo_analysis.parallel.entropy import EntropyFunnel, entropy_funnel
from tempo_analysis.parallel.head_kinds import HeadTable, head_table
from tempo_analysis.parallel.metrics import (
    Metric,
    PromptColumn,
    arm_metrics,
    missing_ratio_metrics,
    null_metrics,
    ratio_metrics,
    refused_split_metric,
    refused_twin_metric,
    split_metrics,
    twin_metrics,
)
from tempo_analysis.parallel.per_prompt import Axes, PromptMeasures, measure_prompt
from tempo_analysis.parallel.ratio import AttentionRatio, Sink, attention_ratio
from tempo_analysis.parallel.set_effect import SINKS, SetEffect, set_effects
from tempo_analysis.parallel.sibling_mass import SiblingMass, sibling_mass
from tempo_analysis.parallel.twins import Twin, twins_of
from tempo_analysis.parallel.widths import Widths, widths
from tempo_analysis.stats.intervals import SEED, Unanswered


@dataclass(frozen=True, slots=True)
class ArmResults:
    """What was found about one free-running arm.

    Attributes:
        ratio: With and without the sink; empty for the null arm and where there are no sets.
        heads: None where the traces keep no rows.
        siblings: None for the null arm.
    """

    ratio: Mapping[str, AttentionRatio]
    entropy: EntropyFunnel
    heads: HeadTable | None
    siblings: SiblingMass | None
    widths: Widths


@dataclass(frozen=True, slots=True)
class RunNumbers:
    """Everything that was found about a run; intervals are over prompts.

    Attributes:
        arms: Free-running arms, the null among them.
        greedy: The null arm, None where the run has none.
        replays: Twin to the arm whose sets it was fed.
        alone: The arm whose members were decoded without their siblings too; None if none was.
        n_prompts: Prompts of the run.
        metrics: One row for each number, beside its chance value, null and verdict.
        by_arm: Curves and tables of each arm.
        twins: What one change did on identical tokens, by twin.
        set_effects: The exact split, "without" and "with" slot 0 in its reference; empty where
            there is none.
        refusals: Questions without an answer.
    """

    arms: tuple[str, ...]
    greedy: str | None
    replays: Mapping[str, str]
    alone: str | None
    n_prompts: int
    metrics: tuple[Metric, ...] = field(repr=False)
    by_arm: Mapping[str, ArmResults] = field(repr=False)
    twins: Mapping[str, Twin] = field(repr=False)
    set_effects: Mapping[Sink, SetEffect] = field(repr=False)
    refusals: tuple[Unanswered, ...] = field(repr=False)

    @property
    def divergence(self) -> Mapping[str, Divergence]:
        """Distance of the readouts step by step, by pair, as `isolated|visible`."""
        return {twin.pair: twin.by_step for twin in self.twins.values() if twin.by_step}


def run_numbers(run: Run) -> RunNumbers:
    """Compute every measure of every arm.

    With fewer than 8 prompts there are estimates without intervals, and the verdicts state it.

    Raises:
        InputError: The run holds nothing to analyse, or its traces do not fit together.
    """
    arms = arms_of(run)
    columns = _measure(run, arms)
    axes = _axes(columns)
    # The seed of the run, so that the same folder always gives the same limits.
    seed = int(run.settings.get("seed", SEED))
    by_arm = {
        arm: _combine(column, axes, is_null=arm == arms.greedy, seed=seed)
        for arm, column in columns.items()
    }
    twins, refused_twins = twins_of(run, arms, seed=seed)
    effects, refused_split = set_effects(run, arms, seed=seed)
    metrics = [
        *(metric for arm in by_arm for metric in _metrics(arm, arms, columns, by_arm, seed=seed)),
        *(metric for twin in twins.values() for metric in twin_metrics(twin)),
        # Refusals of paired ratios have no row: their twin has one already.
        *(refused_twin_metric(one) for one in refused_twins if one.question == "twin"),
        *_split_metrics(arms, by_arm, effects, refused_split),
    ]
    return RunNumbers(
        arms=tuple(by_arm),
        # The policy may be there without a decoded trace, as in a run that was stopped early.
        greedy=arms.greedy if arms.greedy in by_arm else None,
        replays=arms.replays,
        alone=arms.alone,
        n_prompts=len(run.prompts),
        metrics=tuple(metrics),
        by_arm=by_arm,
        twins=twins,
        set_effects=effects,
        refusals=(*_unanswered(arms, by_arm), *refused_twins, *refused_split),
    )


_NO_SETS = "no data: no row sees a slot of a parallel set and another earlier slot"
_NO_ROWS = "its traces were reduced to group masses; capture rows (level weights or qk)"
_NO_GREEDY = "the run has no greedy arm"


def _measure(run: Run, arms: Arms) -> dict[str, PromptColumn]:
    """One column for each free arm with traces, a place for each prompt of the run.

    A trace whose prompt was never written, as a killed run may leave it, counts as absent.
    """
    measured = []
    for prompt in run.prompts:
        # All arms of a prompt at once: its greedy trace is read once and labelled for every arm.
        pairs = ((arm, run.traces.get((prompt.id, arm))) for arm in arms.free)
        traces = {arm: trace for arm, trace in pairs if trace and trace.header.last_step >= 0}
        measured.append(measure_prompt(traces, arms))
    return {
        # A place for every prompt, None where there is no trace: arms are paired by place.
        arm: [one.get(arm) for one in measured]
        for arm in arms.free
        if any(arm in one for one in measured)
    }


def _axes(columns: Mapping[str, PromptColumn]) -> Axes:
    axes = {one.axes for column in columns.values() for one in column if one is not None}
    if len(axes) != 1:
        raise InputError(
            "expected traces that all keep the same layers and heads, got "
            + (f"{len(axes)} different choices" if axes else "a run without a decoded trace")
        )
    return axes.pop()


def _combine(column: PromptColumn, axes: Axes, *, is_null: bool, seed: int) -> ArmResults:
    layers, heads = axes
    # Intervals of one arm alone need no pairing, so empty places may go.
    present = [one for one in column if one is not None]
    tables = [one.heads for one in present if one.heads is not None]
    siblings = [one.siblings for one in present]
    return ArmResults(
        # The null arm has sets of width 1 only; its labelled ratio is the null of the others.
        ratio={} if is_null else _ratios(present, axes, seed=seed),
        entropy=entropy_funnel([one.entropy for one in present], layers=layers, seed=seed),
        heads=head_table(tables, layers=layers, heads=heads) if tables else None,
        siblings=None if is_null else sibling_mass(siblings, layers=layers, seed=seed),
        widths=widths([one.widths for one in present], seed=seed),
    )


def _ratios(
    present: Sequence[PromptMeasures], axes: Axes, *, seed: int
) -> dict[str, AttentionRatio]:
    layers, heads = axes
    prompts = [one.ratio for one in present]
    try:
        return {
            sink: attention_ratio(prompts, sink=sink, layers=layers, heads=heads, seed=seed)
            for sink in SINKS
        }
    # An arm without sets is an answer, not an error; `_unanswered` lists it.
    except NoParallelSetsError:
        return {}


def _metrics(
    arm: str,
    arms: Arms,
    columns: Mapping[str, PromptColumn],
    by_arm: Mapping[str, ArmResults],
    *,
    seed: int,
) -> list[Metric]:
    if arm == arms.greedy:
        return null_metrics(arm, columns[arm], seed=seed)
    # Labels need rows; entropy and sink mass do not, so these still have a null from a greedy run
    # that was reduced to group masses.
    unlabelled = _no_labelled_null(arms, by_arm)
    no_null = "" if arms.greedy in by_arm else unlabelled
    ratios = list(by_arm[arm].ratio.values())
    return [
        *(ratio_metrics(arm, ratios, no_null=unlabelled) or missing_ratio_metrics(arm, _NO_SETS)),
        *arm_metrics(arm, columns[arm], columns.get(arms.greedy or ""), no_null=no_null, seed=seed),
    ]


def _no_labelled_null(arms: Arms, by_arm: Mapping[str, ArmResults]) -> str:
    """Why the ratio has no null; empty where it has."""
    null = by_arm.get(arms.greedy) if arms.greedy else None
    if null is None:
        return f"no null: {_NO_GREEDY}"
    return "" if null.heads else f"no null: {_NO_ROWS}"


def _split_metrics(
    arms: Arms,
    by_arm: Mapping[str, ArmResults],
    effects: Mapping[Sink, SetEffect],
    refused: Sequence[Unanswered],
) -> list[Metric]:
    """The split of a paired run; none of a run that was not paired."""
    if arms.alone is None:
        return []
    if not effects:
        return [refused_split_metric(one) for one in refused]
    ratios = by_arm[arms.alone].ratio
    # The verdict uses the sink-free ratio, as it does the sink-free split.
    over_null = ratios["without"].over_null if ratios else None
    has_null = over_null is not None and over_null.n > 0
    no_null = _no_labelled_null(arms, by_arm) if ratios else _NO_SETS
    return split_metrics(effects, over_null if has_null else None, no_null=no_null)


def _unanswered(arms: Arms, by_arm: Mapping[str, ArmResults]) -> list[Unanswered]:
    refusals = [
        Unanswered("attention_ratio", arm, _NO_SETS)
        for arm, found in by_arm.items()
        if arm != arms.greedy and not found.ratio
    ]
    refusals += [
        Unanswered("head_table", arm, _NO_ROWS)
        for arm, found in by_arm.items()
        if found.heads is None
    ]
    null = by_arm.get(arms.greedy) if arms.greedy else None
    if null is None:
        refusals.append(Unanswered("null", arms.greedy or "greedy", _NO_GREEDY))
    elif null.heads is None:
        refusals.append(Unanswered("attention_ratio_null", str(arms.greedy), _NO_ROWS))
    return refusals
