"""The slot table: one row for each entry of the KV cache; rows are only appended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from tempo.vocabulary import GROUPS, NEVER_DIED, PROMPT_STEP, RECENT_WINDOW, SINK_SLOT


@dataclass(frozen=True, slots=True)
class SlotTable:
    """All facts about the slots written so far that decoding rules may use.

    Attributes:
        token: Token ids.
        position: Logical position, the number RoPE sees; members of a set may share it.
        step: The forward pass that wrote the slot; 0 for the prompt.
        parent: In a tree the true parent, otherwise the top-ranked unpruned member of the previous
            set; -1 for slot 0.
        rank: Rank in its set by probability, from 0; 0 in the prompt.
        probability: Probability under the readout that chose it; NaN in the prompt.
        weight: Share in the readout of its step; 0 in the prompt except its last slot, 1.
        died_at_step: Step at which the member was pruned, -1 if never.
        evidence: For each set, the log-probability of each member after each member of the set
            before, -inf after a pruned one; empty where no rule asks for it. Not a column.
    """

    token: Int64[np.ndarray, " slot"]
    position: Float32[np.ndarray, " slot"]
    step: Int32[np.ndarray, " slot"]
    parent: Int32[np.ndarray, " slot"]
    rank: Int32[np.ndarray, " slot"]
    probability: Float32[np.ndarray, " slot"]
    weight: Float32[np.ndarray, " slot"]
    died_at_step: Int32[np.ndarray, " slot"]
    evidence: tuple[Float32[np.ndarray, "_ _"], ...] = ()

    def __post_init__(self) -> None:
        assert len({len(getattr(self, name)) for name in SLOT_COLUMNS}) == 1, (
            "columns of unequal length"
        )
        # Many readers rely on it: members of a step are consecutive slots.
        assert bool(np.all(np.diff(self.step) >= 0)), "steps must not decrease along the slots"
        assert bool(np.all(self.parent < np.arange(len(self)))), (
            "a parent must come before its child"
        )

    def __len__(self) -> int:
        return len(self.token)

    @property
    def n_steps(self) -> int:
        """Number of sets written after the prompt."""
        return int(self.step[-1]) if len(self) else 0

    @property
    def n_prompt(self) -> int:
        """Number of prompt slots."""
        # Steps are sorted, and the prompt has the smallest.
        return int(np.searchsorted(self.step, PROMPT_STEP, side="right"))

    @property
    def alive(self) -> Bool[np.ndarray, " slot"]:
        """Slots that have not been pruned."""
        return self.died_at_step == NEVER_DIED

    @property
    def width(self) -> Int64[np.ndarray, " slot"]:
        """Number of slots of the set each slot belongs to; 1 for every prompt slot."""
        counts = np.bincount(self.step, minlength=1)
        return np.where(self.step == PROMPT_STEP, 1, counts[self.step])

    def members(self, step: int) -> Int64[np.ndarray, " member"]:
        """Slots written by one step, in rank order."""
        return np.flatnonzero(self.step == step)

    def unpruned(self, step: int) -> Int64[np.ndarray, " member"]:
        """Slots written by one step and not pruned since, in rank order."""
        return np.flatnonzero((self.step == step) & self.alive)

    def last_set(self, *, with_pruned: bool = False) -> Int64[np.ndarray, " member"]:
        """The slots whose predictions choose the next set, in rank order, without pruned ones.

        Right after the prompt that is its last slot alone: the other prompt slots predict tokens
        that are already in the prompt.
        """
        last = self.n_steps
        slots = self.members(last) if with_pruned else self.unpruned(last)
        return slots[-1:] if last == PROMPT_STEP else slots

    def upto(self, n_slots: int) -> "SlotTable":
        """The table as it was after its first `n_slots` rows."""
        return self._rows(np.arange(n_slots))

    def mark_pruned(self, slots: Sequence[int], step: int) -> "SlotTable":
        """The table after some slots were pruned at a step."""
        died = self.died_at_step.copy()
        died[list(slots)] = step
        return replace(self, died_at_step=died)

    def reweighted(
        self, slots: Int64[np.ndarray, " member"], weight: Float32[np.ndarray, " member"]
    ) -> "SlotTable":
        """The table with other shares in the readout for some slots."""
        shares = self.weight.copy()
        shares[slots] = weight
        return replace(self, weight=shares)

    def without_pruned(self) -> "SlotTable":
        """The table without its pruned slots, as if they had never been written.

        The child of a pruned slot becomes the child of the first unpruned slot of its set.
        """
        kept = np.flatnonzero(self.alive)
        of_step = self.step[self.parent]
        # steps do not decrease along the slots: this finds the first kept slot of the parent's set
        first_kept = np.searchsorted(self.step[kept], of_step)
        replacement = np.where(self.parent < 0, -1, first_kept)
        # a parent of -1 reads the last slot here; the second condition undoes it
        is_kept = self.alive[self.parent] & (self.parent >= 0)
        number = np.cumsum(self.alive) - 1
        parent = np.where(is_kept, number[self.parent], replacement).astype(np.int32)
        alive_in = [self.alive[self.members(step)] for step in range(self.n_steps + 1)]
        # evidence of the first set is given after the last prompt slot only
        alive_in[0] = alive_in[0][-1:]
        evidence = tuple(
            known[alive_in[step]][:, alive_in[step - 1]]
            for step, known in enumerate(self.evidence, 1)
        )
        return replace(replace(self, parent=parent)._rows(kept), evidence=evidence)

    def with_set(
        self,
        *,
        token: Int64[np.ndarray, " member"],
        position: Float32[np.ndarray, " member"],
        probability: Float32[np.ndarray, " member"],
        weight: Float32[np.ndarray, " member"],
        parent: Int[np.ndarray, " member"] | None = None,
        evidence: Float32[np.ndarray, "member previous"] | None = None,
    ) -> "SlotTable":
        """The table after one more step, which writes a parallel set in rank order."""
        n = len(token)
        if parent is None:
            parent = np.full(n, self.continuation_parent(), np.int32)
        added = {
            "token": token,
            "position": position,
            "step": np.full(n, self.n_steps + 1, np.int32),
            "parent": parent,
            "rank": np.arange(n, dtype=np.int32),
            "probability": probability,
            "weight": weight,
            "died_at_step": np.full(n, NEVER_DIED, np.int32),
        }
        columns = {
            name: np.concatenate([getattr(self, name), rows.astype(getattr(self, name).dtype)])
            for name, rows in added.items()
        }
        return SlotTable(
            **columns, evidence=self.evidence if evidence is None else (*self.evidence, evidence)
        )

    def continuation_parent(self) -> int:
        """The parent of the next set where members have none of their own: the best of the last."""
        return int(self.last_set()[0])

    def _rows(self, rows: Int64[np.ndarray, " row"]) -> "SlotTable":
        return replace(self, **{name: getattr(self, name)[rows] for name in SLOT_COLUMNS})


def prompt_table(token_ids: list[int]) -> SlotTable:
    """The table after step 0: the prompt at positions 0, 1, 2, ..., each the child of the last."""
    n = len(token_ids)
    weight = np.zeros(n, np.float32)
    # Only the last prompt slot predicts the first set. The slice allows an empty prompt.
    weight[-1:] = 1
    return SlotTable(
        token=np.asarray(token_ids, np.int64),
        position=np.arange(n, dtype=np.float32),
        step=np.full(n, PROMPT_STEP, np.int32),
        parent=np.arange(-1, n - 1, dtype=np.int32),
        rank=np.zeros(n, np.int32),
        probability=np.full(n, np.nan, np.float32),
        weight=weight,
        died_at_step=np.full(n, NEVER_DIED, np.int32),
    )


SLOT_COLUMNS = (
    *("token", "position", "step", "parent"),
    *("rank", "probability", "weight", "died_at_step"),
)
_GROUP = {name: number for number, name in enumerate(GROUPS)}


def group_of(table: SlotTable, queries: Int[np.ndarray, " query"]) -> Int[np.ndarray, "query slot"]:
    """The group (an index into `GROUPS`) of every slot, seen from each query slot.

    Slots written after the query get a group too; they are invisible and carry no mass.
    """
    slots = np.arange(len(table))
    distance = table.position[queries, None] - table.position[None, :]
    generated = table.step != PROMPT_STEP
    # Later lines overrule earlier ones: groups are disjoint, and self and sink come first.
    groups = np.where(distance <= RECENT_WINDOW, _GROUP["recent_prompt"], _GROUP["other_prompt"])
    earlier = np.where(table.width >= 2, _GROUP["earlier_sets"], _GROUP["earlier_singletons"])
    groups = np.where(generated[None, :], earlier[None, :], groups)
    own_set = (table.step[queries, None] == table.step[None, :]) & generated[None, :]
    groups = np.where(own_set, _GROUP["siblings"], groups)
    groups = np.where(slots[None, :] == SINK_SLOT, _GROUP["sink"], groups)
    return np.where(slots[None, :] == queries[:, None], _GROUP["self"], groups)
