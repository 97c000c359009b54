"""Numbers in words: each with its interval, its chance value, its null and its verdict."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.parallel.run_numbers import RunNumbers
from tempo_analysis.report.numbers import number

NAMES = {
    "attention_ratio_without_sink": "weight per set slot over weight per other slot but slot 0",
    "attention_ratio_with_sink": "weight per set slot over weight per other slot, slot 0 included",
    "normalised_entropy_without_sink": "normalised entropy of attention without slot 0",
    "sink_mass": "attention on slot 0",
    "sibling_mass": "attention on siblings",
    "repetition": "repeated trigrams of the top path",
    "parallel_verdict": "mass of a member in its set over its mass alone",
    "score_drift": "down-weighting, the score of a member in its set against alone",
    "competition": "dilution, the mass on the prompt in the set against alone",
    "paired_ratio_without_sink": "weight per set slot over weight per other slot but slot 0, over "
    "the same in the reference",
    "readout_js": "Jensen-Shannon divergence of the readouts on identical tokens",
}
"""Metrics that are said in sentences, in words."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One number in words: its arm, its name, its value and its verdict."""

    arm: str
    what: str
    value: str
    verdict: str


def sentences(results: RunNumbers) -> Iterator[Sentence]:
    """The numbers that have a sentence (`NAMES`), in the order of the results."""
    for metric in results.metrics:
        if metric.name in NAMES:
            yield Sentence(metric.arm, NAMES[metric.name], _value(metric), metric.verdict)


def _value(metric: Metric) -> str:
    found = metric.interval
    limits = f"{number(found.low)} to {number(found.high)}"
    # Without limits the method says why, for example too few prompts.
    beside = [f"95 % interval {limits}, {found.method}" if np.isfinite(found.low) else found.method]
    beside += [f"{found.n} prompts"]
    beside += [f"chance {number(metric.chance)}"] if np.isfinite(metric.chance) else []
    beside += [f"null {number(metric.null)}"] if np.isfinite(metric.null) else []
    return f"{number(found.estimate)} ({'; '.join(beside)})"
