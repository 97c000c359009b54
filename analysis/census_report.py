"""Write what a census found: tables, figures and the page, beside `heads.json` or in a run."""

from pathlib import Path

from analysis.census.figures import write_census_figures
from analysis.census.heads import Document
from analysis.census.tables import census_tables
from analysis.page.census import write_census_page
from tempo.trace.run_folder import RUN_FILE
from tempo_analysis.report.csv import write_tables

HEADS_FOLDER = "heads"
AGAINST_FOLDER = "against"


def write_census_report(document: Document, folder: Path) -> Path:
    """Write tables, figures and `report.html`; gives the path of the page.

    A folder that holds a run has a report of its own, so everything goes into `heads/` in it. What
    a second model was asked goes into `against/`.

    Raises:
        CorruptTraceError: The document lacks what a census has.
        OutputError: The disk refused.
    """
    place = Path(folder)
    if (place / RUN_FILE).exists():
        place = place / HEADS_FOLDER
    if "against" in document:
        write_census_report(document["against"], place / AGAINST_FOLDER)
    tables = census_tables(document)
    write_tables(tables, place)
    write_census_figures(document, place)
    return write_census_page(document, tables, place)
