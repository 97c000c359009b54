"""Runs e03 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import asked
from experiments.e03_split.checks import agreement, layer_zero_drift, mass_weighted_drift
from experiments.limits import (
    alone_arm,
    curve_rows,
    difference_metric,
    factor_metric,
    n_sets,
)
from experiments.result import made_by, trace_hash, write_document
from experiments.standard import paired_run, prompts
from experiments.thirds import third_metrics
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import arms_of, inherited_labels
from tempo_analysis.parallel.metrics import Metric, metric_row, refused_split_metric, split_metrics
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.ratio import Sink, attention_ratio, paired_ratio
from tempo_analysis.parallel.score_drift_controls import (
    LambdaSlopes,
    Slopes,
    lambda_slopes,
    prompt_lambdas,
)
from tempo_analysis.parallel.set_effect import SetEffect, decomposition, prompt_split, set_effects
from tempo_analysis.stats.intervals import Interval, estimate_with_interval

HERE = Path(__file__).parent
PARTS = {"first": "first", "all": "all_sets"}
SLOPES = ("rank", "log_probability", "rank_given_probability", "probability_given_rank")


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = paired_run(quick=quick)
    effects, refused = set_effects(run, arms_of(run))
    arm = alone_arm(run)
    metrics = [refused_split_metric(one) for one in refused]
    if effects:
        metrics = [
            *split_metrics(effects, over_null(run, arm), no_null="the run has no greedy arm"),
            *thirds_of(run, arm),
            *slope_metrics(slopes_of(run, arm), arm),
            factor_metric(
                "score_drift_weighted_by_mass",
                arm,
                estimate_with_interval(np.array(mass_weighted_drift(run))),
                "a token alone",
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
        "arm": arm,
        "options": options,
        "n_sets": n_sets(run),
        "checks": checks(run, members=options["members_again"]),
        "detail": detail(effects),
    }
    write_document(out, document, made=made, prompts=[prompt.id for prompt in run.prompts])


def over_null(run: Run, arm: str) -> Interval:
    """The sink-free row ratio over the same ratio on the labelled greedy run."""
    pairs = [
        paired_ratio(observe(own), observe(null), inherited_labels(own.slots, null.slots))
        for _, (own, null) in run.pairs(arm, str(arms_of(run).greedy))
    ]
    trace = next(iter(run))
    found = attention_ratio(pairs, sink="without", layers=trace.layers, heads=trace.heads)
    return found.over_null


def thirds_of(run: Run, arm: str) -> list[Metric]:
    """Drift in the early, middle and late layers, of all sets and of first sets."""
    found = decomposition(
        [
            prompt_split(trace, run.alone(prompt.id), reference="without")
            for prompt, (trace,) in run.pairs(arm)
        ]
    )
    return [
        metric
        for prefix, split in (("", found.all_sets), ("first_", found.first))
        for metric in third_metrics(
            f"{prefix}score_drift", arm, split.by_layer.drift, logarithms=True
        )
    ]


def slopes_of(run: Run, arm: str) -> LambdaSlopes:
    """Lambda by rank and probability within sets."""
    return lambda_slopes(
        [
            prompt_lambdas(trace, run.alone(prompt.id), reference="without")
            for prompt, (trace,) in run.pairs(arm)
        ]
    )


def slope_metrics(found: LambdaSlopes, arm: str) -> list[Metric]:
    """Nats of lambda for each rank further down, and for each nat of probability."""
    kinds: dict[str, Slopes] = {
        "lambda_in_set": found.in_set,
        "lambda_alone": found.alone,
        "drift": found.drift,
    }
    return [
        difference_metric(f"{kind}_by_{name}", arm, "nats", getattr(slopes, name), "no slope")
        for kind, slopes in kinds.items()
        for name in SLOPES
    ]


def checks(run: Run, *, members: int) -> Mapping[str, Any]:
    """What must hold whatever the answer is."""
    first, whole = layer_zero_drift(run)
    return {
        "agreement": agreement(run, prompts(quick=True), members=members),
        "layer_zero_first_sets_nats": first,
        "layer_zero_all_sets_nats": whole,
    }


def detail(effects: Mapping[Sink, SetEffect]) -> Mapping[str, Any]:
    """Curves by layer, each with a band that holds in all layers at once, and heads."""
    if not effects:
        return {}
    plain = effects["without"]
    first, whole = (getattr(plain, part) for part in PARTS.values())
    return {
        "layers": whole.by_layer["drift"].x,
        "by_layer": {
            name: {key: curve_rows(curve) for key, curve in part.by_layer.items()}
            for name, part in (("first", first), ("all", whole))
        },
        "heads_below_above_tested": {
            sink: {name: getattr(one, part).heads_off_alone() for name, part in PARTS.items()}
            for sink, one in effects.items()
        },
        "n_sets_split": plain.n_sets,
        "n_prompts_with_first_set": int(np.sum(~np.isnan(first.log_by_prompt.drift))),
        "n_members": plain.n_members,
        "n_sets_left_out": plain.n_left_out,
    }


if __name__ == "__main__":
    asked(main, HERE)
