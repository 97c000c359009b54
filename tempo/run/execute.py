"""Decodes a request batch by batch, in memory or into a run folder, and resumes old folders."""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tempo.engine.branch import Fork, decode_forks
from tempo.engine.capture import Capture
from tempo.engine.decode import decode
from tempo.engine.edits import check_applied
from tempo.engine.state import DecodeContext, SequencePlan, StepOutcome
from tempo.policy.serialize import edit_to_dict, rule_to_dict
from tempo.run.batching import Batch, Layout, fitting
from tempo.run.recorder import Recorder, facts_of_model, first_header, text_of, versions
from tempo.run.request import ALONE_ARM, Request, TraceKey
from tempo.trace.run import Run
from tempo.trace.run_folder import Manifest, claim, is_whole, open_run, trace_folder, write_manifest
from tempo.trace.store import TraceKeeper, TraceWriter
from tempo.trace.trace import Trace
from tempo.vocabulary import TOP_READOUT

OnStep = Callable[[StepOutcome], None]
EDITS_FOUND = "edits_found"
"""Key in a trace header: indices of the edits that applied to some cell in its batch."""


def execute(
    request: Request,
    planned: Layout,
    *,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnStep | None = None,
) -> Run:
    """Decode a request, or continue one that was interrupted in the same folder."""
    folder = None if out is None else Path(out)
    manifest = _manifest(request, planned)
    if folder is not None and claim(folder, manifest, force=force):
        return replace(open_run(folder), already_complete=True)
    kept: dict[TraceKey, Trace] = {}
    for batch in planned.batches:
        plans = _plans(request, batch, kept, folder)
        kept |= decode_batch(request, batch.capture, plans, folder=folder, on_progress=on_progress)
    if request.alone is not None:
        kept |= _decode_alone(request, planned, kept, folder=folder, on_progress=on_progress)
    # Last, because an edit may apply in one batch only; on disk, batches of earlier calls count
    # too.
    check_found(request, kept if folder is None else open_run(folder).traces)
    if folder is None:
        return Run(
            request.prompts, tuple(manifest.policies), manifest.policies, kept, manifest.settings
        )
    # After the last trace: a folder that is marked complete is never resumed.
    write_manifest(folder, replace(manifest, complete=True))
    return open_run(folder)


def decode_batch(
    request: Request,
    capture: Capture,
    plans: Mapping[TraceKey, SequencePlan],
    *,
    folder: Path | None = None,
    on_progress: OnStep | None = None,
) -> dict[TraceKey, Trace]:
    """Decode one batch; a batch that is complete on disk is skipped."""
    # A batch is decoded whole or not at all: what decodes together changes rounding, so a resumed
    # run keeps its batches.
    if not plans or (
        folder is not None and all(is_whole(trace_folder(folder, *pair)) for pair in plans)
    ):
        return {}
    recorders = [_recorder(request, capture, plan, folder) for plan in plans.values()]
    session = _session(request, capture, recorders, on_progress)
    try:
        decodings = decode(session, list(plans.values()))
    finally:
        for recorder in recorders:
            # Also after an error: steps that were finished stay readable.
            recorder.writer.flush()
    found = {EDITS_FOUND: sorted(session.applied_edits)} if request.edits else {}
    for recorder, decoding in zip(recorders, decodings, strict=True):
        recorder.writer.close(decoding.stopped, **found)
    return _in_memory(plans, recorders)


def check_found(request: Request, traces: Mapping[TraceKey, Trace]) -> None:
    """Refuse edits that applied to nothing in any batch, including batches of earlier calls.

    Raises:
        InputError: Names the first of them.
    """
    if request.edits:
        found = [trace.header.run.get(EDITS_FOUND, []) for trace in traces.values()]
        check_applied(request.edits, {number for each in found for number in each})


def _decode_alone(
    request: Request,
    planned: Layout,
    kept: Mapping[TraceKey, Trace],
    *,
    folder: Path | None,
    on_progress: OnStep | None,
) -> dict[TraceKey, Trace]:
    """Decode every member of every set of one arm without its siblings.

    A member leaves its prompt's run at its set, so the past is run once for all of them. What
    decodes together follows from the traces of that arm, so a resumed run makes the same.
    """
    traces = kept if folder is None else open_run(folder).traces
    references = [traces[prompt.id, str(request.alone)] for prompt in request.prompts]
    forks: dict[TraceKey, Fork] = {}
    for number, trace in enumerate(references):
        for pair, plan in request.alone_plans(trace).items():
            # It leaves the run of its prompt just before the first step whose rows are kept.
            forks[pair] = Fork(len(forks), number, plan.capture_from_step - 1, plan)
    if folder is not None and all(is_whole(trace_folder(folder, *pair)) for pair in forks):
        return {}
    return _decode_forks(
        request, planned, references, forks, folder=folder, on_progress=on_progress
    )


