"""Analyse a run: every question, every arm, one document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from analysis.arms import Arms, arms_of, pair_name
from analysis.divergence import Divergence, PromptDivergence, divergence, prompt_divergence
from analysis.entropy import EntropyFunnel, entropy_funnel
from analysis.heads import KINDS, MEASURES, RULE, HeadTable, head_table
from analysis.isolation import SiblingMass, sibling_mass
from analysis.measure import Axes, PromptMeasures, measure_prompt
from analysis.metrics import (
    Column,
    Metric,
    arm_metrics,
    metric_row,
    missing_ratio_metrics,
    null_metrics,
    pair_metrics,
    ratio_metrics,
)
from analysis.ratio import AttentionRatio, Sink, attention_ratio
from analysis.statistics import SEED
from analysis.widths import Widths, widths
from tempo.errors import InputError, NoParallelSetsError
from tempo.manifest import Run

FORMAT = 1
SINKS: tuple[Sink, Sink] = ("without", "with")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A question that the data cannot answer, and why."""

    question: str
    arm: str
    reason: str


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
class Results:
    """Everything that `analyze` found; intervals are over prompts.

    Attributes:
        arms: Free-running arms, the null among them.
        greedy: The null arm, None where the run has none.
        replays: Replay arm to the arm whose sets it replayed; used for `divergence` only.
        n_prompts: Prompts of the run.
        metrics: One row for each number, beside its chance value, null and verdict.
        by_arm: Curves and tables of each arm.
        divergence: By pair, as `isolated|visible`.
        refusals: Questions without an answer.
    """

    arms: tuple[str, ...]
    greedy: str | None
    replays: Mapping[str, str]
    n_prompts: int
    metrics: tuple[Metric, ...]
    by_arm: Mapping[str, ArmResults]
    divergence: Mapping[str, Divergence]
    refusals: tuple[Refusal, ...]

    def document(self) -> dict[str, Any]:
        """The content of `results.json`: plain JSON values, `None` where there is no data."""
        return {
            "format": FORMAT,
            "arms": list(self.arms),
            "n_prompts": self.n_prompts,
            "metrics": [plain(metric_row(metric)) for metric in self.metrics],
            "detail": {
                "greedy": self.greedy,
                "replays": dict(self.replays),
                "metrics": plain(self.metrics),
                "by_arm": plain(self.by_arm),
                "divergence": plain(self.divergence),
                "refusals": plain(self.refusals),
                "heads": {"measures": list(MEASURES), "kinds": list(KINDS), "rule": RULE},
            },
        }

    def json(self) -> str:
        """The document as text, the same for the same run."""
        return json.dumps(self.document(), allow_nan=False, indent=1) + "\n"


