"""Pruning rules: which members are removed after a step, and what happens to their slots.

Every decision is recorded in the trace with the number it was based on.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float32

from tempo.errors import InputError
from tempo.policy.slots import SlotTable


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision of a pruning rule about one member.

    Attributes:
        value: The number that the rule compared; NaN where the slot was given.
        reason: One of `DECISIONS`.
    """

    slot: int
    value: float
    reason: str


DECISIONS = ("kept", "attention", "attention_share", "given", "parent")

Keep = Literal["mask", "evict", "recompute"]
"""What pruning does. mask: later queries no longer see the slot. evict: the same, and its keys and
values are freed. recompute: every later slot is run again as if it had never been written."""
KEEPS: tuple[str, ...] = get_args(Keep)
Received = Float32[np.ndarray, " slot"]
"""Attention received by each slot from the queries of a step: mean over layers, heads, queries."""


class Prune(ABC):
    """Decides after every step which members are pruned."""

    needs_attention: ClassVar[bool] = False

    @abstractmethod
    def judge(self, table: SlotTable, step: int, received: Received) -> tuple[Decision, ...]:
        """The decision about each member that the rule considers.

        Args:
            received: Attention received from the queries of this step; zeros unless
                `needs_attention`.
        """


@dataclass(frozen=True, slots=True)
class Never(Prune):
    """No member is pruned."""

    def judge(self, table: SlotTable, step: int, received: Received) -> tuple[Decision, ...]:
        """No decisions."""
        return ()


@dataclass(frozen=True, slots=True)
class AttentionBelow(Prune):
    """Prunes members of earlier sets that receive too little attention from a step.

    A set keeps at least the member that received most. Whether attention measures the importance of
    a member is an open question: see FINDINGS.md.

    Attributes:
        level: Smallest mean weight, or smallest share of the weight of the unpruned members.
        relative: Whether `level` is such a share.
    """

    level: float | int
    relative: bool = False
    needs_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.level <= 1:
            raise InputError(
                f"expected a level of attention above 0 and at most 1, got {self.level:g}; "
                "for example attention:0.01"
            )

    def judge(self, table: SlotTable, step: int, received: Received) -> tuple[Decision, ...]:
        """Every unpruned member of an earlier set of two or more."""
        return tuple(
            decision
            # Without the set of this step: no later query has read it yet.
            for earlier in range(1, step)
            for decision in self._set(table, earlier, received)
        )

    def _set(self, table: SlotTable, step: int, received: Received) -> Iterator[Decision]:
        members = table.unpruned(step)
        if len(members) < 2:
            return
        got = received[members].astype(np.float64)
        # Far sets can receive exactly 0 (outside every window); then all shares are 0.
        value = got / max(got.sum(), np.finfo(float).tiny) if self.relative else got
        reason = "attention_share" if self.relative else "attention"
        for rank, slot in enumerate(members.tolist()):
            # of several that got most, the first is kept, so a set is never emptied
            is_pruned = value[rank] < self.level and rank != got.argmax()
            yield Decision(slot, float(value[rank]), reason if is_pruned else "kept")


@dataclass(frozen=True, slots=True)
class Kill(Prune):
    """Prunes given slots.

    Attributes:
        deaths: `(step, slot)` pairs; the slot is pruned after that step.
    """

    deaths: tuple[tuple[int, int], ...]

    def judge(self, table: SlotTable, step: int, received: Received) -> tuple[Decision, ...]:
        """The slots given for this step."""
        slots = [slot for when, slot in self.deaths if when == step]
        for slot in slots:
            if not 0 <= slot < len(table) or slot < table.n_prompt:
                raise InputError(
                    f"expected a generated slot from {table.n_prompt} to {len(table) - 1} to prune "
                    f"at step {step}, got {slot}"
                )
        return tuple(Decision(slot, float("nan"), "given") for slot in slots)


def with_descendants(table: SlotTable, decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """Decisions, and with each pruned slot of a tree everything that descends from it."""
    # a parent comes before its child, so one pass in slot order finds all descendants
    doomed = {decision.slot for decision in decisions if decision.reason != "kept"}
    follow: list[Decision] = []
    for slot, parent in enumerate(table.parent.tolist()):
        if parent in doomed and slot not in doomed:
            doomed.add(slot)
            follow.append(Decision(slot, float("nan"), "parent"))
    return (*decisions, *follow)


def pruned_slots(table: SlotTable, decisions: tuple[Decision, ...]) -> list[int]:
    """Slots that some decisions prune.

    Raises:
        InputError: All members of a set would be pruned.
    """
    chosen = {one.slot for one in decisions if one.reason != "kept" and table.alive[one.slot]}
    pruned = sorted(chosen)
    for step in np.unique(table.step[pruned]).tolist():
        if np.isin(table.unpruned(step), pruned).all():
            raise InputError(
                f"expected a set of step {step} that keeps a member, got all pruned; prune fewer"
            )
    return pruned


def parse_prune(text: str) -> Prune:
    """Read ``never``, ``attention:0.01`` or ``attention-share:0.2``.

    Raises:
        InputError: None of these.
    """
    name, _, level = text.partition(":")
    if text == "never":
        return Never()
    if name not in ("attention", "attention-share"):
        raise InputError(
            "expected a prune rule of never, attention:NUMBER or attention-share:NUMBER, "
            f"got {text!r}"
        )
    try:
        return AttentionBelow(float(level), relative=name == "attention-share")
    except ValueError:
        raise InputError(f"expected {name}:NUMBER, got {text!r}; for example {name}:0.1") from None
