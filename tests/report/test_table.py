import numpy as np
import pytest

from tempo.errors import InputError
from tempo_analysis.report.table import Column, Table
from tempo_analysis.stats.intervals import Interval

NAN = float("nan")
COLUMNS = (
    Column("who", "who", "text"),
    Column("share", "share", "number"),
    Column("drift", "drift", "interval"),
    Column("n", "prompts", "count"),
)
ROW = {"who": "a", "share": 0.5, "drift": Interval(1.0, 0.5, 2.0, 9, "planted"), "n": 9}


def table(*rows, columns=COLUMNS) -> Table:
    return Table("planted", "Planted", "", columns, rows)


def test_cells_are_shown_with_three_digits():
    shown = table(ROW | {"share": 0.123456, "n": 123456}).shown()
    assert shown == [["a", "0.123", "1 (0.5 to 2)", "123456"]]


def test_no_data_is_a_dash_and_never_zero():
    nothing = Interval(NAN, NAN, NAN, 0, "no data")
    rows = (ROW | {"share": NAN, "drift": None}, ROW | {"share": NAN, "drift": nothing})
    assert [row[1:3] for row in table(*rows).shown()] == [["–", "–"], ["–", "–"]]


def test_an_estimate_without_limits_keeps_its_dashes():
    few = Interval(1.5, NAN, NAN, 3, "too few")
    assert table(ROW | {"drift": few}).shown()[0][2] == "1.5 (– to –)"


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("who", 1.0, "text"),
        ("who", None, "text"),
        ("share", None, "number"),
        ("share", "0.5", "number"),
        ("share", True, "number"),
        ("drift", 0.5, "interval"),
        ("n", 0.5, "count"),
        ("n", False, "count"),
    ],
)
def test_a_cell_of_another_kind_is_refused(key: str, value: object, kind: str):
    with pytest.raises(InputError, match=f"expected a cell of kind {kind} in column {key}"):
        table(ROW | {key: value})


@pytest.mark.parametrize("row", [{"who": "a"}, ROW | {"more": 1}])
def test_a_row_has_one_cell_for_each_column(row: dict):
    with pytest.raises(InputError, match="one cell for each column"):
        table(row)


def test_two_columns_of_one_key_are_refused():
    with pytest.raises(InputError, match="columns of different keys"):
        table(columns=(COLUMNS[0], COLUMNS[0]))


def test_a_column_gets_its_cell_from_an_item():
    columns = (
        Column("who", "who", "text", lambda name, values: name.upper()),
        Column("share", "share", "number", lambda name, values: values[0]),
        Column("n", "prompts", "count", lambda name, values: len(values)),
    )
    items = (("a", np.float32([0.5])), ("b", np.float32([0.25, 1])))
    found = Table.of("planted", "Planted", columns, items, note="note")
    rows = ({"who": "A", "share": 0.5, "n": 1}, {"who": "B", "share": 0.25, "n": 2})
    assert found == Table("planted", "Planted", "note", columns, rows)
    assert type(found.rows[0]["share"]) is float


def test_a_column_without_a_getter_takes_the_cell_of_its_key():
    assert Table.of("planted", "Planted", COLUMNS, [ROW | {"more": 1}]) == table(ROW)


def test_a_cell_of_another_kind_from_a_getter_is_refused():
    columns = (Column("n", "prompts", "count", lambda one: one / 2),)
    with pytest.raises(InputError, match="expected a cell of kind count in column n"):
        Table.of("planted", "Planted", columns, [1])
