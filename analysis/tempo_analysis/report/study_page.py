"""The page of a study: sentences, figures, predictions, tables and facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from tempo.errors import InputError
from tempo.trace.glyphs import token_glyphs
from tempo_analysis.report.csv import csv_text
from tempo_analysis.report.document import DASH
from tempo_analysis.report.inline_svg import inline_svg
from tempo_analysis.report.page import HERE, json_inside, page_text
from tempo_analysis.report.predictions import PredictionTable, prediction_sheet, shift_sheet
from tempo_analysis.report.table import Table

STUDY_SCRIPTS = (HERE / "draw.js", HERE / "theme.js", HERE / "save.js", HERE / "study.js")
SHORT_TABLE = 30
"""A table of at most this many rows is shown unfolded."""

MOST_ROWS = 400
"""The page shows at most this many rows of a table; its CSV file has all."""

FIRST_SHIFTS = 6
"""Number of tokens of a list that are shown before it is unfolded."""

_LONGEST_TOKEN = 24
_NO_CATEGORY = "prompts"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a study.

    Attributes:
        name: Stem of its files; unique on its page.
        title: What it shows, in a few words; read out instead of the drawing.
        caption: What is drawn, what the band or bar is, and n.
        svg: Text of the SVG file.
    """

    name: str
    title: str
    caption: str
    svg: str


def study_page_text(
    *,
    title: str,
    sentences: Sequence[str],
    facts: Mapping[str, str],
    figures: Sequence[Figure] = (),
    tables: Sequence[Table] = (),
    predictions: Sequence[PredictionTable] = (),
) -> str:
    """The page as text.

    Args:
        sentences: What was found, one statement each.
        facts: How it was made, for the foot of the page.
        tables: Each is shown and can be saved. Where there are predictions, their two tables
            stand as sections of their own and not among the tables.

    Raises:
        InputError: Two figures, two tables or two prompts have one name, or a figure is no SVG.
    """
    _check_unique("figures", [figure.name for figure in figures])
    _check_unique("tables", [table.name for table in tables])
    sheets = [prediction_sheet(predictions), shift_sheet(predictions)] if predictions else []
    # The two prediction tables have sections of their own but can be saved like the others.
    own = {sheet.name for sheet in sheets}
    files = {table.name: csv_text(table) for table in (*tables, *sheets)}
    return page_text(
        HERE / "study.html.j2",
        scripts=STUDY_SCRIPTS,
        styles=[HERE / "page.css", HERE / "study.css"],
        filters={"glyphs": partial(token_glyphs, longest=_LONGEST_TOKEN), "signed": signed},
        title=title,
        files=json_inside(files),
        sentences=sentences,
        figures=[(figure, Markup(_drawn(n, figure))) for n, figure in enumerate(figures)],
        categories=_by_category(predictions),
        sheets=sheets,
        tables=[table for table in tables if table.name not in own],
        most_rows=MOST_ROWS,
        opened={table.name for table in tables if len(table.rows) <= SHORT_TABLE},
        first_shifts=FIRST_SHIFTS,
        facts=facts,
    )


def signed(value: float) -> str:
    """Three significant digits with their sign; a dash where there are no data."""
    # Only NaN differs from itself. A true minus sign is as wide as the plus.
    return DASH if value != value else f"{value:+.3g}".replace("-", "\u2212")


def _drawn(number: int, figure: Figure) -> str:
    # The number of the figure makes ids unique on the page.
    return inline_svg(figure.svg, label=figure.title, prefix=f"figure-{number}-")


def _by_category(
    predictions: Sequence[PredictionTable],
) -> dict[str, list[tuple[int, PredictionTable]]]:
    """Categories as they first appear; every table with its number on the page."""
    found: dict[str, list[tuple[int, PredictionTable]]] = {}
    for table in predictions:
        # The number is filled in below, when the order on the page is known.
        found.setdefault(table.prompt.category or _NO_CATEGORY, []).append((0, table))
    number = iter(range(len(predictions)))
    return {name: [(next(number), table) for _, table in each] for name, each in found.items()}


def _check_unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise InputError(f"expected {what} of different names, got {', '.join(names)}; rename one")
