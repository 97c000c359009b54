"""Tables for the terminal; this module imports neither torch nor the analysis."""

from collections.abc import Collection, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tempo.models.registry import NamedModel
from tempo.run.budget import PLANNING_WIDTH, MemoryPlan, human

if TYPE_CHECKING:
    from tempo_analysis.report.table import Table as Grid


GOOD, BAD, FAINT = "#5fa32c", "bold #d0463b", "dim"

_STATUS_STYLES = {"pass": GOOD, "fail": BAD, "not applicable": FAINT}


def plain_table(*headings: str, numbers: Sequence[str] = (), show_header: bool = True) -> Table:
    """A table without borders; the columns named in `numbers` are right-aligned."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, show_header=show_header
    )
    for heading in headings:
        is_number = heading in numbers
        # A wrapped number is unreadable; text columns give way instead.
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def grid_table(grid: "Grid", keys: Collection[str] | None = None) -> Table:
    """A table of an analysis, rounded for display, with the columns of `keys` or all of them."""
    shown = [keys is None or column.key in keys for column in grid.columns]
    columns = list(compress(grid.columns, shown))
    numbers = [column.heading for column in columns if column.kind != "text"]
    table = plain_table(*(column.heading for column in columns), numbers=numbers)
    for row in grid.shown():
        table.add_row(*map(Text, compress(row, shown)))
    return table


def plan_table(memory: MemoryPlan) -> Table:
    """Memory and storage that a run would need."""
    table = plain_table("", "", show_header=False)
    rows = {
        "level": memory.level,
        "traces": str(memory.n_traces),
        "batches": f"{len(memory.batch_sizes)}, the largest of {max(memory.batch_sizes)}",
        "KV cache of a batch, at most": human(memory.kv_bytes),
        "memory beside the model, at most": human(memory.peak_bytes),
        f"traces, with {PLANNING_WIDTH:g} members a set": human(memory.trace_bytes),
        "traces, at most": human(memory.trace_bytes_at_most),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def models_table(models: Sequence[NamedModel]) -> Table:
    """The named models."""
    table = plain_table("name", "size", "licence", "installed", "what it is", numbers=("size",))
    for model in models:
        installed = Text("yes", GOOD) if model.installed else Text("no", FAINT)
        table.add_row(
            model.name, human(model.disk_bytes), model.licence, installed, model.description
        )
    return table


def checks_table(checks: Sequence[Any]) -> Table:
    """The checks of the doctor, one row each."""
    table = plain_table("check", "status", "detail")
    for check in checks:
        status = Text(check.status, style=_STATUS_STYLES[check.status])
        table.add_row(Text(check.name), status, Text(check.detail))
    return table
