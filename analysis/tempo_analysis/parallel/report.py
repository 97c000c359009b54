"""Write what was found: `results.json`, `report.md`, the tables and the figures beside it."""

import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from tempo.trace.run import Run
from tempo.trace.store import disk_errors
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import arms_of
from tempo_analysis.parallel.figures import (
    divergence_figure,
    entropy_figure,
    head_figure,
    ratio_figure,
    split_figure,
)
from tempo_analysis.parallel.page import write_page
from tempo_analysis.parallel.page_charts import RoleMaps
from tempo_analysis.parallel.results import Results
from tempo_analysis.parallel.tables import (
    SPLIT_TITLE,
    head_sentences,
    lattices,
    model_facts,
    split_sentences,
    tables_of,
)
from tempo_analysis.parallel.trace_figures import lattice_figure
from tempo_analysis.parallel.verdict import sentences
from tempo_analysis.report.csv import write_tables
from tempo_analysis.report.figure_style import save_figure
from tempo_analysis.report.files import write_atomic

RESULTS_FILE = "results.json"
REPORT_FILE = "report.md"
FIGURES = "figures"
_TEMPLATE = Path(__file__).with_name("report.md.j2")


def write_report(
    run: Run, results: Results, folder: Path, *, role_maps: RoleMaps | None = None
) -> Path:
    """Write results, tables, figures, `report.md` and the page; gives the path of `report.md`.

    Each file appears whole or not at all.

    Args:
        role_maps: Further maps of heads for the page.

    Raises:
        OutputError: The disk refused.
    """
    folder = Path(folder)
    with disk_errors(folder):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        write_results(results, folder)
        tables = tables_of(run, results)
        write_tables(tables, folder)
        figures = _write_figures(run, results, folder / FIGURES)
        write_atomic(folder / REPORT_FILE, report_text(run, results, figures))
        write_page(run, results, tables, folder, role_maps=role_maps)
    return folder / REPORT_FILE


def write_results(results: Results, folder: Path) -> Path:
    """Write `results.json` alone, whole or not at all; gives its path.

    Raises:
        OutputError: The disk refused.
    """
    with disk_errors(folder):
        write_atomic(folder / RESULTS_FILE, results.json())
    return folder / RESULTS_FILE


def report_text(run: Run, results: Results, figures: Mapping[str, str]) -> str:
    """The report in Markdown; `figures` maps a title to a file in `figures/`."""
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
        figures=figures,
        lattices=lattices(run, results),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


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


def _cell(value: object) -> str:
    """Text that stays inside its cell of a table."""
    return " ".join(str(value).replace("|", "\\|").split())


def _file_name(arm: str) -> str:
    return re.sub(r"[^\w.-]+", "_", arm)
