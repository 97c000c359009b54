"""The command `tempo view`: opens the page of a run in a browser."""

import webbrowser
from pathlib import Path

from rich.text import Text

from tempo.cli.console import say, show, show_json
from tempo.cli.options import Json, RunFolder


def view(run: RunFolder, *, as_json: Json = False) -> None:
    """Open the page of a run in a browser; a page older than its traces is made anew.

    For example: tempo view runs/demo
    """
    from tempo.cli.documents import viewed
    from tempo.trace.run_folder import open_run
    from tempo_analysis.report.page import PAGE_FILE

    page = Path(run) / PAGE_FILE
    found = open_run(run)
    if not _is_current(page, found.folder or run):
        # Imported only if the page has to be made: drawing needs matplotlib.
        from tempo.cli.run_results import ask, keep_report

        keep_report(found, ask(found), run)
    opened = webbrowser.open(page.resolve().as_uri())
    if not opened:
        say("no browser was found; open the page yourself")
    if as_json:
        show_json(viewed(run, page, opened=opened))
    else:
        show(Text(str(page)))


def _is_current(page: Path, folder: Path) -> bool:
    """Whether the page is there, and no trace was written after it."""
    if not page.is_file():
        return False
    # The header is replaced with every shard, so its time is that of the last write.
    written = (header.stat().st_mtime for header in folder.glob("traces/**/trace.json"))
    return page.stat().st_mtime >= max(written, default=0.0)
