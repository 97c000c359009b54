"""Shows a census of heads, holds two against each other, and keeps what was found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tempo.cli.glyphs import visible
from tempo.cli.screen import busy, say, show, show_json
from tempo.cli.tables import GOOD, plain_table
from tempo.trace.run_folder import RUN_FILE
from tempo_analysis.parallel.report import FIGURES
from tempo_analysis.report.csv import TABLES
from tempo_analysis.studies.heads.comparison import CensusComparison, compare_censuses
from tempo_analysis.studies.heads.report import write_census_report
from tempo_analysis.studies.heads.result import Census, Document, json_text, write_census

SHOWN = 5
"""Heads of each role in the terminal."""

_NOTHING = "–"


def document_of(censuses: Sequence[Census]) -> Document:
    """The content of `heads.json`; with a second model, that one and the comparison stand in it."""
    first, *others = censuses
    found = first.document()
    for other in others:
        found["against"] = other.document()
        found["comparison"] = compare_censuses(first, other).document()
    return found


def show_document(censuses: Sequence[Census]) -> None:
    """The document on stdout."""
    show_json(document_of(censuses))


def show_census(census: Census) -> None:
    """A row for each role: how many heads hold it, and the best ones beside chance and null."""
    numbers = ("heads", "chance", "null p99", "above")
    table = plain_table(
        "role", *numbers, "best heads, those without the role in grey", numbers=numbers
    )
    found = census.document()
    for role, rows in (found["roles"] | found["more_roles"]).items():
        rule = found["rules"][role]
        table.add_row(
            Text(role.replace("_", " ")),
            str(rule["n_assigned"]),
            _number(rows[0]["chance"]),
            _number(rule["null_p99"]),
            _number(rule["threshold"]),
            _best(rows[:SHOWN]),
        )
    show(Text(str(census.model["name"]), style="bold"), table)
    lines = [f"not answered: {role}: {reason}" for role, reason in census.refused.items()]
    show(*(Text(visible(line), style="dim") for line in [*lines, *_vanished(census)]))


def show_comparison(censuses: Sequence[Census]) -> None:
    """A row for each role that both models were asked for."""
    first, second = censuses
    show(_comparison_table(compare_censuses(first, second)))


def keep(censuses: Sequence[Census], folder: Path) -> list[Path]:
    """Write `heads.json`, a page, tables and figures; where they lie."""
    with busy("drawing"):
        return _kept(censuses, folder)


def _comparison_table(found: CensusComparison) -> Table:
    numbers = (f"heads, {found.first}", f"heads, {found.second}")
    depths = (f"depth, {found.first}", f"depth, {found.second}")
    table = plain_table("role", *numbers, *depths, "", numbers=(*numbers, *depths))
    for role, row in found.roles.items():
        table.add_row(
            Text(role.replace("_", " ")),
            str(row.first.n_assigned),
            str(row.second.n_assigned),
            _number(row.first.depth.centroid.estimate),
            _number(row.second.depth.centroid.estimate),
            Text(row.verdict, style="dim"),
        )
    return table


def _vanished(census: Census) -> list[str]:
    """What the tokenizer did not keep of the words that the roles ask for."""
    detail = census.detail
    families = detail.get("successor_runs", {}).get("families", [])
    lost = {
        "delimiters": detail.get("texts", {}).get("lost_delimiters", []),
        "unrelated words": detail.get("successor_runs", {}).get("lost_words", []),
        "names": detail.get("names", {}).get("lost_names", []),
    }
    lines = [f"word family {family}" for family in families if "lost" in family]
    lines += [f"{name} lost: {' '.join(map(repr, gone))}" for name, gone in lost.items() if gone]
    return lines


def _best(rows: Sequence[Document]) -> Text:
    line = Text()
    for row in rows:
        text = f"{row['head']} {_number(row['score'])}"
        line.append("  " if len(line) else "").append(text, GOOD if row["assigned"] else "dim")
    return line


def _number(value: Any) -> str:
    return _NOTHING if value is None or value != value else f"{value:.3g}"


def _kept(censuses: Sequence[Census], folder: Path) -> list[Path]:
    """Everything of a census: `heads.json` first, so that nothing is lost if drawing stops."""
    document = document_of(censuses)
    kept = write_census(document, folder)
    page = write_census_report(json.loads(json_text(document)), folder)
    if (folder / RUN_FILE).exists():
        say(f"tempo report {folder} shows the roles in the page of the run as well")
    return [page, kept, page.parent / TABLES, page.parent / FIGURES]
