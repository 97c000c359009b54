"""Writes FINDINGS.md from the results of the experiments; no number in it is typed.

Each finding is one disputable sentence. Its status follows from the interval by the rule that the
entry states.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.entries import ENTRIES
from experiments.finding import Finding, Result

HERE = Path(__file__).parent
PAGE = HERE.parent / "FINDINGS.md"

HEAD = """\
# Findings

Made by `make findings` from the `result.json` of each experiment; no number here is typed, and a
test holds this page against those files. The unit is the prompt; intervals are 95 %, over prompts.
A finding that turns out wrong stays here as refuted.
"""


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
    PAGE.write_text(page(read_results(), ENTRIES), encoding="utf-8")


if __name__ == "__main__":
    main()
