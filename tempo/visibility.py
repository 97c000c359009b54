"""Who sees whom: relations between query slots and slots, and finite biases on what is seen.

Relations compose with ``&``, ``|`` and ``~`` and govern queries of steps >= 1 only; prompt rows are
causal by slot. Nobody sees a later step or, after it died, a dead member.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int

from tempo.errors import InputError
from tempo.slots import SlotTable
from tempo.vocabulary import NEVER_DIED, PROMPT_STEP

Queries = Int[np.ndarray, " query"]
Sees = Bool[np.ndarray, "query slot"]
Scores = Float32[np.ndarray, "query slot"]


class Relation(ABC):
    """Says, for each query slot, which slots it may see."""

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
class Window(Relation):
    """Slots less than `width` positions behind the query; later positions count as near."""

    width: float | int

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"expected a window width above 0 positions, got {self.width}")

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True where query position - slot position < width."""
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


def visible_slots(
    see: Relation, table: SlotTable, queries: Queries, *, window: int | None = None
) -> Sees:
    """What each query sees under a policy's relation and a layer's own sliding window.

    Args:
        window: Native sliding window in positions: a slot is in it if p_q - p_k < window.
    """
    prompt_row = table.step[queries, None] == PROMPT_STEP
    causal = np.arange(len(table))[None, :] <= queries[:, None]
    seen = np.where(prompt_row, causal, see.sees(table, queries))
    seen &= table.step[None, :] <= table.step[queries, None]
    seen &= (table.died_at_step == NEVER_DIED)[None, :] | (
        table.step[queries, None] <= table.died_at_step[None, :]
    )
    if window is not None:
        seen &= Window(window).sees(table, queries)
    assert bool(seen.any(-1).all()), "a query row sees no slot at all"
    return seen


class Bias(ABC):
    """A finite score added before the softmax to slots that are seen."""

    @abstractmethod
    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """The score added for each (query, slot); 0 where nothing is added."""


@dataclass(frozen=True, slots=True)
class Boost(Bias):
    """Adds `beta` to the score of every member of a parallel set (width >= 2).

    Acts on queries of later steps only, unless `own_set`.
    """

    beta: float | int
    own_set: bool = False

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """`beta` on members of sets."""
        targets = (table.width >= 2)[None, :] & _acts_on(table, queries, self.own_set)
        return np.where(targets, np.float32(self.beta), np.float32(0))


@dataclass(frozen=True, slots=True)
class LogWeight(Bias):
    """Adds the log of each member's probability renormalised in its set; 0 for a single token.

    Acts on queries of later steps only, unless `own_set`.
    """

    own_set: bool = False

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """Log of the renormalised probability."""
        generated = table.step != PROMPT_STEP
        probability = np.where(generated, table.probability, 1).astype(np.float64)
        total = np.bincount(table.step, probability)[table.step]
        share = np.where(generated, np.log(probability / total), 0)
        return np.where(_acts_on(table, queries, self.own_set), share[None, :], 0).astype(
            np.float32
        )


@dataclass(frozen=True, slots=True)
class MassNeutral(Bias):
    """Subtracts the log of the number of members of the slot's set that the row sees.

    So n equal members together weigh as much as one: 0 in an isolated member's own row, -log n in
    later rows.
    """

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """Minus the log of the visible members of the slot's set."""
        n_steps = table.n_steps + 1
        of_step = table.step[:, None] == np.arange(n_steps)[None, :]
        seen_of_step = visible.astype(np.int64) @ of_step.astype(np.int64)
        count = np.where(table.step[None, :] == PROMPT_STEP, 1, seen_of_step[:, table.step])
        return -np.log(np.maximum(count, 1)).astype(np.float32)


def total_bias(
    biases: tuple[Bias, ...], table: SlotTable, queries: Queries, visible: Sees
) -> Scores:
    """Sum of all biases, 0 where the slot is not seen."""
    total = np.zeros(visible.shape, np.float32)
    for bias in biases:
        total += bias.scores(table, queries, visible)
    return np.where(visible, total, np.float32(0))


def _acts_on(table: SlotTable, queries: Queries, own_set: bool) -> Bool[np.ndarray, "query slot"]:
    later = table.step[queries, None] > table.step[None, :]
    generated = (table.step != PROMPT_STEP)[None, :]
    return (later | SameStep().sees(table, queries)) & generated if own_set else later & generated
