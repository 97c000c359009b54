"""Query rows of one step of a trace, read once and used by every measure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from tempo.errors import LevelError
from tempo.policy.slots import SlotTable, group_of
from tempo.trace.attention import Weights, group_onehot
from tempo.trace.trace import Trace
from tempo.vocabulary import GROUPS
from tempo_analysis.stats.averages import RowAverage, average_rows

GROUP = {name: number for number, name in enumerate(GROUPS)}


@dataclass(frozen=True, slots=True)
class Observation:
    """The query rows of one step k >= 1.

    Attributes:
        step: Number of the step.
        table: The slot table up to and including this step.
        queries: Slot of each query.
        visible: Whether each query may see each slot, in each layer.
        mass: Mass of every row on each group of `tempo.vocabulary.GROUPS`.
        count: Number of visible slots of each group.
        weights: The rows; None in a trace reduced to group masses.
        entropy_nats: Entropy of the rows as stored; None where the rows are there.
    """

    step: int
    table: SlotTable
    queries: Int64[np.ndarray, " query"]
    visible: Bool[np.ndarray, "layer query slot"]
    mass: Float64[np.ndarray, "layer head query group"]
    count: Int64[np.ndarray, "layer query group"]
    weights: Weights | None
    entropy_nats: Float32[np.ndarray, "layer head query"] | None

    def rows(self) -> Weights:
        """The rows themselves.

        Raises:
            LevelError: The trace was reduced to group masses.
        """
        if self.weights is None:
            raise LevelError(
                "expected a trace that holds its rows (level weights or qk), got level reduced; "
                "capture again with rows to answer this"
            )
        return self.weights


@dataclass(frozen=True, slots=True)
class ObservedTrace:
    """The rows of every step k >= 1 of one trace; the rows of the prompt itself are left out.

    Attributes:
        layers: Layer numbers on the layer axis.
        heads: Head numbers on the head axis.
        steps: Steps 1, 2, ...; empty where nothing was generated.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    steps: tuple[Observation, ...]

    def average(self, values: Sequence[Float[np.ndarray, "layer head _"]]) -> RowAverage:
        """Collect one value for each row (NaN for none), given step by step."""
        return average_rows(values, n_layers=len(self.layers), n_heads=len(self.heads))

    def first(self, n_steps: int) -> "ObservedTrace":
        """The same with the first steps only."""
        return replace(self, steps=self.steps[:n_steps])


def observe(trace: Trace) -> ObservedTrace:
    """Read every step after the prompt once."""
    # From step 1: rows of the prompt see no generated slot and would only dilute averages.
    steps = tuple(_observe_step(trace, step) for step in range(1, trace.n_steps + 1))
    return ObservedTrace(trace.layers, trace.heads, steps)


def mass_on(
    weights: Weights, chosen: Bool[np.ndarray, "query slot part"]
) -> Float64[np.ndarray, "layer head query part"]:
    """Sum of each row over each of several parts of its slots, in float64."""
    # Query first: each query has its own parts, so this is one matrix product per query; float64,
    # as parts may sum a thousand float32 weights.
    by_query = np.moveaxis(weights, 2, 0).astype(np.float64)
    summed = np.einsum("qlhs,qsp->qlhp", by_query, chosen.astype(np.float64), optimize=True)
    return np.moveaxis(summed, 0, 2)


def count_on(
    visible: Bool[np.ndarray, "layer query slot"], chosen: Bool[np.ndarray, "query slot part"]
) -> Int64[np.ndarray, "layer query part"]:
    """Number of visible slots in each of several parts."""
    # int64, since a product of booleans would be "any", not a number.
    by_query = np.moveaxis(visible, 1, 0).astype(np.int64)
    return np.moveaxis(by_query @ chosen.astype(np.int64), 0, 1)


def share(
    part: Int64[np.ndarray, "layer query"], whole: Int64[np.ndarray, "layer query"]
) -> Float64[np.ndarray, "layer query"]:
    """Part of the visible slots; NaN where there are none."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _observe_step(trace: Trace, step: int) -> Observation:
    # Only what was written when the step ran: later slots do not exist for its queries.
    table = trace.slots.upto(trace.n_slots(step))
    queries = trace.members(step)
    visible = trace.visible(step)
    groups = group_onehot(group_of(table, queries)).astype(bool)
    reduced = trace.level == "reduced"
    # A reduced trace has group masses and entropies only; they are read as stored, and everything
    # that can be answered from them is.
    weights = None if reduced else trace.attention(step)
    return Observation(
        step=step,
        table=table,
        queries=queries,
        visible=visible,
        mass=trace.group_mass(step).astype(np.float64)
        if weights is None
        else mass_on(weights, groups),
        count=count_on(visible, groups),
        weights=weights,
        # Where the rows are there, entropies come from them in float64, not from the stored
        # float32.
        entropy_nats=trace.entropy_nats(step) if reduced else None,
    )
