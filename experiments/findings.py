"""Writes FINDINGS.md from the results of the experiments; no number in it is typed.

Each finding is one disputable sentence. Its status follows from the interval by the rule that the
entry states.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "FINDINGS.md"
Result = Mapping[str, Any]

HEAD = """\
# Findings

Made by `make findings` from the `result.json` of each experiment; no number here is typed, and a
test holds this page against those files. The unit is the prompt; intervals are 95 %, over prompts.
A finding that turns out wrong stays here as refuted.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One entry.

    Attributes:
        claim: The sentence that is tested.
        evidence: What was measured, with numbers.
        status: supported, refuted or inconclusive.
        rule: How the status follows from the interval.
        controls: What the number is held against, and what would change our mind.
    """

    claim: str
    evidence: str
    status: str
    rule: str
    controls: str


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


def page(
    results: Mapping[str, Result], entries: Mapping[str, Callable[[Result], list[Finding]]]
) -> str:
    """The whole page."""
    parts = [HEAD]
    number = 0
    for name, result in results.items():
        for finding in entries[name](result):
            number += 1
            parts.append(_entry(f"F{number:02d}", finding, result))
    return "\n".join(parts)


def _entry(label: str, finding: Finding, result: Result) -> str:
    model = result["model"]
    made = (
        f"`{result['experiment']}`, `{result['command']}`; {model['name']} "
        f"({model['fingerprint'][:12]}, {model['dtype']}); {result['n_prompts']} prompts; traces "
        f"{result['trace_hash'][:12]}; commit {result['commit']}; {result['date']}"
    )
    return (
        f"## {label}. {finding.claim}\n\n"
        f"**{finding.status}.** {finding.evidence}\n\n"
        f"- Rule: {finding.rule}\n"
        f"- Controls: {finding.controls}\n"
        f"- Made by: {made}\n"
    )


def read_results() -> dict[str, Result]:
    """The results of all experiments that have one, in order."""
    files = sorted(HERE.glob("e*/result.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def main() -> None:
    """Write FINDINGS.md."""
    from experiments.entries import ENTRIES

    PAGE.write_text(page(read_results(), ENTRIES), encoding="utf-8")


if __name__ == "__main__":
    main()
