"""How far back does a head look in a parallel trace, in positions?

Offset 0 is ambiguous there: the query and its siblings share a position. So the query itself, its
siblings and the step before are kept apart.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from analysis.roles.logical import positions_behind
from tempo.errors import InputError
from tempo.vocabulary import SINK_SLOT
from tempo_analysis.parallel.entropy import SMALLEST_REST
from tempo_analysis.parallel.observation import Observation, ObservedTrace, mass_on
from tempo_analysis.parallel.ratio import Sink
from tempo_analysis.stats.averages import quotient
from tempo_analysis.studies.heads.detectors.sets import earlier_slots, is_self, siblings_of

BUCKETS = ("self", "siblings", "previous_step", "not_behind")
"""The query; its set; all slots of the step before, wherever they stand; and slots of earlier steps
that do not lie behind the query, as fractional or unique positions allow."""

N_OFFSETS = 64


@dataclass(frozen=True, slots=True)
class LogicalProfile:
    """Mean mass in each place, over the rows of one prompt that may see a slot there.

    Attributes:
        buckets: Mass in each of `BUCKETS`; NaN where no row sees a slot of it.
        even_buckets: The same for even rows.
        offsets: Mass on earlier slots 1, 2, ... positions behind; `previous_step` is among them.
        even_offsets: The same for even rows.
        rows: Rows behind each offset.
        sink: Whether slot 0 is in, or rows are rescaled to their mass without it.
    """

    buckets: Float64[np.ndarray, "layer head bucket"]
    even_buckets: Float64[np.ndarray, "layer head bucket"]
    offsets: Float64[np.ndarray, "layer head offset"]
    even_offsets: Float64[np.ndarray, "layer head offset"]
    rows: Int64[np.ndarray, "layer head offset"]
    sink: Sink


def logical_profile(
    observed: ObservedTrace, *, sink: Sink = "without", n_offsets: int = N_OFFSETS
) -> LogicalProfile:
    """Mean mass at each distance in positions, of all rows after the prompt.

    Raises:
        InputError: The trace has no step after the prompt.
        LevelError: The trace was reduced to group masses.
    """
    if not observed.steps:
        raise InputError("expected a trace with a step after the prompt, got none; decode one")
    shape = (len(observed.layers), len(observed.heads), len(BUCKETS) + n_offsets)
    total, even, count = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    for step in observed.steps:
        parts = _parts(step, n_offsets)
        seen, scaled = _rescaled(step, sink)
        mass = mass_on(scaled, parts)
        n = seen.sum(-1)
        n_there = np.einsum("lqs,qsp->lqp", seen.astype(np.int64), parts.astype(np.int64))
        there = (n_there > 0)[:, None] & (scaled.sum(-1) > 0)[..., None]
        share = (n_there / np.maximum(n, 1)[..., None])[:, None]
        total += np.where(there, mass, 0.0).sum(2)
        even += np.where(there, share, 0.0).sum(2)
        count += there.sum(2)
    found, chance = quotient(total, count), quotient(even, count)
    near = len(BUCKETS)
    return LogicalProfile(
        buckets=found[..., :near],
        even_buckets=chance[..., :near],
        offsets=found[..., near:],
        even_offsets=chance[..., near:],
        rows=count[..., near:],
        sink=sink,
    )


def _parts(step: Observation, n_offsets: int) -> Bool[np.ndarray, "query slot part"]:
    behind, earlier = positions_behind(step), earlier_slots(step)
    just_before = np.broadcast_to(step.table.step == step.step - 1, earlier.shape)
    near = [is_self(step), siblings_of(step), just_before, earlier & (behind <= 0)]
    far = [earlier & (behind == offset) for offset in range(1, n_offsets + 1)]
    return np.stack([*near, *far], axis=-1)


def _rescaled(
    step: Observation, sink: Sink
) -> tuple[Bool[np.ndarray, "layer query slot"], np.ndarray]:
    """What each row may see, and its weights; an unusable row is 0."""
    weights, seen = step.rows(), step.visible
    if sink == "with":
        return seen, weights
    seen = seen.copy()
    seen[..., SINK_SLOT] = False
    weights = np.where(np.arange(weights.shape[-1]) == SINK_SLOT, np.float32(0), weights)
    rest = weights.sum(-1, keepdims=True)
    usable = rest >= SMALLEST_REST
    return seen, np.where(usable, weights / np.where(usable, rest, 1), np.float32(0))
