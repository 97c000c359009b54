"""Tables as CSV files, for programs and for spreadsheets."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tempo.errors import InputError
from tempo.trace.store import disk_errors
from tempo_analysis.report.document import write_atomic
from tempo_analysis.report.table import Cell, Column, Table
from tempo_analysis.stats.intervals import Interval

TABLES = "tables"
_ENDS = ("", "_low", "_high")
# The last four are full-width `= + - @`, which some spreadsheets read as the plain ones. Tokens of
# a model are arbitrary text, so any of them may come first (OWASP, CSV injection).
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""A text that begins with one of these is run as a formula by some spreadsheet."""


def write_tables(tables: Sequence[Table], folder: Path) -> tuple[Path, ...]:
    """Write `tables/NAME.csv` into a folder, each file whole or not at all; gives their paths.

    CSV files in `tables/` with other names, left by an earlier report, are removed.

    Raises:
        InputError: Two tables have one name.
        OutputError: The disk refused.
    """
    names = [table.name for table in tables]
    if len(set(names)) != len(names):
        raise InputError(f"expected tables of different names, got {', '.join(names)}; rename one")
    place = Path(folder) / TABLES
    paths = tuple(place / f"{name}.csv" for name in names)
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        for path, table in zip(paths, tables, strict=True):
            write_atomic(path, csv_text(table))
        # After writing: if the disk refuses, the earlier tables are still whole.
        for old in set(place.glob("*.csv")) - set(paths):
            old.unlink()
    return paths


def csv_text(table: Table) -> str:
    """A table as CSV: the keys of its columns, then every number with all its digits.

    An interval has three columns: `key`, `key_low` and `key_high`. A number without data is an
    empty cell. A text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # lines end as RFC 4180 says, or a lone \r would stand unquoted
    writer.writerow([key for column in table.columns for key in _keys(column)])
    for row in table.rows:
        writer.writerow(
            [cell for column in table.columns for cell in _cells(row[column.key], column)]
        )
    return text.getvalue()


def _keys(column: Column) -> list[str]:
    ends = _ENDS if column.kind == "interval" else _ENDS[:1]
    return [f"{column.key}{end}" for end in ends]


def _cells(value: Cell, column: Column) -> list[str]:
    if isinstance(value, Interval):
        return [_digits(each) for each in (value.estimate, value.low, value.high)]
    # Three cells, since a missing interval still has three columns.
    if value is None:
        return [""] * len(_ENDS)
    if isinstance(value, str):
        # The apostrophe makes it text for a spreadsheet; numbers are written by `_digits` and keep
        # their minus sign.
        return [f"'{value}" if value.startswith(_FORMULA) else value]
    return [str(int(value)) if column.kind == "count" else _digits(value)]


def _digits(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return "" if np.isnan(value) else repr(float(value))
