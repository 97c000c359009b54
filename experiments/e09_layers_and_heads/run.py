"""Runs e09 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import asked
from experiments.e09_layers_and_heads.heads import head_detail, index_metrics, index_tests, table_of
from experiments.e09_layers_and_heads.layers import ENTROPIES, arm_difference, by_layer
from experiments.limits import curve_rows, difference_metric, n_sets
from experiments.result import made_by, trace_hash, write_document
from experiments.standard import compared
from experiments.thirds import third_metrics
from tempo.trace.run import Run
from tempo_analysis.parallel.entropy import PromptEntropy, prompt_entropy
from tempo_analysis.parallel.head_kinds import PromptHeads, prompt_heads
from tempo_analysis.parallel.metrics import Metric, metric_row
from tempo_analysis.parallel.observation import observe
from tempo_analysis.stats.intervals import estimate_with_interval

HERE = Path(__file__).parent
NULL = "greedy"


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm, prompt by prompt; the prompts of all arms are the same, in the same order."""

    entropy: Sequence[PromptEntropy]
    heads: Sequence[PromptHeads]


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    arms = tuple(options["arms"])
    run = compared("free", arms, quick=quick, capture="weights")
    found = measured(run, arms)
    trace = next(iter(run))
    tables = {
        arm: table_of(one.heads, layers=trace.layers, heads=trace.heads)
        for arm, one in found.items()
    }
    tests = {arm: index_tests(table, options) for arm, table in tables.items()}
    metrics = [
        *(one for arm in arms for one in entropy_metrics(arm, found)),
        *(
            one
            for arm in arms
            for one in index_metrics(arm, found[arm].heads, tests[arm], options["measures"])
        ),
    ]
    made = made_by(
        HERE.name,
        command=f"python experiments/{HERE.name}/run.py" + " --quick" * quick,
        facts=run.settings["model_facts"],
        versions=run.settings["versions"],
        trace_hash=trace_hash(run),
    )
    document = {
        "metrics": [metric_row(one) for one in metrics],
        "options": options,
        "n_sets": n_sets(run),
        "layers": trace.layers,
        "detail": {
            "entropy_less_greedy_by_layer": differences(found),
            "heads": {
                arm: head_detail(table, tests[arm], found[arm].heads)
                for arm, table in tables.items()
            },
        },
    }
    write_document(out, document, made=made, prompts=[prompt.id for prompt in run.prompts])


def measured(run: Run, arms: tuple[str, ...]) -> dict[str, Arm]:
    """Every prompt under every arm, each trace read once."""
    found: dict[str, Arm] = {arm: Arm([], []) for arm in arms}
    for _, traces in run.pairs(*arms):
        for arm, trace in zip(arms, traces, strict=True):
            seen = observe(trace)
            entropy = prompt_entropy(seen)
            found[arm].entropy.append(entropy)
            found[arm].heads.append(prompt_heads(seen, entropy))
    return found


def entropy_metrics(arm: str, found: Mapping[str, Arm]) -> list[Metric]:
    """Thirds of the layers, and the whole beside the greedy run of the same prompts."""
    made: list[Metric] = []
    for name in ENTROPIES:
        values = by_layer(found[arm].entropy, name)
        made += third_metrics(name, arm, values, logarithms=False)
        if arm != NULL:
            apart = np.nanmean(values - by_layer(found[NULL].entropy, name), -1)
            interval = estimate_with_interval(apart)
            made.append(difference_metric(f"{name}_less_greedy", arm, "", interval, NULL))
    return made


def differences(found: Mapping[str, Arm]) -> dict[str, Any]:
    """For every arm and layer: normalised entropy less that of the greedy run."""
    return {
        name: {
            arm: curve_rows(arm_difference(one.entropy, found[NULL].entropy, name))
            for arm, one in found.items()
            if arm != NULL
        }
        for name in ENTROPIES
    }


if __name__ == "__main__":
    asked(main, HERE)
