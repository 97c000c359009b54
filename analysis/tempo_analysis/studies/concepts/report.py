"""Write what was found of a concept: `quality.json`, and tables and figures beside it."""

from pathlib import Path

from tempo.trace.store import disk_errors
from tempo_analysis.report.csv import write_tables
from tempo_analysis.report.figure_style import save_figure
from tempo_analysis.report.files import write_atomic
from tempo_analysis.report.study import FIGURES, check_folder
from tempo_analysis.studies.concepts.figures import concentration_figure, head_maps
from tempo_analysis.studies.concepts.result import ConceptFindings
from tempo_analysis.studies.concepts.tables import concept_tables

QUALITY_FILE = "quality.json"


def write_concept(found: ConceptFindings, folder: Path, *, force: bool = False) -> list[Path]:
    """Write everything, each file whole or not at all; gives the paths of all files.

    Raises:
        OutputError: The folder holds something else, or the disk refused.
    """
    folder = Path(folder)
    check_folder(folder, QUALITY_FILE, force=force)
    figures = {"heads": head_maps(found), "concentration": concentration_figure(found)}
    place = folder / FIGURES
    with disk_errors(folder):
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / QUALITY_FILE, found.json())
        tables = write_tables(concept_tables(found), folder)
        for name, figure in figures.items():
            save_figure(figure, place, name)
    drawn = [place / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    return [folder / QUALITY_FILE, *tables, *drawn]
