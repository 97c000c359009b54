"""Tables of where heads look from t, and of what changes in that."""

from collections.abc import Iterator

from analysis.ablation.offsets import OffsetFindings
from tempo_analysis.report.table import Cell, Column, Table

REST = "rest"


def offset_tables(found: OffsetFindings) -> tuple[Table, ...]:
    """Distributions, their differences, and the heads that change most."""
    return _offsets(found), _differences(found), _changes(found)


def bin_names(n_bins: int) -> list[str]:
    """Offsets in words; the last bin holds the rest."""
    return [*map(str, range(n_bins - 1)), REST]


def _offsets(found: OffsetFindings) -> Table:
    columns = (
        Column("head", "head", "text"),
        Column("condition", "condition", "text"),
        Column("offset", "offset", "text"),
        Column("n", "prompts", "count"),
        Column("mean", "attention, mean", "number"),
        Column("sd", "sd", "number"),
        Column("even", "even row", "number"),
    )
    rows = tuple(
        {
            "head": str(one.head),
            "condition": one.condition,
            "offset": name,
            "n": int(one.n[place]),
            "mean": float(one.mean[place]),
            "sd": float(one.sd[place]),
            "even": float(found.even[place]),
        }
        for one in found.distributions
        for place, name in enumerate(bin_names(len(found.even)))
    )
    note = (
        "Share of the row of t at token t - offset, over the prompts that have one; the rest is "
        "all further tokens."
    )
    return Table("offsets", "Where heads look from t", note, columns, rows)


def _differences(found: OffsetFindings) -> Table:
    columns = (
        Column("head", "head", "text"),
        Column("comparison", "comparison", "text"),
        Column("offset", "offset", "text"),
        Column("n", "prompts", "count"),
        Column("difference", "attention, changed less reference", "interval"),
        Column("sd", "sd", "number"),
    )
    note = (
        "Paired over prompts; limits hold at all offsets of a head at once. The row `all` is the "
        "whole row: 0 where rows sum to 1, less what a knock-out after the softmax has lost."
    )
    return Table(
        "offset_differences",
        "What changes in where heads look",
        note,
        columns,
        tuple(_difference_rows(found)),
    )


def _difference_rows(found: OffsetFindings) -> Iterator[dict[str, Cell]]:
    for one in found.differences:
        named = {"head": str(one.head), "comparison": str(one.comparison)}
        for place, name in enumerate(bin_names(len(found.even))):
            point, sd = one.share.at(place), float(one.share.sd[place])
            yield {**named, "offset": name, "n": point.n, "difference": point, "sd": sd}
        whole = {"n": one.row.n, "difference": one.row, "sd": float("nan")}
        yield {**named, "offset": "all", **whole}


def _changes(found: OffsetFindings) -> Table:
    columns = (
        Column("comparison", "comparison", "text"),
        Column("head", "head", "text"),
        Column("n", "prompts", "count"),
        Column("variation", "half the absolute difference", "interval"),
    )
    rows = tuple(
        {
            "comparison": str(one.comparison),
            "head": str(one.head),
            "n": one.variation.n,
            "variation": one.variation,
        }
        for one in found.changes
    )
    note = (
        "0 = the same row, 1 = no token in common; total variation where both rows sum to 1. The "
        "most changed heads are chosen on the prompts they are measured on, so their numbers are "
        "biased up; then the named heads."
    )
    return Table("head_changes", "Heads whose rows change most", note, columns, rows)
