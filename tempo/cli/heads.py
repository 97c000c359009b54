"""The command `tempo heads`: the role of every attention head, shown, compared and saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tempo.cli.console import busy, say, show, show_json, visible
from tempo.cli.options import FLAG, MODEL, STATISTICS, Force, Json, given, takes_options
from tempo.cli.tables import GOOD, plain_table
from tempo.run.options import Options
from tempo.trace.run_folder import RUN_FILE
from tempo.trace.store import disk_errors

# The analysis is imported where it is used: it loads scipy and matplotlib, and `--help` and
# refusals must not wait for them.
if TYPE_CHECKING:
    from tempo_analysis.report.document import Document
    from tempo_analysis.studies.heads.comparison import CensusComparison
    from tempo_analysis.studies.heads.findings import Census

SHOWN = 5
"""Number of heads listed for each role in the terminal."""

_NOTHING = "–"


def document_of(censuses: "Sequence[Census]") -> "Document":
    """The content of `heads.json`, with the second model and the comparison where there is one."""
    from tempo_analysis.studies.heads.comparison import compare_censuses

    first, *others = censuses
    found = first.document()
    for other in others:
        found["against"] = other.document()
        found["comparison"] = compare_censuses(first, other).document()
    return found


def show_document(censuses: "Sequence[Census]") -> None:
    """Print the document on stdout."""
    show_json(document_of(censuses))


def show_census(census: "Census") -> None:
    """Show a row for each role: number of heads, chance, null and the best heads."""
    numbers = ("heads", "chance", "null p99", "above")
    table = plain_table(
        "role", *numbers, "best heads, those without the role in grey", numbers=numbers
    )
    found = census.document()
    # From the document, not from the arrays: terminal and file cannot disagree.
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


def show_comparison(censuses: "Sequence[Census]") -> None:
    """Show a row for each role that was measured in both models."""
    from tempo_analysis.studies.heads.comparison import compare_censuses

    first, second = censuses
    show(_comparison_table(compare_censuses(first, second)))


def keep(censuses: "Sequence[Census]", folder: Path) -> list[Path]:
    """Write `heads.json`, a page, tables and figures; return their paths."""
    with busy("drawing"):
        return _kept(censuses, folder)


def _comparison_table(found: "CensusComparison") -> Table:
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


def _vanished(census: "Census") -> list[str]:
    """Words that the detectors need and the tokenizer did not keep."""
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


def _best(rows: "Sequence[Document]") -> Text:
    line = Text()
    for row in rows:
        text = f"{row['head']} {_number(row['score'])}"
        line.append("  " if len(line) else "").append(text, GOOD if row["assigned"] else "dim")
    return line


def _number(value: Any) -> str:
    # A value that differs from itself is NaN; the document has None in its place.
    return _NOTHING if value is None or value != value else f"{value:.3g}"


def _kept(censuses: "Sequence[Census]", folder: Path) -> list[Path]:
    """Write all files of a census; `heads.json` first, so that a failed drawing loses nothing."""
    from tempo_analysis.report.csv import TABLES
    from tempo_analysis.report.findings import FIGURES
    from tempo_analysis.studies.heads.findings import SavedCensus

    page, kept, *_ = SavedCensus(document_of(censuses)).save(folder, force=True)
    if (folder / RUN_FILE).exists():
        say(f"tempo report {folder} shows the roles in the page of the run as well")
    return [page, kept, page.parent / TABLES, page.parent / FIGURES]


Roles = Annotated[
    str | None, typer.Option(metavar="ROLE,ROLE...", help="Some of the roles; all unless given.")
]
Corpus = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Text to read; Python's own help topics unless given."),
]
Sequences = Annotated[int, typer.Option(metavar="INTEGER", help="Sequences of each kind.")]
Length = Annotated[int, typer.Option(metavar="INTEGER", help="Tokens of a text.")]
Against = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A second model, asked the same.")
]
Effects = Annotated[
    bool, typer.Option("--effects/--no-effects", metavar=FLAG, help="Silence heads with a role.")
]
HeadsOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Keep heads.json, tables, figures and a page here; or beside a run.",
        rich_help_panel="Output",
    ),
]


@takes_options(*MODEL, *STATISTICS)
def heads(
    *,
    options: Options,
    roles: Roles = None,
    corpus: Corpus = None,
    sequences: Sequences = 64,
    length: Length = 128,
    against: Against = None,
    effects: Effects = True,
    out: HeadsOut = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Say what every attention head does, each score beside its chance value and its null.

    For example: tempo heads --roles induction,previous_token --out runs/heads
    """
    _check_free(out, force=force)
    with busy(f"loading {options.model}"):
        from tempo.models.load import load_model
        from tempo_analysis.studies.heads.measure import heads as ask

        settings = given(options)
        # The seed is of the sequences, not of the model, and `load_model` does not take one.
        seed = settings.pop("seed", options.seed)
        models = [load_model(options.model, **settings)]
        settings.pop("revision", None)  # that of the first model
        models += [load_model(against, **settings)] if against else []
    wanted = None if roles is None else [role.strip() for role in roles.split(",")]
    asked: dict[str, Any] = {"roles": wanted, "corpus": corpus, "n": sequences, "length": length}
    asked |= {"seed": seed, "check_effects": effects}
    found = [ask(model, on_progress=_saying(model.name), **asked) for model in models]

    if as_json:
        show_document(found)
    else:
        # Shown before the files are drawn, which can take minutes.
        for census in found:
            show_census(census)
    if against and not as_json:
        show_comparison(found)
    paths = [] if out is None else keep(found, out)
    if not as_json:
        show(*(Text(str(path)) for path in paths))


def _check_free(out: Path | None, *, force: bool) -> None:
    """Refuse a folder that cannot be written, before the measurement begins."""
    if out is None:
        return
    from tempo_analysis.studies.heads.findings import Census

    Census.check_folder(out, force=force)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)


def _saying(name: str) -> Any:
    return lambda doing: say(f"{name}: {doing}", style="dim")
