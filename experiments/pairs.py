"""Twins of a run prompt by prompt, the rows that compare them, and what is said of a row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from experiments.finding import shown
from experiments.result import hash_of, made_by, write_document
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import arms_of
from tempo_analysis.parallel.divergence import MEASURES
from tempo_analysis.parallel.metrics import NONE, Metric, metric_row, twin_metrics
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.twins import (
    ROW_NUMBERS,
    PromptTwin,
    RowNumbers,
    prompt_twin,
    row_numbers,
    twin_over_prompts,
)
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import Scale, change_verdict

Row = Mapping[str, Any]
Values = Float64[np.ndarray, " prompt"]


@dataclass(frozen=True, slots=True)
class Twins:
    """Every prompt of a run under its reference and under twins of it.

    Attributes:
        reference: The first arm, whose sets the twins were fed.
        rows: Row numbers of the reference, one entry for each prompt.
        by_change: The same prompts under each change, by its name.
    """

    reference: str
    rows: tuple[RowNumbers, ...]
    by_change: Mapping[str, tuple[PromptTwin, ...]]

    def column(self, change: str, name: str) -> Values:
        """One of `ROW_NUMBERS` (twin less reference) or of `MEASURES` (mean over steps)."""
        twins = self.by_change[change]
        if name in ROW_NUMBERS:
            return np.array([getattr(one.change, name) for one in twins])
        number = MEASURES.index(name)
        return np.array([one.readouts.overall()[number] for one in twins if one.readouts])

    def metrics(self) -> list[Metric]:
        """The rows of every twin, as `tempo analyze` has them."""
        made: list[Metric] = []
        for change, twins in self.by_change.items():
            arm = twin_arm(change, self.reference)
            made += twin_metrics(twin_over_prompts(arm, self.reference, twins))
        return made


def twin_arm(change: str, reference: str) -> str:
    """The name of a twin among the arms of a run."""
    return f"{change}@{reference}"


def changes_of(run: Run) -> list[str]:
    """The names of all twins of a run, as they were asked for."""
    return [arm.partition("@")[0] for arm in arms_of(run).replays]


def read_twins(run: Run, changes: Iterable[str]) -> Twins:
    """Compare every prompt with its twins.

    Raises:
        TwinError: A twin differs in more than its change.
    """
    reference, axes = run.arms[0], arms_of(run).axes
    found: dict[str, list[PromptTwin]] = {change: [] for change in changes}
    numbers: list[RowNumbers] = []
    for prompt in run.prompts:
        trace = run.trace(prompt.id, reference)
        numbers.append(row_numbers(observe(trace)))
        for change, twins in found.items():
            arm = twin_arm(change, reference)
            twin = run.trace(prompt.id, arm)
            twins.append(prompt_twin(trace, twin, allowed=axes[arm], rows=numbers[-1]))
    return Twins(reference, tuple(numbers), {name: tuple(one) for name, one in found.items()})


def compared_with(
    values: Values, other: str, *, name: str, arm: str, scale: Scale = "difference"
) -> Metric:
    """A row for values less those of another arm; as a factor where they are log-ratios."""
    found = estimate_with_interval(np.asarray(values, np.float64))
    text = change_verdict(found, "the reference", scale=scale).replace("the reference", other)
    if scale == "ratio":
        return Metric(name, arm, "factor", found.exponentiated(), 1.0, NONE, text)
    return Metric(name, arm, "", found, 0.0, NONE, text)


def write_run(
    out: Path,
    run: Run,
    metrics: Sequence[Metric],
    *,
    made_for: tuple[str, bool],
    detail: Mapping[str, Any],
    arms: Sequence[str] | None = None,
    n_sets: Mapping[str, int] | None = None,
) -> None:
    """Write `result.json` of an experiment on one run.

    Args:
        made_for: The experiment, and whether it was quick.
        detail: Curves and checks beside the metrics.
        arms: Those that were read; all if not given.
        n_sets: Sets that the numbers are over; all of two or more members if not given.
    """
    used = run.arms if arms is None else arms
    traces = {key: trace for key, trace in run.traces.items() if key[1] in used}
    experiment, quick = made_for
    made = made_by(
        experiment,
        command=f"python experiments/{experiment}/run.py" + " --quick" * quick,
        facts=run.settings["model_facts"],
        versions=run.settings["versions"],
        trace_hash=hash_of((name, arm, trace.slots) for (name, arm), trace in traces.items()),
    )
    counted = dict.fromkeys(used, 0)
    for (_, arm), trace in traces.items():
        counted[arm] += int((trace.slots.rank == 1).sum())
    document = {
        "metrics": [metric_row(metric) for metric in metrics],
        "n_sets": counted if n_sets is None else n_sets,
        "detail": detail,
    }
    write_document(out, document, made=made, prompts=[prompt.id for prompt in run.prompts])


def said(row: Row) -> str:
    """An estimate with its interval, or that there is none."""
    if row["estimate"] is None:
        return "no data"
    if row["low"] is None:
        return f"{row['estimate']:.3g} (no interval)"
    if row["low"] == row["high"]:
        return shown(row)
    digits = next(d for d in range(3, 18) if f"{row['low']:.{d}g}" != f"{row['high']:.{d}g}")
    middle, low, high = (f"{row[limit]:.{digits}g}" for limit in ("estimate", "low", "high"))
    return f"{middle} ({low} to {high})"


def listed(rows: Mapping[str, Row]) -> str:
    """Several rows behind their names."""
    return "; ".join(f"{name} {said(row)}" for name, row in rows.items())


def number(value: float | None) -> str:
    """A number without an interval."""
    return "no data" if value is None else f"{value:.3g}"


def below(row: Row, value: float) -> bool:
    """Whether the interval lies below a value; False without an interval."""
    return row["high"] is not None and row["high"] < value


def above(row: Row, value: float) -> bool:
    """Whether the interval lies above a value; False without an interval."""
    return row["low"] is not None and row["low"] > value


def outside(row: Row, low: float, high: float) -> bool:
    """Whether the interval has nothing in common with the range between two values."""
    return below(row, low) or above(row, high)


def within(row: Row, low: float, high: float) -> bool:
    """Whether the interval lies between two values."""
    return above(row, low) and below(row, high)
