"""Runs e05 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import asked
from experiments.e05_duplicates.copies import Copies, compare_copies
from experiments.pairs import changes_of, compared_with, twin_arm, write_run
from experiments.standard import compared
from tempo.policy.override import parse_change
from tempo.trace.compare import check_axes
from tempo.trace.run import Run
from tempo_analysis.parallel.divergence import IDENTICAL
from tempo_analysis.parallel.metrics import NONE, Metric
from tempo_analysis.stats.bands import band
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import divergence_verdict

HERE = Path(__file__).parent
ONE = "duplicates:1"
NEUTRAL = "+mass-neutral"
READOUTS = ("js", "kl_forward", "top_1_overlap")
Prompts = Sequence[dict[str, Copies]]


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = compared(HERE.name, tuple(options.pop("arms")), quick=quick, **options)
    prompts = [found for found in read(run) if found]
    arms = list(prompts[0])
    plain = [arm for arm in arms if NEUTRAL not in arm]
    metrics = [metric for arm in arms for metric in metrics_of(prompts, arm)]
    metrics += [metric for arm in plain for metric in against_law(prompts, arm)]
    metrics += [
        metric
        for fewer, more in pairwise([ONE, *plain])
        for metric in increases(prompts, fewer, more)
    ]
    write_run(out, run, metrics, made_for=(HERE.name, quick), detail=detail(prompts, arms))


def read(run: Run) -> list[dict[str, Copies]]:
    """Every prompt under every number of copies; what differs is checked on the way."""
    copies_of = {change: parse_change(change).copies or 1 for change in changes_of(run)}
    found: list[dict[str, Copies]] = []
    for prompt in run.prompts:
        traces = {
            change: run.trace(prompt.id, twin_arm(change, run.arms[0])) for change in copies_of
        }
        for trace in traces.values():
            check_axes(traces[ONE], trace, ("tokens", "weights", "bias"))
        found.append(compare_copies(traces, one=ONE, copies_of=copies_of))
    return found


def metrics_of(prompts: Prompts, arm: str) -> list[Metric]:
    """Mass and readouts of n copies beside one copy."""
    mass = _values(prompts, arm, lambda one: one.mass.mean())
    single = _values(prompts, arm, lambda one: one.one.mean())
    change = compared_with(np.log(mass / single), "one copy", name="", arm=arm, scale="ratio")
    found = estimate_with_interval(mass)
    rows = [Metric("generated_mass", arm, "", found, NONE, float(single.mean()), change.verdict)]
    for name in READOUTS:
        values = _values(prompts, arm, lambda one, name=name: one.measure(name))
        interval = estimate_with_interval(values)
        text = "" if name == "top_1_overlap" else divergence_verdict(interval)
        rows.append(Metric(f"readout_{name}", arm, "", interval, IDENTICAL[name], NONE, text))
    return rows


def against_law(prompts: Prompts, arm: str) -> list[Metric]:
    """The mass over what the law says of layer means, over what it says of rows, and these two."""
    mass = _values(prompts, arm, lambda one: np.log(one.mass.mean()))
    by_layer = _values(prompts, arm, lambda one: np.log(one.by_layer.mean()))
    by_row = _values(prompts, arm, lambda one: np.log(one.by_row.mean()))
    logs = {
        "mass_over_law_of_layers": mass - by_layer,
        "mass_over_law_of_rows": mass - by_row,
        "law_of_rows_over_layers": by_row - by_layer,
    }
    return [
        compared_with(values, "the law", name=name, arm=arm, scale="ratio")
        for name, values in logs.items()
    ]


def increases(prompts: Prompts, fewer: str, more: str) -> list[Metric]:
    """What one copy more does to mass and readout; the mass of one copy stands beside each."""
    mass, js = (
        _values(prompts, more, value) - _values(prompts, fewer, value)
        if fewer != ONE
        else _values(prompts, more, value) - _values(prompts, more, single)
        for value, single in (
            (lambda one: one.mass.mean(), lambda one: one.one.mean()),
            (lambda one: one.measure("js"), lambda one: 0.0),
        )
    )
    return [
        compared_with(mass, fewer, name="mass_increase", arm=more),
        compared_with(js, fewer, name="js_increase", arm=more),
    ]


def detail(prompts: Prompts, arms: Sequence[str]) -> dict[str, Any]:
    """The largest differences anywhere, and the mass over the law layer by layer."""

    def largest(arm: str, name: str) -> float:
        return max(getattr(one[arm], name) for one in prompts)

    plain = [arm for arm in arms if NEUTRAL not in arm]
    same = ("mass_error", "largest_kl", "log_error")
    logs = np.stack([np.log(one[plain[-1]].mass / one[plain[-1]].by_row) for one in prompts])
    curve = band(np.arange(logs.shape[1]), logs).exponentiated()
    return {
        "largest_difference_from_one_copy": {
            arm: {name: largest(arm, name) for name in same} for arm in arms if NEUTRAL in arm
        },
        "largest_law_error_in_first_layer": {arm: largest(arm, "law_error") for arm in plain},
        "mass_over_law_of_rows_by_layer": {"arm": plain[-1], "curve": curve},
    }


def _values(prompts: Prompts, arm: str, value: Callable[[Copies], float]) -> np.ndarray:
    return np.array([value(one[arm]) for one in prompts], np.float64)


if __name__ == "__main__":
    asked(main, HERE)
