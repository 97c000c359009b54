"""Writes FINDINGS.md from the results of the experiments; no number in it is typed.

Each finding is one disputable sentence. Its status follows from the interval by the rule that the
entry states.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path

from experiments.finding import Finding, Result

HERE = Path(__file__).parent
PAGE = HERE.parent / "FINDINGS.md"

HEAD = """\
# Findings

Made by `make findings` from the `result.json` of each experiment; no number here is typed, and a
test holds this page against those files. The unit is the prompt; intervals are 95 %, over prompts.
A finding that turns out wrong stays here as refuted. Questions and predictions were written first,
except where they say otherwise: `experiments/*/question.md`.
"""
TABLE = """\
## What the original report said

| sentence | holds? | why | finding |
|---|---|---|---|
"""

ENOUGH_SETS = 200

Entries = Callable[[Result], list[Finding]]


def page(results: Mapping[str, Result], entries: Mapping[str, Entries]) -> str:
    """The whole page: the sentences of the original report, then every finding."""
    found = [
        (finding, result) for name, result in results.items() for finding in entries[name](result)
    ]
    labelled = [(f"F{number:02d}", *pair) for number, pair in enumerate(found, 1)]
    rows = [
        f"| {finding.published} | {finding.status} | {finding.why} | {label} |\n"
        for label, finding, _ in labelled
        if finding.published
    ]
    table = [TABLE + "".join(rows)] if rows else []
    return "\n".join([HEAD, *table, *(_entry(*one) for one in labelled)])


def _entry(label: str, finding: Finding, result: Result) -> str:
    model = result["model"]
    made = (
        f"`{result['experiment']}`, `{result['command']}`; {model['name']} "
        f"({model['fingerprint'][:12]}, {model['dtype']}); {result['n_prompts']} prompts; traces "
        f"{result['trace_hash'][:12]}; commit {result['commit']}; {result['date']}"
    )
    n_sets = max(result["n_sets"].values()) if "n_sets" in result else ENOUGH_SETS
    few = f" A description: {n_sets} sets, a claim needs {ENOUGH_SETS}." * (n_sets < ENOUGH_SETS)
    return (
        f"## {label}. {finding.claim}\n\n"
        f"**{finding.status}.** {finding.evidence}{few}\n\n"
        f"- Rule: {finding.rule}\n"
        f"- Controls: {finding.controls}\n"
        f"- Made by: {made}\n"
    )


def read_results(folder: Path = HERE) -> dict[str, Result]:
    """The results of all experiments that have one in a folder, in order."""
    files = sorted(folder.glob("e*/result.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def entries_of(names: Iterable[str]) -> dict[str, Entries]:
    """The `entries` of each experiment, from the module beside its question."""
    return {name: import_module(f"experiments.{name}.entries").entries for name in names}


def main() -> None:
    """Write FINDINGS.md, or the page of the results in another folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--results", type=Path, default=HERE, help="folder of e*/result.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write")
    given = parser.parse_args()
    results = read_results(given.results)
    given.page.write_text(page(results, entries_of(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