def plain(value: Any) -> Any:
    """Dataclasses, arrays and mappings as JSON values; NaN and infinities become `None`."""
    if is_dataclass(value):
        return {column.name: plain(getattr(value, column.name)) for column in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def analyze(run: Run) -> Results:
    """Ask every question of every arm.

    With fewer than 8 prompts there are estimates without intervals, and the verdicts say so.

    Raises:
        InputError: The run holds nothing to analyse, or its traces do not fit together.
    """
    arms = arms_of(run)
    columns = _measure(run, arms)
    axes = _axes(columns)
    seed = int(run.settings.get("seed", SEED))
    by_arm = {
        arm: _combine(column, axes, is_null=arm == arms.greedy, seed=seed)
        for arm, column in columns.items()
    }
    pairs, refused_pairs = _divergences(run, arms)
    metrics = [
        *(metric for arm in by_arm for metric in _metrics(arm, arms, columns, by_arm, seed=seed)),
        *(row for pair, prompts in pairs.items() for row in pair_metrics(pair, prompts, seed=seed)),
    ]
    return Results(
        arms=tuple(by_arm),
        greedy=arms.greedy if arms.greedy in by_arm else None,
        replays=arms.replays,
        n_prompts=len(run.prompts),
        metrics=tuple(metrics),
        by_arm=by_arm,
        divergence={pair: divergence(prompts, seed=seed) for pair, prompts in pairs.items()},
        refusals=(*_unanswered(arms, by_arm), *refused_pairs),
    )


_NO_SETS = "no data: no row sees a slot of a parallel set and another earlier slot"
_NO_ROWS = "its traces were reduced to group masses; capture rows (level weights or qk)"
_NO_GREEDY = "the run has no greedy arm"


def _measure(run: Run, arms: Arms) -> dict[str, Column]:
    """One column for each free arm with traces, a place for each prompt of the run.

    A trace whose prompt was never written, as a killed run may leave it, counts as absent.
    """
    measured = []
    for prompt in run.prompts:
        pairs = ((arm, run.traces.get((prompt.id, arm))) for arm in arms.free)
        traces = {arm: trace for arm, trace in pairs if trace and trace.header.last_step >= 0}
        measured.append(measure_prompt(traces, arms))
    return {
        arm: [one.get(arm) for one in measured]
        for arm in arms.free
        if any(arm in one for one in measured)
    }


def _axes(columns: Mapping[str, Column]) -> Axes:
    axes = {one.axes for column in columns.values() for one in column if one is not None}
    if len(axes) != 1:
        raise InputError(
            "expected traces that all keep the same layers and heads, got "
            + (f"{len(axes)} different choices" if axes else "a run without a decoded trace")
        )
    return axes.pop()


def _combine(column: Column, axes: Axes, *, is_null: bool, seed: int) -> ArmResults:
    layers, heads = axes
    present = [one for one in column if one is not None]
    tables = [one.heads for one in present if one.heads is not None]
    siblings = [one.siblings for one in present]
    return ArmResults(
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
    except NoParallelSetsError:
        return {}


def _metrics(
    arm: str,
    arms: Arms,
    columns: Mapping[str, Column],
    by_arm: Mapping[str, ArmResults],
    *,
    seed: int,
) -> list[Metric]:
    if arm == arms.greedy:
        return null_metrics(arm, columns[arm], seed=seed)
    null = by_arm.get(arms.greedy) if arms.greedy else None
    no_null = "" if null else f"no null: {_NO_GREEDY}"
    unlabelled = f"no null: {_NO_ROWS}" if null and null.heads is None else no_null
    ratios = list(by_arm[arm].ratio.values())
    return [
        *(ratio_metrics(arm, ratios, no_null=unlabelled) or missing_ratio_metrics(arm, _NO_SETS)),
        *arm_metrics(arm, columns[arm], columns.get(arms.greedy or ""), no_null=no_null, seed=seed),
    ]


def _unanswered(arms: Arms, by_arm: Mapping[str, ArmResults]) -> list[Refusal]:
    refusals = [
        Refusal("attention_ratio", arm, _NO_SETS)
        for arm, found in by_arm.items()
        if arm != arms.greedy and not found.ratio
    ]
    refusals += [
        Refusal("head_table", arm, _NO_ROWS) for arm, found in by_arm.items() if found.heads is None
    ]
    null = by_arm.get(arms.greedy) if arms.greedy else None
    if null is None:
        refusals.append(Refusal("null", arms.greedy or "greedy", _NO_GREEDY))
    elif null.heads is None:
        refusals.append(Refusal("attention_ratio_null", str(arms.greedy), _NO_ROWS))
    return refusals


def _divergences(run: Run, arms: Arms) -> tuple[dict[str, list[PromptDivergence]], list[Refusal]]:
    """Prompts of each pair on identical tokens, and the pairs that are not."""
    pairs, refusals = {}, []
    for replay, source in arms.replays.items():
        name = pair_name(source, replay)
        try:
            prompts = [prompt_divergence(*both) for _, both in run.pairs(source, replay)]
        except InputError as error:
            refusals.append(Refusal("divergence", name, str(error)))
        else:
            pairs |= {name: prompts} if prompts else {}
    return pairs, refusals
