"""Runs e06 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import asked
from experiments.e06_bias.response import Response, responses
from experiments.pairs import Twins, changes_of, compared_with, read_twins, twin_arm, write_run
from experiments.standard import compared
from tempo.trace.run import Run
from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.bands import band
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import change_verdict

HERE = Path(__file__).parent
BOOST = "boost:"
RATIO = "log_ratio_without_sink"
NOT_A_BIAS = "visible"
STRONGEST_CUT = "boost:-1"
MILD = ("mass-neutral", "log-weight")
By = Mapping[str, Sequence[Response]]


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = compared(HERE.name, tuple(options.pop("arms")), quick=quick, **options)
    twins = read_twins(run, changes_of(run))
    found = read_responses(run, list(twins.by_change))
    biases = [change for change in found if change != NOT_A_BIAS]
    metrics = [
        *twins.metrics(),
        *(row for change in biases for row in response_metrics(found[change], change)),
        *(
            row
            for change in biases
            if change.startswith(BOOST)
            for row in over_exp_beta(twins, found[change], change)
        ),
        *js_differences(twins, biases),
    ]
    write_run(out, run, metrics, made_for=(HERE.name, quick), detail=detail(found, biases))


def read_responses(run: Run, changes: Sequence[str]) -> dict[str, list[Response]]:
    """Every twin on the prompts where a set is followed by another."""
    reference = run.arms[0]
    found: dict[str, list[Response]] = {change: [] for change in changes}
    for prompt in run.prompts:
        twins = [run.trace(prompt.id, twin_arm(change, reference)) for change in changes]
        many = responses(run.trace(prompt.id, reference), twins)
        for change, one in zip(changes, many or [], strict=bool(many)):
            found[change].append(one)
    return found


def response_metrics(prompts: Sequence[Response], change: str) -> list[Metric]:
    """Rows within themselves, entropy of the readout, and what the reference went on with."""
    odds = np.array([np.nanmean(one.row_log_odds) for one in prompts])
    entropy = np.array([one.log_entropy for one in prompts])
    found = estimate_with_interval(np.array([one.next_mass for one in prompts]))
    before = float(np.mean([one.next_mass_of_reference for one in prompts]))
    text = change_verdict(found, "the reference", scale="difference")
    return [
        compared_with(odds, "no bias", name="row_odds", arm=change, scale="ratio"),
        compared_with(entropy, "no bias", name="readout_entropy_ratio", arm=change, scale="ratio"),
        Metric("next_set_probability_change", change, "", found, 0.0, before, text),
    ]


def over_exp_beta(twins: Twins, prompts: Sequence[Response], change: str) -> list[Metric]:
    """The row ratio, and the odds row by row, over the reference and as factors of exp(beta)."""
    beta = float(change.removeprefix(BOOST))
    logs = {
        "paired_ratio_over_exp_beta": twins.column(change, RATIO),
        "row_odds_over_exp_beta": np.array([np.nanmean(one.row_log_odds) for one in prompts]),
    }
    return [
        compared_with(values - beta, "exp(beta)", name=name, arm=change, scale="ratio")
        for name, values in logs.items()
    ]


def js_differences(twins: Twins, biases: Sequence[str]) -> list[Metric]:
    """How far the readouts move beside visible siblings, and beside a cut."""
    js = {change: twins.column(change, "js") for change in twins.by_change}
    pairs = [(change, NOT_A_BIAS, "js_less_visible") for change in biases]
    pairs += [(change, STRONGEST_CUT, "js_less_cut") for change in MILD]
    return [
        compared_with(js[change] - js[other], other, name=name, arm=change)
        for change, other, name in pairs
    ]


def detail(found: By, biases: Sequence[str]) -> dict[str, Any]:
    """By layer the mass on sets and the odds within rows, and the check of the first layer."""
    mass = {change: np.stack([one.set_mass for one in found[change]]) for change in biases}
    odds = {change: np.stack([one.row_log_odds for one in found[change]]) for change in biases}
    layers = np.arange(next(iter(mass.values())).shape[1])
    return {
        "first_layer_distance_from_beta": {
            change: max(_distance(one, float(change.removeprefix(BOOST))) for one in found[change])
            for change in biases
            if change.startswith(BOOST)
        },
        "set_mass_change_by_layer": {c: _limits(layers, values) for c, values in mass.items()},
        "row_log_odds_by_layer": {c: mean_over_prompts(values) for c, values in odds.items()},
    }


def _distance(one: Response, beta: float) -> float:
    return max(abs(end - beta) for end in one.first_layer)


def _limits(layers: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """A band: limits for all layers at once."""
    curve = band(layers, values)
    return {name: getattr(curve, name) for name in ("estimate", "low", "high")}


if __name__ == "__main__":
    asked(main, HERE)
