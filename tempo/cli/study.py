"""The steps that all study commands share: progress, model, output folder, files, display."""

import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tempo.cli.console import notes, show, visible
from tempo.cli.options import given
from tempo.run.options import Options
from tempo.vocabulary import OnProgress

if TYPE_CHECKING:
    from tempo.models.language_model import LanguageModel
    from tempo_analysis.report.findings import Findings


@contextmanager
def progress_line(first: str = "starting") -> Generator[OnProgress]:
    """A line on stderr where that is a terminal; the callback replaces its text."""
    with notes().status(Text(first)) as status:
        yield lambda doing: status.update(Text(visible(doing)))


def load_for_study(options: Options, on_progress: OnProgress) -> "LanguageModel":
    """Load the model of a study command; the seed belongs to the study, not to the model."""
    # torch takes seconds to import, and help and refusals must not wait for it
    from tempo.models.load import load_model

    settings = given(options)
    settings.pop("seed", None)
    on_progress(f"loading {options.model}")
    return load_model(options.model, **settings)


def check_out(findings: "type[Findings]", out: Path | None, *, force: bool) -> None:
    """Refuse a folder that is in use, before anything is loaded."""
    if out is not None:
        findings.check_folder(out, force=force)


def save_to(found: "Findings", out: Path | None, *, force: bool) -> list[Path]:
    """Write the files of a study and give their paths; none without a folder."""
    return [] if out is None else found.save(out, force=force)


def show_study(
    found: "Findings", tables: Iterable[Table], paths: Sequence[Path], *, as_json: bool
) -> None:
    """Print the document on stdout, or tables, sentences and paths.

    Args:
        found: What the study found.
        tables: Short tables for the terminal; read only if they are shown.
        paths: Files to name.
        as_json: Whether to write the document.
    """
    if as_json:
        sys.stdout.write(found.json())
        return
    for table in tables:
        show(table, Text(""))
    show(*(Text(visible(line), style="dim") for line in found.sentences()))
    show(*(Text(str(path)) for path in paths))