def _decode_forks(
    request: Request,
    planned: Layout,
    references: Sequence[Trace],
    forks: Mapping[TraceKey, Fork],
    *,
    folder: Path | None,
    on_progress: OnStep | None,
) -> dict[TraceKey, Trace]:
    recorders = [_recorder(request, planned.rows, fork.plan, folder) for fork in forks.values()]
    session = _session(request, planned.rows, recorders, on_progress)
    trunks = [request.again(trace) for trace in references]
    try:
        decodings = decode_forks(session, trunks, fitting(request, list(forks.values())))
    finally:
        for recorder in recorders:
            recorder.writer.flush()
    for number, recorder in enumerate(recorders):
        recorder.writer.close(decodings[number].stopped)
    return _in_memory(forks, recorders)


def _session(
    request: Request, capture: Capture, recorders: Sequence[Recorder], on_progress: OnStep | None
) -> DecodeContext:
    """A decoding context that records every outcome and then reports it."""

    def take(outcome: StepOutcome) -> None:
        recorders[outcome.number].take(outcome)
        if on_progress is not None:
            on_progress(outcome)

    size = None if request.options.readouts == "full" else TOP_READOUT
    return DecodeContext(request.model, capture, size, take, edits=request.edits)


def _in_memory(pairs: Iterable[TraceKey], recorders: Sequence[Recorder]) -> dict[TraceKey, Trace]:
    """Traces of recorders that keep them in memory; empty for recorders on disk."""
    keepers = {pair: recorder.writer for pair, recorder in zip(pairs, recorders, strict=True)}
    return {
        pair: keeper.trace() for pair, keeper in keepers.items() if isinstance(keeper, TraceKeeper)
    }


def _recorder(
    request: Request, capture: Capture, plan: SequencePlan, folder: Path | None
) -> Recorder:
    prompt = next(prompt for prompt in request.prompts if prompt.id == plan.prompt_id)
    text = prompt.text or "".join(text_of(request.model, token) for token in plan.token_ids)
    header = first_header(request.model, plan, capture, prompt=text, run=_made_by(request))
    if folder is None:
        return Recorder(request.model, TraceKeeper(header))
    return Recorder(
        request.model, TraceWriter(trace_folder(folder, plan.prompt_id, plan.arm), header)
    )


def _plans(
    request: Request, batch: Batch, kept: Mapping[TraceKey, Trace], folder: Path | None
) -> dict[TraceKey, SequencePlan]:
    """Plans of a batch; a reference without sets (its prompt ended it) has no replay."""
    if not batch.replays:
        return {pair: request.plan(pair) for pair in batch.pairs}
    traces = kept if folder is None else open_run(folder).traces
    references = {pair: traces[pair[0], request.replays[pair[1]][0]] for pair in batch.pairs}
    return {
        pair: request.replay_plan(pair, trace)
        for pair, trace in references.items()
        if trace.n_steps
    }


def _manifest(request: Request, planned: Layout) -> Manifest:
    policies = {name: rule_to_dict(policy) for name, policy in request.arms.items()}
    for name, (reference, change) in request.replays.items():
        policies[name] = rule_to_dict(change) | {"sets_of": reference}
    if request.alone is not None:
        policies[f"{ALONE_ARM}@{request.alone}"] = {"rule": "Alone", "sets_of": request.alone}
    settings = request.options.model_dump(mode="json") | {
        "level": planned.level,
        "token_ids": {name: list(ids) for name, ids in request.token_ids.items()},
        "replays": {name: reference for name, (reference, _) in request.replays.items()},
        "axes": {name: sorted(change.axes) for name, (_, change) in request.replays.items()},
        "alone_of": request.alone,
    }
    batches = tuple(batch.pairs for batch in planned.batches)
    return Manifest(request.prompts, policies, batches, settings | _made_by(request))


def _made_by(request: Request) -> dict[str, Any]:
    return {
        "model_facts": facts_of_model(request.model),
        "versions": versions(),
        # Recorded, but not part of the configuration hash: the same run from Python, or with
        # options in another order, must be found again.
        "command": shlex.join(["tempo", *sys.argv[1:]])
        if Path(sys.argv[0]).name == "tempo"
        else "python",
        "steps": request.options.steps,
        "seed": request.options.seed,
    } | ({"edits": [edit_to_dict(edit) for edit in request.edits]} if request.edits else {})
