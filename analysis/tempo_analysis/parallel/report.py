"""The report of a run as one Markdown text."""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from tempo.trace.run import Run
from tempo_analysis.parallel.run_numbers import RunNumbers
from tempo_analysis.parallel.tables import (
    SPLIT_TITLE,
    head_sentences,
    lattices,
    model_facts,
    split_sentences,
    tables_of,
)
from tempo_analysis.parallel.verdict import sentences
from tempo_analysis.report.figure_style import Drawing

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
