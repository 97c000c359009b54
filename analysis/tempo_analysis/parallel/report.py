"""The report of a run in words: sentences with intervals and nulls, and one Markdown text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from tempo.trace.run import Run
from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.parallel.run_numbers import RunNumbers
from tempo_analysis.parallel.tables import (
    SPLIT_TITLE,
    head_sentences,
    lattices,
    model_facts,
    split_sentences,
    tables_of,
)
from tempo_analysis.report.document import number
from tempo_analysis.report.figure_style import Drawing

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


REPORT_FILE = "report.md"
_TEMPLATE = Path(__file__).with_name("report.md.j2")


def report_text(run: Run, results: RunNumbers, drawings: Sequence[Drawing]) -> str:
    """The report in Markdown; it names the files of the drawings in `figures/`."""
    # No escaping: Markdown is no HTML, and cells are escaped by their own filter.
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        results=results,
        model=model_facts(run),
        sentences=list(sentences(results)),
        tables={table.name: table for table in tables_of(run, results)},
        head_sentences=head_sentences(results),
        split_title=SPLIT_TITLE,
        split_sentences=split_sentences(results),
        figures={one.title: f"{one.name}.png" for one in drawings},
        lattices=lattices(run, results),
    )
    # Sections that are left out leave their blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", text)


def _cell(value: object) -> str:
    """Text that stays inside its cell of a table."""
    # A `|` would end the cell and a line break the row.
    return " ".join(str(value).replace("|", "\\|").split())
