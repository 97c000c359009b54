"""Runs e11 and writes result.json; `question.md` says what is asked and what was predicted."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import asked
from experiments.e11_controls.low_probability import (
    LowProbability,
    Probabilities,
    low_probability,
    probabilities,
)
from experiments.e11_controls.rows import (
    Logs,
    change_row,
    control_rows,
    distance_rows,
    plain_row,
    share_rows,
)
from experiments.limits import n_sets
from experiments.result import made_by, trace_hash, write_document
from experiments.standard import paired_run
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.distance import PairedDistances, matched_ratio, paired_distances
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.ratio import PairedRatio, attention_ratio, paired_ratio
from tempo_analysis.parallel.relevance import PromptRelevance, prompt_relevance, relevance
from tempo_analysis.parallel.widths import (
    Collapse,
    PromptCollapse,
    collapse,
    prompt_collapse,
    without_collapsed,
)

HERE = Path(__file__).parent
NULL = "greedy"
SINKS = ("without", "with")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What every prompt shows, under the arm and beside its greedy run."""

    plain: list[PairedRatio] = field(default_factory=list)
    distance: list[PairedDistances] = field(default_factory=list)
    values: list[PromptRelevance] = field(default_factory=list)
    low: list[LowProbability] = field(default_factory=list)
    probabilities: list[Probabilities] = field(default_factory=list)
    collapse: list[PromptCollapse] = field(default_factory=list)
    greedy_collapse: list[PromptCollapse] = field(default_factory=list)


def main(quick: bool, out: Path) -> None:
    options = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    run = paired_run(quick=quick)
    prompts = measured(run, options["arm"], below=options["low_probability_below"])
    trace = next(iter(run))
    axes = {"layers": trace.layers, "heads": trace.heads}
    made = made_by(
        HERE.name,
        command=f"python experiments/{HERE.name}/run.py" + " --quick" * quick,
        facts=run.settings["model_facts"],
        versions=run.settings["versions"],
        trace_hash=trace_hash(run),
    )
    document = {
        "metrics": metrics(prompts, options["arm"], axes),
        "options": options,
        "n_sets": n_sets(run),
        "detail": detail(prompts, axes),
    }
    write_document(out, document, made=made, prompts=[prompt.id for prompt in run.prompts])


def measured(run: Run, arm: str, *, below: float) -> Prompts:
    """Read every prompt once."""
    found = Prompts()
    for _, (own, null) in run.pairs(arm, NULL):
        seen, greedy = observe(own), observe(null)
        labels = inherited_labels(own.slots, null.slots)
        found.plain.append(paired_ratio(seen, greedy, labels))
        found.distance.append(paired_distances(seen, greedy, labels))
        found.values.append(prompt_relevance(own, null))
        found.low.append(low_probability(seen, own.slots, greedy, below=below))
        found.probabilities.append(probabilities(own.slots, below=below))
        found.collapse.append(prompt_collapse(own))
        found.greedy_collapse.append(prompt_collapse(null))
    return found


def metrics(prompts: Prompts, arm: str, axes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ratio, its null and the ratio over its null, plain and under each control."""
    rows: list[Mapping[str, Any]] = []
    plain = {sink: attention_ratio(prompts.plain, sink=sink, **axes) for sink in SINKS}
    values = {sink: relevance(prompts.values, sink=sink, **axes) for sink in SINKS}
    matched = matched_ratio(prompts.distance, **axes)
    collapsed = [collapse(each) for each in (prompts.collapse, prompts.greedy_collapse)]
    for sink in SINKS:
        own, weighted = Logs.of(plain[sink]), Logs.of(values[sink].ratio)
        kept = own.each(lambda logs: without_collapsed(logs, *collapsed))
        rows += control_rows(f"plain_{sink}_sink", arm, own)
        rows += control_rows(f"value_weighted_{sink}_sink", arm, weighted)
        rows += control_rows(f"uncollapsed_{sink}_sink", arm, kept)
        for part in ("ratio", "over_null"):
            change = getattr(weighted, part) - getattr(own, part)
            name = f"value_weighted_over_plain_{sink}_sink_{part}"
            rows.append(change_row(name, arm, change, "the plain one"))
    low = [
        np.array([getattr(one, f"log_{part}") for one in prompts.low])
        for part in ("ratio", "null", "over_null")
    ]
    rows += distance_rows(matched, arm)
    rows += control_rows("low_probability", arm, Logs(*low))
    rows += share_rows(values["without"], arm)
    rows += collapse_rows(collapsed, arm)
    return rows


def collapse_rows(collapsed: Sequence[Collapse], arm: str) -> list[Mapping[str, Any]]:
    """How many prompts collapse, in the arm and in the greedy run."""
    return [
        plain_row("collapse_rate", name, one.rate)
        for name, one in zip((arm, NULL), collapsed, strict=True)
    ]


def detail(prompts: Prompts, axes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Counts behind the controls."""
    matched = matched_ratio(prompts.distance, **axes)
    by_head = matched.log_ratio_by_head
    members, singles = (np.concatenate(each) for each in zip(*prompts.probabilities, strict=True))
    ends = zip(prompts.collapse, prompts.greedy_collapse, strict=True)
    return {
        "distance": {
            "matched_own": int(matched.n_own.sum()),
            "matched_pooled": int(matched.n_pooled.sum()),
            "left_out": int(matched.n_left_out.sum()),
            "heads_below_one": int((by_head < 0).sum()),
            "heads_with_data": int((~np.isnan(by_head)).sum()),
        },
        "collapsed_prompts": int(sum(a.is_collapsed or b.is_collapsed for a, b in ends)),
        "low_singles": len(singles),
        "mean_probability": {
            kind: float(each.mean()) if each.size else None
            for kind, each in (("members", members), ("low_singles", singles))
        },
    }


if __name__ == "__main__":
    asked(main, HERE)
