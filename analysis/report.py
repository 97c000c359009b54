"""Write what was found: `results.json`, `report.md` and the figures beside it."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from analysis.arms import arms_of
from analysis.canvas import save_figure
from analysis.heads import KINDS, RULE
from analysis.lattice import lattice_figure
from analysis.metrics import Metric
from analysis.plots import (
    divergence_figure,
    entropy_figure,
    head_figure,
    ratio_figure,
    split_figure,
)
from analysis.results import Results
from analysis.statistics import Interval
from analysis.tables import (
    arm_rows,
    fact_rows,
    head_rows,
    head_sentences,
    kind_rows,
    lattices,
    model_facts,
    ratio_rows,
    readout_rows,
    set_rows,
    split_rows,
    split_sentences,
    twin_rows,
)
from tempo.manifest import Run
from tempo.store import disk_errors
from tempo.trace import Trace

RESULTS_FILE = "results.json"
REPORT_FILE = "report.md"
FIGURES = "figures"
_TEMPLATE = Path(__file__).with_name("report.md.j2")
_NAMES = {
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


def write_report(run: Run, results: Results, folder: Path) -> Path:
    """Write `results.json`, `figures/` and `report.md` into a folder; gives the report's path.

    Each file appears whole or not at all.

    Raises:
        OutputError: The disk refused.
    """
    folder = Path(folder)
    with disk_errors(folder):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        write_results(results, folder)
        figures = _write_figures(run, results, folder / FIGURES)
        _write_whole(folder / REPORT_FILE, report_text(run, results, figures))
    return folder / REPORT_FILE


def write_results(results: Results, folder: Path) -> Path:
    """Write `results.json` alone, whole or not at all; gives its path.

    Raises:
        OutputError: The disk refused.
    """
    with disk_errors(folder):
        _write_whole(folder / RESULTS_FILE, results.json())
    return folder / RESULTS_FILE


def report_text(run: Run, results: Results, figures: Mapping[str, str]) -> str:
    """The report in Markdown; `figures` maps a title to a file in `figures/`."""
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"number": _number, "cell": _cell, "limits": _limits}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        results=results,
        model=model_facts(run),
        sentences=[_sentence(metric) for metric in results.metrics if metric.name in _NAMES],
        facts=fact_rows(run),
        arms=arm_rows(run, results),
        ratio_rows=list(ratio_rows(results)),
        kinds=KINDS,
        kind_rows=kind_rows(results),
        rule="\n".join(f"- {line}" for line in RULE.splitlines()),
        head_rows=list(head_rows(results)),
        head_sentences=head_sentences(results),
        set_rows=set_rows(results),
        twin_rows=twin_rows(results),
        split_rows=list(split_rows(results)),
        split_sentences=split_sentences(results),
        readout_rows=list(readout_rows(results)),
        readout_note=_readout_note(results),
        figures=figures,
        lattices=lattices(run, results),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _write_figures(run: Run, results: Results, folder: Path) -> dict[str, str]:
    """Draw what there is; title to file name."""
    found = results.by_arm
    ratios = {arm: each.ratio for arm, each in found.items() if each.ratio}
    entropy = entropy_figure({a: each.entropy for a, each in found.items()}, results.greedy)
    files = {}
    if ratios:
        files["Ratio by step"] = save_figure(ratio_figure(ratios), folder, "ratio_by_step")
    files["Entropy by layer"] = save_figure(entropy, folder, "entropy_by_layer")
    for arm, each in found.items():
        if each.ratio or each.heads:
            figure = head_figure(arm, each.ratio.get("without"), each.heads)
            files[f"Heads, {arm}"] = save_figure(figure, folder, f"heads_{_file_name(arm)}")
    if results.set_effects:
        figure = split_figure(results.set_effects["without"])
        files["A member in its set over alone"] = save_figure(figure, folder, "split_by_layer")
    if results.divergence:
        figure = divergence_figure(results.divergence)
        files["Readouts on identical tokens"] = save_figure(figure, folder, "readouts_by_step")
    for trace in _first_traces(run):
        name = f"lattice_{trace.header.prompt_id}_{_file_name(trace.header.arm)}"
        title = f"Lattice, {trace.header.prompt_id}, {trace.header.arm}"
        files[title] = save_figure(lattice_figure(trace), folder, name)
    return files


def _first_traces(run: Run) -> list[Trace]:
    """The parallel traces of the first prompt."""
    pairs = ((run.prompts[0].id, arm) for arm in arms_of(run).parallel)
    traces = [run.traces[pair] for pair in pairs if pair in run.traces]
    return [trace for trace in traces if trace.n_steps]


def _sentence(metric: Metric) -> str:
    """One number in words, with its interval, its chance value, its null and its verdict."""
    found = metric.interval
    limits = f"{_number(found.low)} to {_number(found.high)}"
    beside = [f"95 % interval {limits}, {found.method}" if np.isfinite(found.low) else found.method]
    beside += [f"{found.n} prompts"]
    beside += [f"chance {_number(metric.chance)}"] if np.isfinite(metric.chance) else []
    beside += [f"null {_number(metric.null)}"] if np.isfinite(metric.null) else []
    value = f"{_number(found.estimate)} ({'; '.join(beside)})"
    return f"**{metric.arm}**, {_NAMES[metric.name]}: {value}: **{metric.verdict}**."


def _readout_note(results: Results) -> str:
    if any(found.lower_bounds for found in results.divergence.values()):
        return (
            "KL, JS (nats) and cosine are lower bounds: outcomes that one of the stored lists "
            "leaves out are merged into one. Shared mass near 1 means that they are tight."
        )
    return "KL and JS are in nats and exact: whole readouts were stored."


def _number(value: float) -> str:
    """Three significant digits; a dash where there are no data."""
    return f"{value:.3g}" if np.isfinite(value) else "\u2013"


def _limits(found: Interval | None) -> str:
    """A number with its interval; dashes where there are none."""
    if found is None or not found.n:
        return "\u2013"
    return f"{_number(found.estimate)} ({_number(found.low)} to {_number(found.high)})"


def _cell(value: object) -> str:
    """Text that stays inside its cell of a table."""
    return " ".join(str(value).replace("|", "\\|").split())


def _file_name(arm: str) -> str:
    return re.sub(r"[^\w.-]+", "_", arm)
