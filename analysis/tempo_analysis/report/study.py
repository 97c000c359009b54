"""The files of a study: its numbers as JSON, then tables, figures and the page beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tempo.errors import OutputError
from tempo.trace.store import disk_errors
from tempo_analysis.report.csv import write_tables
from tempo_analysis.report.figure_style import Drawing, save_figure
from tempo_analysis.report.files import write_atomic
from tempo_analysis.report.predictions import PredictionTable
from tempo_analysis.report.study_page import Figure, write_study_page
from tempo_analysis.report.table import Table

FIGURES = "figures"


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that is written of one study.

    Attributes:
        file: Name of the file of numbers.
        json: Its text.
        title: Of the page.
        sentences: What was found, first thing on the page.
        facts: How, by name.
    """

    file: str
    json: str
    title: str
    sentences: Sequence[str]
    facts: Mapping[str, str]
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    predictions: Sequence[PredictionTable] = ()


def check_folder(folder: Path, file: str, *, force: bool = False) -> None:
    """Refuse a folder that holds something else, before anything is computed.

    Raises:
        OutputError: It is a file, or holds other files, or an earlier `file` and `force` was not
            given.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"expected a folder at {folder}, got a file; give another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / file).exists():
        raise OutputError(
            f"expected an empty folder at {folder}, got other files; give another --out"
        )
    if not force:
        raise OutputError(
            f"expected no {file} in {folder}, got one; give another --out, or --force to replace it"
        )


def write_study(study: Study, folder: Path, *, force: bool = False) -> list[Path]:
    """Write everything, each file whole or not at all; the page first among the paths.

    Figures and tables of an earlier study there that are none of this one go.

    Raises:
        OutputError: The folder holds something else, or the disk refused.
    """
    folder = Path(folder)
    check_folder(folder, study.file, force=force)
    place = folder / FIGURES
    with disk_errors(folder):
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / study.file, study.json)
        tables = write_tables(study.tables, folder)
        for one in study.drawings:
            save_figure(one.figure, place, one.name)
        names = {one.name for one in study.drawings}
        for old in (path for path in place.iterdir() if path.stem not in names):
            old.unlink()
        figures = [
            Figure(one.name, one.title, one.caption, (place / f"{one.name}.svg").read_text("utf-8"))
            for one in study.drawings
        ]
    page = write_study_page(
        folder,
        title=study.title,
        sentences=study.sentences,
        facts=study.facts,
        figures=figures,
        tables=study.tables,
        predictions=study.predictions,
    )
    drawn = [place / f"{one.name}.{kind}" for one in study.drawings for kind in ("png", "svg")]
    return [page, folder / study.file, *tables, *drawn]
