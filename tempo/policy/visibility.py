"""Visibility relations: which slots each query slot sees.

Relations compose with ``&``, ``|`` and ``~`` and govern queries of steps >= 1 only; prompt rows are
causal by slot. No query sees a later step, or a member that was pruned before it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from tempo.errors import InputError
from tempo.policy.slots import SlotTable
from tempo.vocabulary import NEVER_DIED, PROMPT_STEP

Queries = Int[np.ndarray, " query"]
Sees = Bool[np.ndarray, "query slot"]


class Relation(ABC):
    """Which slots each query slot may see."""

    @abstractmethod
    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where the query may see the slot."""

    def __and__(self, other: "Relation") -> "Relation":
        return Both(self, other)

    def __or__(self, other: "Relation") -> "Relation":
        return Either(self, other)

    def __invert__(self) -> "Relation":
        return Not(self)


@dataclass(frozen=True, slots=True)
class BeforeStep(Relation):
    """Slots of earlier steps."""

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where the slot was written by an earlier step."""
        return table.step[None, :] < table.step[queries, None]


@dataclass(frozen=True, slots=True)
class SameStep(Relation):
    """The query's own set, itself included."""

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where the slot was written by the same step."""
        return table.step[None, :] == table.step[queries, None]


@dataclass(frozen=True, slots=True)
class BeforeSlot(Relation):
    """Slots written earlier, in this step or before."""

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where the slot number is smaller."""
        return np.arange(len(table))[None, :] < queries[:, None]


@dataclass(frozen=True, slots=True)
class Self(Relation):
    """The query slot itself."""

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where the slot is the query."""
        return np.arange(len(table))[None, :] == queries[:, None]


@dataclass(frozen=True, slots=True)
class Ancestor(Relation):
    """The query's parent, its parent's parent and so on; in a prompt, every earlier slot."""

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where the slot is an ancestor of the query."""
        # Parents come before children, so one pass fills every row from that of its parent.
        above = np.zeros((len(table), len(table)), bool)
        for slot, parent in enumerate(table.parent.tolist()):
            if parent >= 0:
                above[slot] = above[parent]
                above[slot, parent] = True
        return above[queries]


@dataclass(frozen=True, slots=True)
class Window(Relation):
    """Slots less than `width` positions behind the query; later positions count as near."""

    width: float | int

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"expected a window width above 0 positions, got {self.width}")

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where query position - slot position < width."""
        # In positions, not slots: members of a set together use one place of the window.
        return table.position[queries, None] - table.position[None, :] < self.width


@dataclass(frozen=True, slots=True)
class Both(Relation):
    """What both relations allow."""

    left: Relation
    right: Relation

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """Intersection."""
        return self.left.sees(table, queries) & self.right.sees(table, queries)


@dataclass(frozen=True, slots=True)
class Either(Relation):
    """What at least one relation allows."""

    left: Relation
    right: Relation

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """Union."""
        return self.left.sees(table, queries) | self.right.sees(table, queries)


@dataclass(frozen=True, slots=True)
class Not(Relation):
    """What the relation forbids."""

    relation: Relation

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """Complement."""
        return ~self.relation.sees(table, queries)


ISOLATED = BeforeStep() | Self()
VISIBLE = BeforeStep() | SameStep()
ORDERED = BeforeSlot() | Self()
TREE = Ancestor() | Self()


def visible_slots(
    see: Relation, table: SlotTable, queries: Queries, *, window: int | None = None
) -> Sees:
    """What each query sees under a policy's relation and a layer's own sliding window.

    Args:
        window: Native sliding window in positions: a slot is in it if p_q - p_k < window.
    """
    prompt_row = table.step[queries, None] == PROMPT_STEP
    causal = np.arange(len(table))[None, :] <= queries[:, None]
    # Prompt rows are causal whatever the relation is: they equal a plain forward of the prompt.
    seen = np.where(prompt_row, causal, see.sees(table, queries))
    # A relation such as `~Self()` would otherwise see the future.
    seen &= table.step[None, :] <= table.step[queries, None]
    seen &= (table.died_at_step == NEVER_DIED)[None, :] | (
        # A member pruned at step s was still there when the queries of step s ran.
        table.step[queries, None] <= table.died_at_step[None, :]
    )
    if window is not None:
        seen &= Window(window).sees(table, queries)
    assert bool(seen.any(-1).all()), "a query row sees no slot at all"
    return seen
