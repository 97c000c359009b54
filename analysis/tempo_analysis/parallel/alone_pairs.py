"""A set and its twin, in which one member has no siblings: checks of the pair, aligned rows.

The twin was fed the same tokens at the same positions, without the siblings. Both are read at the
step after the set only, so a twin may hold rows at that step alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tempo.errors import TwinError
from tempo.trace.trace import Trace
from tempo_analysis.parallel.ratio import Sink

Cells = Float64[np.ndarray, "layer head query"]

SMALLEST_SET = 2


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Attention of the queries that follow a set, in float64.

    Attributes:
        weights: The rows; 0 where a query may not see.
        members: Slots of the set before, in rank order.
        n_prompt: Slots of the prompt.
        learned: Mass on a learned sink, which is no slot (gpt-oss); 0 without one.
    """

    weights: Float64[np.ndarray, "layer head query slot"]
    members: Int64[np.ndarray, " member"]
    n_prompt: int
    learned: Cells

    def log_mass(self, slots: Sequence[int] | range) -> Cells:
        """Log of the mass on some slots; NaN where they are not seen or have none."""
        return _log(self.weights[..., list(slots)].sum(-1))

    def odds(self, slot: int) -> Cells:
        """Mass on a slot over the mass on everything else; NaN where nothing else has any."""
        # Summed, not 1 - w: near w = 1 the difference has no digits, and a learned sink is part of
        # what the member competes with although it is no slot.
        rest = np.delete(self.weights, slot, axis=-1).sum(-1) + self.learned
        return self.weights[..., slot] / np.where(rest > 0, rest, np.nan)


def rows_after(trace: Trace, step: int) -> PairedRows:
    """The rows of the step after a set.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    # The rows of step k + 1, the first whose queries may see set k as earlier slots.
    weights = trace.attention(step + 1).astype(np.float64)
    return PairedRows(
        weights=weights,
        members=trace.members(step),
        n_prompt=trace.slots.n_prompt,
        learned=_learned_sink(trace, step + 1, weights.shape[:-1]),
    )


def reference_slots(n_prompt: int, reference: Sink) -> range:
    """The prompt, with slot 0 or without it."""
    # The prompt is the same in both runs, so it is the common scale; generated slots are not, since
    # members and what follows them differ in the two.
    return range({"with": 0, "without": 1}[reference], n_prompt)


def check_twin(in_set: Trace, alone: Trace, *, step: int, rank: int) -> None:
    """Refuse two traces unless `alone` is `in_set` without the siblings of one member.

    Raises:
        TwinError: The step has no set of width >= 2 with a step after it, the rank is not in it, or
            model, layers, heads, tokens, positions or visibility differ elsewhere.
    """
    check_set(in_set, step)
    members = in_set.members(step)
    if rank not in range(len(members)):
        raise TwinError(f"expected a rank from 0 to {len(members) - 1}, got {rank}")
    place = f"set {step}, rank {rank}, of prompt {in_set.header.prompt_id!r}"
    for name, ours, theirs in _facts(in_set, alone):
        if ours != theirs:
            raise TwinError(
                f"expected a twin of {place} with the same {name}, got {ours} and {theirs}; decode "
                "and capture both alike"
            )
    if alone.n_steps <= step:
        raise TwinError(
            f"expected a twin of {place} that feeds set {step + 1} too, got {alone.n_steps} steps; "
            "force the later sets on it"
        )
    # The twin's slots are those of the run without the siblings, so its slot numbers are smaller by
    # as many: compare through this list.
    kept = np.delete(np.arange(in_set.n_slots(step + 1)), np.delete(members, rank))
    # Up to set k + 1 only: what is fed later cannot act on rows that are read before.
    _check_slots(in_set, alone, place=place, step=step, kept=kept)
    _check_sight(in_set, alone, place=place, step=step, kept=kept)


def check_set(trace: Trace, step: int) -> None:
    """Refuse a step without a parallel set, or without a step after it whose queries see the set.

    Raises:
        TwinError: It is one of these.
    """
    # range excludes n_steps: the last set is read by no query.
    if step not in range(1, trace.n_steps):
        raise TwinError(
            f"expected a set with a step after it, 1 to {trace.n_steps - 1}, got {step}; the last "
            "set is read by no query"
        )
    width = len(trace.members(step))
    if width < SMALLEST_SET:
        raise TwinError(
            f"expected a set of width 2 or more at step {step}, got width {width}; a single token "
            "is its own twin"
        )


def _facts(first: Trace, second: Trace) -> list[tuple[str, object, object]]:
    return [
        ("model", first.header.model.get("fingerprint"), second.header.model.get("fingerprint")),
        ("layers", first.layers, second.layers),
        ("heads", first.heads, second.heads),
    ]


def _check_slots(
    in_set: Trace, alone: Trace, *, place: str, step: int, kept: Int64[np.ndarray, " slot"]
) -> None:
    n_slots = alone.n_slots(step + 1)
    for name in ("step", "token", "position"):
        ours = getattr(in_set.slots, name)[kept]
        theirs = getattr(alone.slots, name)[:n_slots]
        if not np.array_equal(ours, theirs):
            raise TwinError(
                f"expected a twin of {place} that differs by its missing siblings only, got other "
                f"{name}s; force the same sets, and the member alone, at the same positions"
            )


def _check_sight(
    in_set: Trace, alone: Trace, *, place: str, step: int, kept: Int64[np.ndarray, " slot"]
) -> None:
    # In the run a query sees the siblings too; without these columns both must agree, in each
    # layer, since windows differ by layer.
    ours: Bool[np.ndarray, "layer query slot"] = in_set.visible(step + 1)[..., kept]
    if not np.array_equal(ours, alone.visible(step + 1)):
        raise TwinError(
            f"expected a twin of {place} whose next queries see the same slots, got other ones; "
            "decode both with the same relation and without pruning"
        )


def _learned_sink(trace: Trace, step: int, shape: tuple[int, ...]) -> Cells:
    sinks = trace.header.sinks or (None,) * len(trace.layers)
    scores = [
        # No learned sink is a score of -inf, so that its mass is exactly 0.
        np.full(len(trace.heads), -np.inf) if layer is None else np.asarray(layer, np.float64)
        for layer in sinks
    ]
    logsumexp = trace.logsumexp(step).astype(np.float64)
    # The stored logsumexp has the sink's score in it, so exp(score - logsumexp) is its share.
    return np.broadcast_to(np.exp(np.stack(scores)[..., None] - logsumexp), shape)


def _log(mass: Cells) -> Cells:
    # NaN, not -inf: float32 gives 0 to a tiny weight, and one -inf would decide every average.
    return np.log(np.where(mass > 0, mass, np.nan))
