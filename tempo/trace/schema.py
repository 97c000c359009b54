"""The trace format: header, small records, and the names of the tensors.

`docs/trace-format.md` is its description.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

# Readers refuse any other number; a change of names or meaning needs a new one.
TRACE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """Facts about a trace as a whole; the content of `trace.json`.

    Attributes:
        layers: Captured layers; the layer axis of every tensor.
        heads: Captured query heads; the head axis of every tensor.
        scaling: Factor on raw scores, for each captured layer.
        window: Sliding window in positions for each captured layer, None where the layer is full.
        softcap: Soft cap on scaled scores for each captured layer, None where there is none.
        sinks: Learned sink score for each captured layer and head (gpt-oss), None without them.
        tokens: Text of every token id that the trace mentions.
        stopped: Why decoding ended: steps, eos, forced, context; `running` until it did.
    """

    prompt_id: str
    arm: str
    prompt: str
    level: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    scaling: tuple[float, ...]
    window: tuple[int | None, ...]
    softcap: tuple[float | None, ...]
    sinks: tuple[tuple[float, ...] | None, ...] | None
    model: Mapping[str, Any]
    policy: Mapping[str, Any]
    run: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[int, str] = field(default_factory=dict)
    text: str = ""
    stopped: str = "running"
    last_step: int = -1


@dataclass(frozen=True, slots=True)
class Readout:
    """The next-token distribution after a step, best token first.

    Attributes:
        token: Ids of the tokens kept (256, or all where the trace was made with full readouts).
        log_probability: Their natural-log probabilities.
        tail_mass: Probability of all other tokens together.
        entropy_nats: Entropy of the whole distribution, tail included.
    """

    token: Int64[np.ndarray, " top"]
    log_probability: Float32[np.ndarray, " top"]
    tail_mass: float
    entropy_nats: float


def tensor_name(step: int, name: str) -> str:
    """Key of a step's tensor in the mapping and in the shards."""
    # Five digits keep keys in the order of steps when sorted.
    return f"step/{step:05d}/{name}"


def visible_name(window: int | None) -> str:
    """Name of the packed visibility of layers with this sliding window."""
    # Layers with the same window see the same slots, so visibility is stored once for all of them.
    return "visible/full" if window is None else f"visible/window_{window}"


def bias_name(window: int | None) -> str:
    """Name of the score bias in layers with this sliding window."""
    return "bias/full" if window is None else f"bias/window_{window}"
