"""The tables of a report as data, for whoever shows or stores them."""

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.grid import Column, Table
from analysis.heads import KINDS, RULE
from analysis.metrics import metric_row
from analysis.results import Results
from analysis.tables import (
    arm_rows,
    fact_rows,
    head_rows,
    kind_rows,
    ratio_rows,
    readout_rows,
    set_rows,
    split_rows,
    twin_rows,
)
from tempo.trace.run import Run

SPLIT_TITLE = "What a set does to the attention its members get"
_RATIO_NOTE = (
    "Mean weight per earlier slot in sets of width >= 2 over mean weight per other earlier slot, "
    "in the rows of one step. Even attention gives 1. Intervals hold for each step by itself."
)
_HEADS_NOTE = (
    "The heads that differ most surely from their null, by the ratio without slot 0: by q, "
    "adjusted over all heads (Benjamini-Hochberg; a dash means not tested), then by distance from "
    "the null, or from 1 where there is none."
)
_TWINS_NOTE = (
    "What changed is read off the traces: tokens, positions, relation, bias, weights, deaths and "
    "the model were compared slot by slot, and a twin in which anything but its own axis differs "
    "is refused (relation and bias can be compared on the same tokens only). The ratio is weight "
    "per slot of earlier sets over weight per other earlier slot, twin over reference; 1 is no "
    "change. JS (nats), cosine and the share of prompts and steps with the same best token compare "
    "the readouts from the first set of width >= 2 on. Intervals are paired by prompt."
)
_SPLIT_NOTE = (
    "Every member of every set that another set follows was decoded again without its siblings, "
    "everything else forced: alone. For each layer, head and query of the next set, the mass of a "
    "member in its set over its mass alone is exactly score drift times competition. Score drift "
    "is the change of its score relative to the slots of the prompt: below 1, down-weighting. "
    "Competition is the change of the mass on those slots: what the normaliser took. Independent "
    "odds predict competition, hence dilution, from the masses alone. Factors are geometric means; "
    "1 is a token alone. In first sets alone is a plain sequential run."
)
_BOUNDS_NOTE = (
    "KL, JS (nats) and cosine are lower bounds: outcomes that one of the stored lists leaves out "
    "are merged into one. Shared mass near 1 means that they are tight."
)
_EXACT_NOTE = "KL and JS are in nats and exact: whole readouts were stored."


def tables_of(run: Run, results: Results) -> tuple[Table, ...]:
    """Every table of a run that has a row, in the order of the report."""
    tables = (
        _refusals(results),
        _facts(run),
        _arms(run, results),
        _metrics(results),
        _ratio(results),
        _kinds(results),
        _heads(results),
        _sets(results),
        _twins(results),
        _split(results),
        _readouts(results),
    )
    return tuple(table for table in tables if table.rows)


def _text(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "text")


def _number(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "number")


def _count(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "count")


def _interval(key: str, heading: str = "") -> Column:
    return Column(key, heading or key, "interval")


def _rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[Column]) -> tuple[Any, ...]:
    """The cells that have a column; the other values of a row are left out."""
    keys = [column.key for column in columns]
    return tuple({key: row[key] for key in keys} for row in rows)


def _refusals(results: Results) -> Table:
    columns = (_text("question"), _text("arm"), _text("reason"))
    rows = ({"question": r.question, "arm": r.arm, "reason": r.reason} for r in results.refusals)
    return Table("refusals", "Not answered", "", columns, tuple(rows))


def _facts(run: Run) -> Table:
    rows = ({"fact": fact, "value": value} for fact, value in fact_rows(run).items())
    return Table("facts", "What was run", "", (_text("fact"), _text("value")), tuple(rows))


def _arms(run: Run, results: Results) -> Table:
    columns = (_text("arm"), _text("role"), _text("policy"))
    rows = ({"arm": a, "role": role, "policy": p} for a, role, p in arm_rows(run, results))
    return Table("arms", "Arms", "", columns, tuple(rows))


