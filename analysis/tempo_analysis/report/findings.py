"""Base class of the results of every study: sentences, tables, figures, page and saving."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tempo.errors import OutputError
from tempo.trace.store import disk_errors
from tempo_analysis.report.csv import write_tables
from tempo_analysis.report.document import Document, json_text, write_atomic
from tempo_analysis.report.figure_style import Drawing, save_drawings
from tempo_analysis.report.notebook import region_markup, shown_markup
from tempo_analysis.report.page import save_page
from tempo_analysis.report.predictions import PredictionTable
from tempo_analysis.report.study_page import Figure, study_page_text
from tempo_analysis.report.table import Table

FIGURES = "figures"


class Findings(ABC):
    """Result of one study. Subclasses define its parts; showing and saving is done here.

    Attributes:
        file: Name of the file that holds the document.
    """

    # Subclasses are slotted dataclasses; a base without slots would give them a `__dict__`.
    __slots__ = ()
    file: ClassVar[str]
    # The folder of a study is the study's alone (see `check_folder`); that of a run is not, and a
    # census names its figures so that those of others are known from them.
    stale_figures: ClassVar[str] = "*"

    @property
    @abstractmethod
    def title(self) -> str:
        """Heading of the page."""

    @abstractmethod
    def sentences(self) -> list[str]:
        """What was found, one statement each."""

    @abstractmethod
    def document(self) -> Document:
        """The content of the file: plain JSON values, `None` where there is no data."""

    def tables(self) -> tuple[Table, ...]:
        """Every table that has a row."""
        return ()

    def figures(self) -> tuple[Drawing, ...]:
        """Every figure that has something to show."""
        return ()

    def facts(self) -> Mapping[str, str]:
        """How it was made, by name."""
        return {}

    def prediction_tables(self) -> Sequence[PredictionTable]:
        """What the model predicts under each condition, for the page."""
        return ()

    def texts(self, drawings: Sequence[Drawing]) -> Mapping[str, str]:
        """Further text files beside the page, by name; they may name the files of the drawings."""
        return {}

    def json(self) -> str:
        """The document as text, the same for the same model, prompts and options."""
        return json_text(self.document())

    @classmethod
    def check_folder(cls, folder: Path, *, force: bool = False) -> None:
        """Refuse a folder that holds something else; to be called before the work begins.

        Raises:
            OutputError: It is a file, or holds other files, or earlier findings and `force` was
                not given.
        """
        refuse_other_files(folder, cls.file, force=force)

    def save(self, folder: str | Path, *, force: bool = False) -> list[Path]:
        """Write document, tables, figures and page, each file whole or not at all.

        Tables and figures of earlier findings are removed if these findings have none of the same
        name.

        Args:
            folder: New, empty, or one that holds earlier findings.
            force: Replace earlier findings.

        Returns:
            Paths of all files, the page first.

        Raises:
            OutputError: The folder holds something else, or the disk refused.

        Example:
            >>> found = tempo.boost(model, prompts)
            >>> page, *others = found.save("runs/boost")
        """
        folder = Path(folder)
        self.check_folder(folder, force=force)
        document = self.save_document(folder)  # first: it is kept even if drawing fails
        page, *others = self.write_report(folder)
        return [page, document, *others]

    def save_document(self, folder: Path) -> Path:
        """Write the document alone, whatever else the folder holds; gives its path.

        Raises:
            OutputError: The disk refused.
        """
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / self.file, self.json())
        return folder / self.file

    def write_report(self, folder: Path) -> list[Path]:
        """Write everything but the document; gives the paths, the page first.

        Raises:
            OutputError: The disk refused.
        """
        tables, drawings = self.tables(), self.figures()
        with disk_errors(folder):
            (folder / FIGURES).mkdir(parents=True, exist_ok=True)
            written = write_tables(tables, folder)
            drawn = save_drawings(drawings, folder / FIGURES, stale=self.stale_figures)
            texts = self.texts(drawings)
            for name, text in texts.items():
                write_atomic(folder / name, text)
        # Last, because it reads the saved SVG files and is what a reader opens first.
        page = self.write_page(folder, tables, drawings)
        return [page, *(folder / name for name in texts), *written, *drawn]

    def write_page(
        self, folder: Path, tables: Sequence[Table], drawings: Sequence[Drawing]
    ) -> Path:
        """Write `report.html` beside the figures, which are saved already; gives its path."""
        place = folder / FIGURES
        # The saved SVG is read back, so that the page and the file show the same drawing.
        figures = [
            Figure(one.name, one.title, one.caption, (place / f"{one.name}.svg").read_text("utf-8"))
            for one in drawings
        ]
        text = study_page_text(
            title=self.title,
            sentences=self.sentences(),
            facts=self.facts(),
            figures=figures,
            tables=tables,
            predictions=self.prediction_tables(),
        )
        return save_page(text, folder)

    def __repr__(self) -> str:
        return "\n".join([f"{type(self).__name__}:", *(f"- {line}" for line in self.sentences())])

    def _repr_html_(self) -> str:
        # Escaped inside `shown_markup`: sentences may quote tokens of a model, which are arbitrary
        # text.
        items = "".join(f"<li>{shown_markup(line)}</li>" for line in self.sentences())
        return region_markup(type(self).__name__, "What was found", f"<ul>{items}</ul>")


def refuse_other_files(folder: Path, file: str, *, force: bool = False) -> None:
    """Refuse a folder that is neither new, nor empty, nor one whose `file` may be replaced.

    Raises:
        OutputError: The folder is a file, or holds other files, or has `file` without `force`.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"expected a folder at {folder}, got a file; give another --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    # The document marks a folder as ours; `force` must not delete anything in another.
    if not (folder / file).exists():
        raise OutputError(
            f"expected an empty folder at {folder}, got other files; give another --out"
        )
    # Decoding again may take hours; an earlier result is replaced only on request.
    if not force:
        raise OutputError(
            f"expected no {file} in {folder}, got one; give another --out, or --force to replace it"
        )
