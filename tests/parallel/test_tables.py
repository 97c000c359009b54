import csv
from dataclasses import replace
from pathlib import Path

import pytest

from tempo.testing.planted import planted_run
from tempo.trace.run import Run
from tempo_analysis.parallel.head_kinds import KINDS, RULE
from tempo_analysis.parallel.report import report_text
from tempo_analysis.parallel.results import Results, analyze
from tempo_analysis.parallel.tables import tables_of
from tempo_analysis.report.csv import csv_text
from tempo_analysis.report.table import Table
from tests.planted_runs import marked, paired_run

EVERY = {"facts", "arms", "metrics", "ratio_by_step", "head_kinds", "heads", "sets"}
PAIRED = {"twins", "split", "readouts_by_step"}


@pytest.fixture(scope="module")
def run() -> Run:
    return paired_run()


@pytest.fixture(scope="module")
def results(run: Run) -> Results:
    return analyze(run)


@pytest.fixture(scope="module")
def tables(run: Run, results: Results) -> dict[str, Table]:
    return {table.name: table for table in tables_of(run, results)}


def test_a_paired_run_has_every_table_and_a_name_is_used_once(run: Run, results: Results):
    names = [table.name for table in tables_of(run, results)]
    assert set(names) == EVERY | PAIRED
    assert len(names) == len(set(names))


def test_a_table_without_rows_is_left_out():
    run = marked(planted_run({"greedy": {"widths": (1, 1, 1), "relation": "greedy"}}, n_prompts=2))
    found = {table.name for table in tables_of(run, analyze(run))}
    assert found.isdisjoint({"ratio_by_step", "heads"} | PAIRED)
    assert {"facts", "arms", "metrics", "sets"} <= found


def test_what_was_refused_is_a_table_too():
    run = marked(planted_run({"isolated": {}}, n_prompts=2))
    results = analyze(run)
    found = {table.name: table for table in tables_of(run, results)}["refusals"]
    assert [row["reason"] for row in found.rows] == [each.reason for each in results.refusals]


def test_the_metrics_are_those_of_the_results_digit_by_digit(
    tables: dict[str, Table], results: Results
):
    rows = list(csv.DictReader(csv_text(tables["metrics"]).splitlines()))
    assert len(rows) == len(results.metrics)
    for row, metric in zip(rows, results.metrics, strict=True):
        assert (row["name"], row["arm"], row["verdict"]) == (
            metric.name,
            metric.arm,
            metric.verdict,
        )
        assert int(row["n"]) == metric.interval.n
        for key, value in (("estimate", metric.interval.estimate), ("null", metric.null)):
            assert row[key] == ("" if value != value else repr(value))


def test_the_split_keeps_its_intervals(tables: dict[str, Table], results: Results):
    row = tables["split"].rows[0]
    effect = results.set_effects["without"]
    first, every = effect.first.factor.total, effect.all_sets.factor.total
    assert (row["first"], row["every"]) == (first, every)


def test_each_interval_of_the_split_has_its_own_number_of_prompts(run: Run, results: Results):
    effect = results.set_effects["without"]
    total = replace(effect.first.factor.total, n=5)
    first = replace(effect.first, factor=replace(effect.first.factor, total=total))
    changed = replace(results, set_effects={"without": replace(effect, first=first)})
    row = {table.name: table for table in tables_of(run, changed)}["split"].rows[0]
    assert (row["first_n"], row["every_n"]) == (5, 9)


def test_heads_are_counted_by_kind_and_the_rule_stands_beside(tables: dict[str, Table]):
    found = tables["head_kinds"]
    assert found.note == RULE
    assert [column.key for column in found.columns] == ["arm", "n", *KINDS]
    assert {sum(row[kind] for kind in KINDS) for row in found.rows} == {4}


def test_the_report_shows_every_cell_of_every_table(
    run: Run, results: Results, tables: dict[str, Table]
):
    text = report_text(run, results, ())
    for table in tables.values():
        for row in table.shown():
            cells = (" ".join(cell.replace("|", "\\|").split()) for cell in row)
            assert f"\n| {' | '.join(cells)} |\n" in text
        assert table.note.splitlines()[-1:] == [] or table.note.splitlines()[-1] in text


def test_the_tables_are_written_beside_the_report(run: Run, results: Results, tmp_path: Path):
    results.save(tmp_path)
    written = {path.name: path.read_bytes().decode() for path in (tmp_path / "tables").iterdir()}
    assert written == {f"{table.name}.csv": csv_text(table) for table in tables_of(run, results)}
