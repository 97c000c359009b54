"""What the page knows of one prompt: the slots, sets and attention rows of every arm."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from analysis.arms import Arms
from analysis.page.packing import base64, pack_weights
from analysis.results import plain
from tempo.policy.slots import COLUMNS
from tempo.trace.run import Run
from tempo.trace.trace import Trace

MOST_BYTES = 4_500_000
"""Attention of one trace takes at most this much of the page, as long as coarser codes help."""

MOST_BYTES_BESIDE = 20_000_000
"""The same for a prompt that may lie in a file beside the page."""

Document = dict[str, Any]


def shown_arms(run: Run, arms: Arms) -> list[str]:
    """Arms of the page: those that decoded freely and the twins, not members alone.

    Twins stand behind their reference, the null last.
    """
    twins = {
        arm: [twin for twin, source in arms.replays.items() if source == arm] for arm in arms.free
    }
    parallel = [name for arm in arms.parallel for name in (arm, *twins[arm])]
    names = [*parallel, *(arm for arm in arms.free if arm not in parallel)]
    found = {arm for _, arm in run.traces}
    return [name for name in names if name in found]


def prompt_document(
    run: Run, prompt_id: str, arms: Sequence[str], *, most_bytes: int = MOST_BYTES
) -> Document:
    """One prompt under every arm that has a trace of it, as JSON values."""
    traces = {arm: run.traces[prompt_id, arm] for arm in arms if (prompt_id, arm) in run.traces}
    begun = {arm: trace for arm, trace in traces.items() if trace.header.last_step >= 0}
    return {"id": prompt_id, "arms": {arm: _arm(t, most_bytes) for arm, t in begun.items()}}


def _arm(trace: Trace, most_bytes: int) -> Document:
    return {
        "level": trace.level,
        "stopped": trace.header.stopped,
        "layers": list(trace.layers),
        "heads": list(trace.heads),
        "nSteps": trace.n_steps,
        "slots": _slots(trace),
        "readoutEntropy": [trace.readout(k).entropy_nats for k in range(trace.n_steps + 1)],
        "dropped": {str(k): _dropped(trace, k) for k in range(1, trace.n_steps + 1)},
        "rows": _rows(trace, most_bytes),
    }


def _slots(trace: Trace) -> Mapping[str, Any]:
    columns = {name: plain(getattr(trace.slots, name)) for name in COLUMNS}
    texts = [trace.token_text(slot) for slot in range(len(trace.slots))]
    return columns | {"text": texts}


def _dropped(trace: Trace, step: int) -> list[Document]:
    return [
        {"text": trace.header.tokens[one.token], "probability": one.probability, "why": one.reason}
        for one in trace.dropped(step)
    ]


def _rows(trace: Trace, most_bytes: int) -> Document | None:
    """Rows of the steps that were captured; None where only sums over groups were kept."""
    steps = [step for step in range(trace.n_steps + 1) if trace.has_rows(step)]
    if trace.level == "reduced" or not steps:
        return None
    packed = pack_weights([trace.attention(step) for step in steps], most_bytes=most_bytes)
    windows = list(dict.fromkeys(trace.header.window))
    visible = {step: trace.visible(step) for step in steps}
    first = [trace.header.window.index(window) for window in windows]
    return {
        "steps": steps,
        "data": base64(packed.data),
        "levels": packed.levels,
        "floor": packed.floor,
        "sumsToOne": not any(trace.header.sinks or ()),
        "relativeError": packed.relative_error,
        "windows": windows,
        "windowOfLayer": [windows.index(window) for window in trace.header.window],
        "visible": [_bits([visible[step][layer] for step in steps]) for layer in first],
    }


def _bits(seen: Sequence[Bool[np.ndarray, "_ _"]]) -> str:
    return base64(np.packbits(np.concatenate([one.ravel() for one in seen])).tobytes())