def _metrics(results: Results) -> Table:
    columns = (
        _text("name", "metric"),
        _text("arm"),
        *(_number(key) for key in ("estimate", "low", "high")),
        _count("n", "prompts"),
        *(_number(key) for key in ("chance", "null")),
        *(_text(key) for key in ("verdict", "unit")),
        _text("method", "interval"),
    )
    rows = (
        {**metric_row(metric), "unit": metric.unit, "method": metric.interval.method}
        for metric in results.metrics
    )
    return Table("metrics", "Every number", "", columns, tuple(rows))


def _ratio(results: Results) -> Table:
    columns = (
        _text("arm"),
        _text("sink", "slot 0"),
        _count("step"),
        _number("estimate", "ratio"),
        _number("low"),
        _number("high"),
        _count("n", "prompts"),
        _number("null_estimate", "null"),
        _number("null_low", "null low"),
        _number("null_high", "null high"),
    )
    rows = _rows(ratio_rows(results), columns)
    return Table("ratio_by_step", "The ratio, step by step", _RATIO_NOTE, columns, rows)


def _kinds(results: Results) -> Table:
    columns = (_text("arm"), _count("n", "prompts"), *(_count(kind) for kind in KINDS))
    rows = (
        {"arm": arm, "n": n} | dict(zip(KINDS, counts, strict=True))
        for arm, n, counts in kind_rows(results)
    )
    return Table("head_kinds", "Heads", RULE, columns, tuple(rows))


def _heads(results: Results) -> Table:
    columns = (
        _text("arm"),
        _text("head"),
        _number("ratio"),
        _number("null"),
        _number("q"),
        _number("sink", "sink mass"),
        _number("sink_chance", "chance"),
        _number("entropy", "entropy without slot 0"),
        _number("entropy_chance", "chance"),
        _text("kind"),
    )
    rows = _rows(head_rows(results), columns)
    return Table("heads", "Heads that differ from their null", _HEADS_NOTE, columns, rows)


def _sets(results: Results) -> Table:
    columns = (
        _text("arm"),
        _count("n_sets", "sets"),
        _count("n_parallel", "of width >= 2"),
        _text("dropped", "left out"),
        _text("stopped", "ended"),
        _number("largest", "largest mass on siblings"),
        _number("hidden", "where none was visible"),
    )
    return Table("sets", "Sets", "", columns, _rows(set_rows(results), columns))


def _twins(results: Results) -> Table:
    columns = (
        _text("twin"),
        _text("changed", "what changed"),
        _count("n", "prompts"),
        _interval("without", "ratio without slot 0"),
        _interval("with", "ratio with slot 0"),
        _interval("js", "JS"),
        _interval("cosine"),
        _interval("top_1_overlap", "same best token"),
    )
    title = "Twins: the same tokens, one thing changed"
    return Table("twins", title, _TWINS_NOTE, columns, _rows(twin_rows(results), columns))


def _split(results: Results) -> Table:
    columns = (
        _text("name", "in the set over alone"),
        _interval("first", "first sets"),
        _count("first_n", "prompts"),
        _interval("every", "all sets"),
        _count("every_n", "prompts"),
    )
    rows = (
        row | {"first_n": row["first"].n, "every_n": row["every"].n} for row in split_rows(results)
    )
    return Table("split", SPLIT_TITLE, _SPLIT_NOTE, columns, tuple(rows))


def _readouts(results: Results) -> Table:
    columns = (
        _text("pair"),
        _count("step"),
        _number("kl_forward", "KL forward"),
        _number("kl_backward", "KL backward"),
        _number("js", "JS"),
        _number("low"),
        _number("high"),
        _number("top_overlap", "top-10 shared"),
        _number("cosine"),
        _number("shared_mass", "shared mass"),
        _count("n", "prompts"),
    )
    are_bounds = any(found.lower_bounds for found in results.divergence.values())
    note = _BOUNDS_NOTE if are_bounds else _EXACT_NOTE
    rows = _rows(readout_rows(results), columns)
    return Table("readouts_by_step", "Readouts on identical tokens", note, columns, rows)
