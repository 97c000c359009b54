"""Runs e02 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from experiments.command import asked
from experiments.e02_isolation.spread import SINKS, Axes, spread_detail, spread_metrics
from experiments.pairs import read_twins, twin_arm, write_run
from experiments.standard import paired_run
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.metrics import Metric, ratio_metrics
from tempo_analysis.parallel.observation import ObservedTrace, observe
from tempo_analysis.parallel.ratio import PairedRatio, attention_ratio, paired_ratio
from tempo_analysis.parallel.within_set import PromptIntraStep, prompt_intra_step

HERE = Path(__file__).parent
Spread = dict[str, list[PromptIntraStep]]
Ratios = dict[str, list[PairedRatio]]


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    changes, null = options["twins"], options["null"]
    run = paired_run(quick=quick)
    reference = run.arms[0]
    arms = {reference: reference} | {one: twin_arm(one, reference) for one in changes}
    ratios, spread, axes = read(run, arms, null)
    metrics = [*read_twins(run, changes).metrics(), *levels(ratios, axes)]
    for arm in changes:
        metrics += spread_metrics(arm, spread[arm], axes)
    write_run(
        out,
        run,
        metrics,
        made_for=(HERE.name, quick),
        detail={arm: spread_detail(found, axes) for arm, found in spread.items()},
        arms=[*arms.values(), null],
    )


def read(run: Run, arms: dict[str, str], null: str) -> tuple[Ratios, Spread, Axes]:
    """Every arm beside the greedy run of its prompt, and what its siblings pay each other."""
    ratios: Ratios = {name: [] for name in arms}
    spread: Spread = {name: [] for name in arms}
    axes: Axes = ((), ())
    for prompt in run.prompts:
        greedy = run.trace(prompt.id, null)
        seen_greedy = observe(greedy)
        axes = (greedy.layers, greedy.heads)
        for name, arm in arms.items():
            trace = run.trace(prompt.id, arm)
            seen: ObservedTrace = observe(trace)
            labels = inherited_labels(trace.slots, greedy.slots)
            ratios[name].append(paired_ratio(seen, seen_greedy, labels))
            spread[name].append(prompt_intra_step(seen))
    return ratios, spread, axes


def levels(ratios: Ratios, axes: Axes) -> Sequence[Metric]:
    """The row ratio of each arm beside chance and its null."""
    layers, heads = axes
    made: list[Metric] = []
    for name, prompts in ratios.items():
        found = [attention_ratio(prompts, sink=one, layers=layers, heads=heads) for one in SINKS]
        made += ratio_metrics(name, found, no_null="")
    return made


if __name__ == "__main__":
    asked(main, HERE)
