"""The JSON documents that `--json` prints; keys do not change within a format number."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tempo.models.registry import NamedModel
from tempo.run.budget import MemoryPlan
from tempo.trace.run import Run
from tempo.trace.run_folder import trace_folder
from tempo.trace.trace import Trace

FORMAT = 1

Document = dict[str, Any]


def generated(run: Run) -> Document:
    """What `generate` decoded."""
    traces = [_trace(trace, run.folder) for trace in run]
    out = None if run.folder is None else str(run.folder)
    return _headed("generate", model=run.settings["model"], out=out, traces=traces)


def planned(command: str, model: str, memory: MemoryPlan) -> Document:
    """Memory and storage that a run would need."""
    return _headed(command, model=model, plan=asdict(memory))


def named(listed: Sequence[NamedModel]) -> Document:
    """The named models."""
    return _headed("models list", models=[asdict(model) for model in listed])


def reported(run: Path, paths: Sequence[Path]) -> Document:
    """The paths of a report."""
    return _headed("report", run=str(run), paths=[str(path) for path in paths])


def viewed(run: Path, page: Path, *, opened: bool) -> Document:
    """Which page was opened."""
    return _headed("view", run=str(run), path=str(page), opened=opened)


def diagnosed(model: str, diagnosis: Any) -> Document:
    """The checks of the doctor.

    Args:
        diagnosis: A `tempo.doctor.Diagnosis`; not named in the signature, as that imports torch.
    """
    checks = [asdict(check) for check in diagnosis.checks]
    facts = dict(diagnosis.model)
    return _headed("doctor", model=model, healthy=diagnosis.healthy, facts=facts, checks=checks)


def _headed(command: str, **content: Any) -> Document:
    return {"format": FORMAT, "command": command, **content}


def _trace(trace: Trace, folder: Path | None) -> Document:
    header = trace.header
    path = None if folder is None else str(trace_folder(folder, header.prompt_id, header.arm))
    return {
        "prompt": header.prompt,
        "arm": header.arm,
        "path": path,
        "text": trace.text(),
        "stopped": header.stopped,
        "steps": [_step(trace, step) for step in range(1, trace.n_steps + 1)],
    }


def _step(trace: Trace, step: int) -> Document:
    members = trace.members(step).tolist()
    return {
        "step": step,
        # The position of rank 0: the others share it, or lie at an offset from it.
        "position": float(trace.slots.position[members[0]]),
        "members": [_member(trace, slot) for slot in members],
        "dropped": [
            {
                "token": dropped.token,
                "text": trace.header.tokens[dropped.token],
                "probability": dropped.probability,
                "reason": dropped.reason,
            }
            for dropped in trace.dropped(step)
        ],
    }


def _member(trace: Trace, slot: int) -> Document:
    return {
        "slot": slot,
        "token": int(trace.slots.token[slot]),
        "text": trace.token_text(slot),
        "probability": float(trace.slots.probability[slot]),
        "rank": int(trace.slots.rank[slot]),
    }
