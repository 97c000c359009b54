"""What an experiment leaves: the numbers, and enough to make them again."""

import datetime
import hashlib
import subprocess
from pathlib import Path
from typing import Any

from analysis.results import ArmResults, Results, plain
from tempo.manifest import Run
from tempo.store import write_json


def write_result(folder: Path, run: Run, results: Results, *, command: str, **more: Any) -> None:
    """Write `result.json`: metrics, curves, values by prompt, and how the run was made.

    Args:
        more: Further numbers of this experiment.
    """
    document = results.document()
    facts = run.settings["model_facts"]
    document["detail"] = {
        "by_arm": {arm: _curves(found) for arm, found in results.by_arm.items()},
        "divergence": document["detail"]["divergence"],
        "refusals": document["detail"]["refusals"],
        "heads_rule": document["detail"]["heads"]["rule"],
    }
    document |= {
        "experiment": folder.name,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "model": {name: facts[name] for name in ("name", "fingerprint", "dtype")},
        "versions": run.settings["versions"],
        "trace_hash": trace_hash(run),
        "n_sets": {arm: _parallel_sets(run, arm) for arm in run.arms},
        "prompts": [prompt.id for prompt in run.prompts],
    }
    write_json(folder / "result.json", document | plain(more))


def trace_hash(run: Run) -> str:
    """SHA-256 over the tokens and positions of every trace, in order."""
    digest = hashlib.sha256()
    for (prompt_id, arm), trace in run.traces.items():
        slots = trace.slots
        line = f"{prompt_id} {arm} {slots.token.tolist()} {slots.position.tolist()}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _commit() -> str:
    """The commit the numbers were made with, marked where the tree had changed since."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def _curves(found: ArmResults) -> dict[str, Any]:
    return {
        "entropy": plain(found.entropy),
        "ratio_by_step": {sink: plain(ratio.by_step) for sink, ratio in found.ratio.items()},
        "null_by_step": {sink: plain(ratio.null_by_step) for sink, ratio in found.ratio.items()},
        "log_ratio_by_prompt": {
            sink: plain(ratio.log_ratio) for sink, ratio in found.ratio.items()
        },
        "heads_off_null": {sink: ratio.heads_off_null() for sink, ratio in found.ratio.items()},
        "heads_by_kind": found.heads.kind_count() if found.heads else None,
        "sibling_mass": plain(found.siblings),
    }


def _parallel_sets(run: Run, arm: str) -> int:
    """Sets of width >= 2 in one arm."""
    return sum(int((trace.slots.rank == 1).sum()) for _, (trace,) in run.pairs(arm))
