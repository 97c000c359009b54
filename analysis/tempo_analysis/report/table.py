"""A table as data: what its columns hold, and its rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tempo.errors import InputError
from tempo_analysis.report.document import limits, number
from tempo_analysis.stats.intervals import Interval

Kind = Literal["text", "number", "interval", "count"]
Cell = str | int | float | Interval | None
"""A number without data is NaN; an interval without data may be None."""

_TYPES: Mapping[Kind, tuple[type, ...]] = {
    "text": (str,),
    "number": (float, int),
    "interval": (Interval, type(None)),
    "count": (int,),
}
_SHOWN: Mapping[Kind, Callable[[Any], str]] = {
    "text": str,
    "number": number,
    "interval": limits,
    "count": str,
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        key: Names it in every row and in a CSV file; unique in its table.
        heading: Names it to a reader.
        kind: What its cells hold: text, a number, an interval over prompts, a count.
        get: Gives its cell from an item of `Table.of`, whose arguments are the parts of the item
            if it is a tuple. Without it an item is a mapping and the cell is the one at `key`.
    """

    key: str
    heading: str
    kind: Kind
    # Two lambdas are never equal, so comparing them would make equal tables differ.
    get: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def cell(self, item: Any) -> Cell:
        """Its cell in the row of an item; a numpy scalar becomes a plain number."""
        if self.get is None:
            value = item[self.key]
        else:
            value = self.get(*item) if isinstance(item, tuple) else self.get(item)
        # float32 is no float, so the check of kinds would refuse it.
        return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, slots=True)
class Table:
    """One table: every row holds one cell for each column.

    Attributes:
        name: Stable; that of its CSV file.
        title: A heading.
        note: How to read it, in plain text; one line for each item where it is a list.
        rows: By the keys of the columns.

    Raises:
        InputError: Two columns have one key, or a row does not hold what the columns say.
    """

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Cell], ...]

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        if len(set(keys)) != len(keys):
            raise InputError(
                f"expected columns of different keys in table {self.name}, got {', '.join(keys)}; "
                "rename one"
            )
        for row in self.rows:
            self._check(row)

    @classmethod
    def of(
        cls, name: str, title: str, columns: Iterable[Column], items: Iterable[Any], note: str = ""
    ) -> "Table":
        """One row for each item, with the cell that each column gets from it.

        Raises:
            InputError: Two columns have one key, or a cell is not of the kind of its column.
        """
        kept = tuple(columns)
        rows = tuple({column.key: column.cell(item) for column in kept} for item in items)
        return cls(name, title, note, kept, rows)

    def shown(self) -> list[list[str]]:
        """Every cell as a reader sees it: three digits, and a dash where there is no data."""
        return [
            [_SHOWN[column.kind](row[column.key]) for column in self.columns] for row in self.rows
        ]

    def _check(self, row: Mapping[str, Cell]) -> None:
        keys = [column.key for column in self.columns]
        if set(row) != set(keys):
            raise InputError(
                f"expected cells {', '.join(keys)} in a row of table {self.name}, got "
                f"{', '.join(row)}; give one cell for each column"
            )
        for column in self.columns:
            value = row[column.key]
            if isinstance(value, bool) or not isinstance(value, _TYPES[column.kind]):
                raise InputError(
                    f"expected a cell of kind {column.kind} in column {column.key} of table "
                    f"{self.name}, got {value!r}; give NaN where a number has no data"
                )
