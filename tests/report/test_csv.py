import csv
import io
import math
from pathlib import Path

import pytest

from tempo.errors import InputError, OutputError
from tempo_analysis.report.csv import csv_text, write_tables
from tempo_analysis.report.table import Column, Table
from tempo_analysis.stats.intervals import Interval

NAN = float("nan")


def one_column(kind: str, *values, name: str = "planted") -> Table:
    rows = tuple({"key": value} for value in values)
    return Table(name, "Planted", "", (Column("key", "heading", kind),), rows)


def cells(table: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(csv_text(table), newline="")))


def test_a_file_begins_with_the_keys_and_an_interval_has_three():
    columns = (Column("a", "A, or a", "text"), Column("b", "B", "interval"))
    assert csv_text(Table("t", "T", "", columns, ())) == "a,b,b_low,b_high\r\n"


def test_numbers_read_back_exactly():
    values = (0.1, 1 / 3, 1e-300, -2.5, math.pi, float("inf"))
    assert [float(row[0]) for row in cells(one_column("number", *values))[1:]] == list(values)


def test_the_numbers_of_an_interval_read_back_exactly():
    found = Interval(1 / 3, 1 / 7, 2 / 3, 9, "planted")
    row = cells(one_column("interval", found))[1]
    assert [float(cell) for cell in row] == [found.estimate, found.low, found.high]


def test_no_data_is_an_empty_cell():
    assert cells(one_column("number", NAN, 0.0))[1:] == [[""], ["0.0"]]
    few = Interval(1.5, NAN, NAN, 3, "too few")
    assert cells(one_column("interval", None, few))[1:] == [["", "", ""], ["1.5", "", ""]]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b"])
def test_a_text_that_a_spreadsheet_would_run_begins_with_an_apostrophe(sign: str):
    text = f'{sign}HYPERLINK("https://example.org","click")'
    assert cells(one_column("text", text))[1:] == [[f"'{text}"]]


def test_only_texts_are_guarded_and_only_at_their_start():
    assert cells(one_column("number", -1.5))[1:] == [["-1.5"]]
    assert cells(one_column("count", -3))[1:] == [["-3"]]
    assert cells(one_column("text", "a=b", "'x", ""))[1:] == [["a=b"], ["'x"], [""]]


@pytest.mark.parametrize(
    "text", ['a,"b"', "two\nlines", "\u4e2d|\u202e", " led by a space", "a\rb"]
)
def test_a_text_reads_back_as_it_was(text: str):
    assert cells(one_column("text", text))[1:] == [[text]]


def test_each_table_has_a_file_of_its_name_and_nothing_is_left_half_done(tmp_path: Path):
    tables = (one_column("text", "a", name="first"), one_column("count", 1, name="second"))
    paths = write_tables(tables, tmp_path)
    assert paths == (tmp_path / "tables" / "first.csv", tmp_path / "tables" / "second.csv")
    assert sorted((tmp_path / "tables").iterdir()) == list(paths)
    assert [path.read_bytes().decode() for path in paths] == [csv_text(one) for one in tables]


def test_two_tables_of_one_name_are_refused_before_anything_is_written(tmp_path: Path):
    table = one_column("text", "a")
    with pytest.raises(InputError, match="tables of different names"):
        write_tables((table, table), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path):
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(OutputError, match="expected to write to"):
        write_tables((one_column("text", "a"),), tmp_path)


def test_tables_of_an_earlier_report_do_not_stay(tmp_path: Path):
    first, second = (Table(name, "t", "", (Column("a", "a", "text"),), ()) for name in "xy")
    write_tables([first, second], tmp_path)
    assert write_tables([second], tmp_path) == (tmp_path / "tables" / "y.csv",)
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["y.csv"]
