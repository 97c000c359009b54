"""The slot table: one row for each entry of the KV cache, append-only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from tempo.vocabulary import GROUPS, NEVER_DIED, PROMPT_STEP, RECENT_WINDOW, SINK_SLOT


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Everything the decoding rules may know about the slots written so far.

    Attributes:
        token: Token ids.
        position: Logical position, the number RoPE sees; members of a set may share it.
        step: The forward pass that wrote the slot; 0 for the prompt.
        parent: In a tree the true parent, otherwise the top-ranked living member of the previous
            set; -1 for slot 0.
        rank: Rank in its set by probability, from 0; 0 in the prompt.
        probability: Probability under the readout that chose it; NaN in the prompt.
        weight: Share in the readout of its step; 0 in the prompt except its last slot, 1.
        died_at_step: Step at which the member was pruned, -1 if never.
        evidence: For each set, the log-probability of each member after each member of the set
            before, -inf after a dead one; empty where no rule asks for it. Not a column.
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
        assert len({len(getattr(self, name)) for name in COLUMNS}) == 1, "columns of unequal length"
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
        return int(np.searchsorted(self.step, PROMPT_STEP, side="right"))

    @property
    def alive(self) -> Bool[np.ndarray, " slot"]:
        """Slots that no pruning has killed."""
        return self.died_at_step == NEVER_DIED

    @property
    def width(self) -> Int64[np.ndarray, " slot"]:
        """Number of slots of the set each slot belongs to; 1 for every prompt slot."""
        counts = np.bincount(self.step, minlength=1)
        return np.where(self.step == PROMPT_STEP, 1, counts[self.step])

    def members(self, step: int) -> Int64[np.ndarray, " member"]:
        """Slots written by one step, in rank order."""
        return np.flatnonzero(self.step == step)

    def survivors(self, step: int) -> Int64[np.ndarray, " member"]:
        """Living slots written by one step, in rank order."""
        return np.flatnonzero((self.step == step) & self.alive)

    def upto(self, n_slots: int) -> "SlotTable":
        """The table as it was after its first `n_slots` rows."""
        return self._rows(np.arange(n_slots))

    def killed(self, slots: Sequence[int], step: int) -> "SlotTable":
        """The table after some slots died at a step."""
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

    def living(self) -> "SlotTable":
        """The table without its dead, as if they had never been written.

        The child of a dead slot becomes the child of the first living slot of its set.
        """
        kept = np.flatnonzero(self.alive)
        of_step = self.step[self.parent]
        heir = np.searchsorted(self.step[kept], of_step)
        rooted = np.where(self.parent < 0, -1, heir)
        lives = self.alive[self.parent] & (self.parent >= 0)
        number = np.cumsum(self.alive) - 1
        parent = np.where(lives, number[self.parent], rooted).astype(np.int32)
        alive_in = [self.alive[self.members(step)] for step in range(self.n_steps + 1)]
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
        added = {
            "token": token,
            "position": position,
            "step": np.full(n, self.n_steps + 1, np.int32),
            "parent": np.full(n, self.heir(), np.int32) if parent is None else parent,
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

    def heir(self) -> int:
        """The slot that a merged set descends from: the best living one of the last set."""
        before = self.survivors(self.n_steps)
        return int(before[0] if self.n_steps > PROMPT_STEP else before[-1])

    def _rows(self, rows: Int64[np.ndarray, " row"]) -> "SlotTable":
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})


def prompt_table(token_ids: list[int]) -> SlotTable:
    """The table after step 0: the prompt at positions 0, 1, 2, ..., each the child of the last."""
    n = len(token_ids)
    weight = np.zeros(n, np.float32)
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


COLUMNS = (
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
    groups = np.where(distance <= RECENT_WINDOW, _GROUP["recent_prompt"], _GROUP["other_prompt"])
    earlier = np.where(table.width >= 2, _GROUP["earlier_sets"], _GROUP["earlier_singletons"])
    groups = np.where(generated[None, :], earlier[None, :], groups)
    own_set = (table.step[queries, None] == table.step[None, :]) & generated[None, :]
    groups = np.where(own_set, _GROUP["siblings"], groups)
    groups = np.where(slots[None, :] == SINK_SLOT, _GROUP["sink"], groups)
    return np.where(slots[None, :] == queries[:, None], _GROUP["self"], groups)
