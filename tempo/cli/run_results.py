"""Analyses a run, writes the results beside it and shows them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tempo.cli.console import busy, say, show
from tempo.cli.interrupts import stopping
from tempo.cli.tables import plain_table
from tempo.trace.run import Run
from tempo.trace.run_folder import open_run
from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.parallel.page import shown_axes
from tempo_analysis.parallel.report import REPORT_FILE
from tempo_analysis.parallel.results import Results
from tempo_analysis.parallel.results import analyze as ask_everything
from tempo_analysis.report.csv import TABLES
from tempo_analysis.report.findings import FIGURES
from tempo_analysis.report.page import PAGE_FILE
from tempo_analysis.studies.heads.page_charts import run_role_maps

HEADLINES = (
    *("attention_ratio_without_sink", "attention_ratio_with_sink"),
    *("parallel_verdict", "score_drift", "competition", "dilution_predicted", "first_score_drift"),
    *("axes_changed", "paired_ratio_without_sink", "paired_ratio_with_sink"),
    *("readout_js", "readout_cosine", "readout_top_1_overlap"),
)
"""The metrics that `compare` shows; `analyze` shows all."""

_NOTHING = "–"


def opened(folder: Path, **settings: Any) -> Run:
    """A run read from its folder, with some analysis settings replaced."""
    run = open_run(folder)
    # An interrupted run is a readable prefix: it is measured, but the reader must know.
    n_unfinished = sum(trace.header.stopped == "running" for trace in run)
    if n_unfinished:
        say(f"unfinished: {n_unfinished} of {len(run)} traces end before their last step")
    return replace(run, settings={**run.settings, **settings})


def ask(run: Run) -> Results:
    """All measurements of all arms."""
    with busy("analysing"):
        return ask_everything(run)


def conclude(run: Run, *, as_json: bool) -> None:
    """Analyse a run of `compare`, write its report into its folder, show the verdicts."""
    if run.folder is None:
        results = ask(run)
        show_findings(results, headlines(results.metrics), [], as_json=as_json)
        return
    # The same command again: nothing is recomputed; `--json` prints the document on disk.
    if run.already_complete and _is_reported(run.folder):
        if as_json:
            sys.stdout.write((run.folder / Results.file).read_text(encoding="utf-8"))
        return
    remains = (
        f"stopped; the traces in {run.folder} are whole, and the same command goes on from there"
    )
    with stopping(remains):
        results = ask(run)
        paths = keep_report(run, results, run.folder)
    show_findings(results, headlines(results.metrics), paths, as_json=as_json)


def keep_report(run: Run, results: Results, folder: Path) -> list[Path]:
    """Write the page, tables and figures; return their paths."""
    with busy("drawing"):
        roles = run_role_maps(run, shown_axes(results))
        replace(results, role_maps=roles).save(folder)
    return [folder / name for name in (PAGE_FILE, REPORT_FILE, Results.file, TABLES, FIGURES)]


def show_findings(
    results: Results, metrics: Sequence[Metric], paths: Sequence[Path], *, as_json: bool
) -> None:
    """Show the document as on disk, or a table and the paths of the files."""
    if as_json:
        sys.stdout.write(results.json())
        return
    show(metrics_table(metrics))
    show(*(Text(line, style="dim") for line in refusals_of_pairs(results)))
    show_paths(paths)


def refusals_of_pairs(results: Results) -> list[str]:
    """Refused measurements of paired arms, one line each."""
    # Without `alone` the split was not requested, so its absence is not a refusal.
    asked = {"twin", "paired_ratio"} | ({"split"} if results.alone else set())
    refused = [each for each in results.refusals if each.question in asked]
    return [f"not answered: {each.question}, {each.arm}: {each.reason}" for each in refused]


def show_paths(paths: Sequence[Path]) -> None:
    """Print one path on each line."""
    show(*(Text(str(path)) for path in paths))


def headlines(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that `compare` shows."""
    return [metric for metric in metrics if metric.name in HEADLINES]


def metrics_table(metrics: Sequence[Metric]) -> Table:
    """Metrics by arm: estimate, interval, chance, null and n, with the verdict below the name."""
    numbers = ("estimate", "95 % interval", "chance", "null", "n")
    table = plain_table("", *numbers, numbers=numbers)
    for arm in dict.fromkeys(metric.arm for metric in metrics):
        table.add_row(Text(arm, style="bold"))
        for metric in metrics:
            if metric.arm == arm:
                table.add_row(_name_and_verdict(metric), *_numbers(metric))
    return table


def _name_and_verdict(metric: Metric) -> Group:
    verdict = Padding(Text(metric.verdict, style="dim"), (0, 0, 0, 2))
    return Group(Text(metric.name.replace("_", " ")), verdict)


def _numbers(metric: Metric) -> tuple[str, ...]:
    found = metric.interval
    return (
        _number(found.estimate),
        _limits(found.low, found.high),
        _number(metric.chance),
        _number(metric.null),
        str(found.n),
    )


def _is_reported(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (Results.file, REPORT_FILE, PAGE_FILE))


def _number(value: float) -> str:
    return _NOTHING if isnan(value) else f"{value:.3g}"


def _limits(low: float, high: float) -> str:
    return _NOTHING if isnan(low) or isnan(high) else f"{low:.3g} to {high:.3g}"
