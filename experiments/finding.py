"""A finding, and how its numbers and its status are read off a result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
"""The content of a `result.json`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One entry.

    Attributes:
        claim: The sentence that is tested.
        evidence: What was measured, with numbers.
        status: supported, refuted or inconclusive.
        rule: How the status follows from the interval.
        controls: What the number is held against, and what would change our mind.
        published: The sentence of the original report that it tests; empty where none.
        why: What the numbers say about that sentence, in words.
    """

    claim: str
    evidence: str
    status: str
    rule: str
    controls: str
    published: str = ""
    why: str = ""


def metric(result: Result, name: str, arm: str) -> Mapping[str, Any]:
    """One row of the metrics of an experiment."""
    rows = [row for row in result["metrics"] if (row["name"], row["arm"]) == (name, arm)]
    assert len(rows) == 1, f"expected one {name} of {arm}, got {len(rows)}"
    return rows[0]


def shown(row: Mapping[str, Any]) -> str:
    """An estimate with its interval."""
    if row["low"] == row["high"] == row["estimate"]:
        return f"{row['estimate']:.3g} (every prompt)"
    return f"{row['estimate']:.3g} ({row['low']:.3g} to {row['high']:.3g})"


def side(row: Mapping[str, Any], *, of: float) -> int:
    """-1, 0 or 1: the interval lies below, around or above a value."""
    return -1 if row["high"] < of else int(row["low"] > of)


def status_of(holds: bool, fails: bool) -> str:
    """In words."""
    return "supported" if holds else "refuted" if fails else "inconclusive"
