"""What an experiment leaves: the numbers, and enough to make them again."""

import datetime
import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tempo.policy.slots import SlotTable
from tempo.trace.run import Run
from tempo.trace.store import write_json
from tempo_analysis.parallel.results import Results
from tempo_analysis.parallel.run_numbers import ArmResults
from tempo_analysis.report.document import plain

FORMAT = 1
_DIGITS = 6


def write_result(
    folder: Path,
    run: Run,
    results: Results,
    *,
    command: str,
    experiment: str | None = None,
    **more: Any,
) -> None:
    """Write `result.json`: metrics, curves, values by prompt, and how the run was made.

    Args:
        experiment: Its name, where the folder is not its own.
        more: Further numbers of this experiment.
    """
    document = results.document()
    document["detail"] = {
        "by_arm": {arm: _curves(found) for arm, found in results.by_arm.items()},
        "divergence": document["detail"]["divergence"],
        "refusals": document["detail"]["refusals"],
        "heads_rule": document["detail"]["heads"]["rule"],
    }
    document |= made_by(
        experiment or folder.name,
        command=command,
        facts=run.settings["model_facts"],
        versions=run.settings["versions"],
        trace_hash=trace_hash(run),
    )
    document |= {
        "n_sets": {arm: _parallel_sets(run, arm) for arm in run.arms},
        "prompts": [prompt.id for prompt in run.prompts],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", document | plain(more))


def write_document(
    folder: Path, document: Mapping[str, Any], *, made: Mapping[str, Any], prompts: list[str]
) -> None:
    """Write the `result.json` of an experiment that leaves no run; floats to six digits.

    Args:
        folder: Made if it is not there.
        document: Its numbers: metrics, detail and what else it found.
        made: What `made_by` says.
        prompts: Ids of the prompts (or probes) that the numbers are over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"format": FORMAT, "n_prompts": len(prompts)} | dict(document) | dict(made)
    write_json(folder / "result.json", rounded(plain(whole | {"prompts": prompts})))


def made_by(
    experiment: str,
    *,
    command: str,
    facts: Mapping[str, Any],
    versions: Mapping[str, str],
    trace_hash: str,
) -> dict[str, Any]:
    """How the numbers were made.

    Args:
        experiment: Its name.
        command: What was run.
        facts: Of the model, as `tempo.run.recorder.facts_of_model` gives them.
        versions: Of what ran.
        trace_hash: Over the sequences that were decoded; see `hash_of`.
    """
    return {
        "experiment": experiment,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "model": {name: facts[name] for name in ("name", "fingerprint", "dtype")},
        "versions": versions,
        "trace_hash": trace_hash,
    }


def rounded(value: Any, digits: int = _DIGITS) -> Any:
    """JSON values with floats to so many significant digits."""
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def trace_hash(run: Run) -> str:
    """SHA-256 over the tokens and positions of every trace, in order."""
    return hash_of((name, arm, trace.slots) for (name, arm), trace in run.traces.items())


def hash_of(sequences: Iterable[tuple[str, str, SlotTable]]) -> str:
    """SHA-256 over the tokens and positions of (prompt id, arm, slots), in order."""
    digest = hashlib.sha256()
    for prompt_id, arm, slots in sequences:
        line = f"{prompt_id} {arm} {slots.token.tolist()} {slots.position.tolist()}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _commit() -> str:
    """The commit the numbers were made with, marked where code had changed since."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    results = [":(exclude)experiments/*/result.json", ":(exclude)FINDINGS.md"]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *results)
    return f"{commit}-dirty" if commit and changed else commit or "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


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
