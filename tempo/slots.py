"""The slot table: one row for each entry of the KV cache, append-only."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from tempo.vocabulary import NEVER_DIED, PROMPT_STEP


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Everything the decoding rules may know about the slots written so far.

    Attributes:
        token: Token ids.
        position: Logical position, the number RoPE sees; members of a set may share it.
        step: The forward pass that wrote the slot; 0 for the prompt.
        parent: Slot of the top-ranked member of the previous set, -1 for slot 0.
        rank: Rank in its set by probability, from 0; 0 in the prompt.
        probability: Probability under the readout that chose it; NaN in the prompt.
        weight: Share in the readout of its step; 0 in the prompt except its last slot, 1.
        died_at_step: Step at which the member was pruned, -1 if never.
    """

    token: Int64[np.ndarray, " slot"]
    position: Float32[np.ndarray, " slot"]
    step: Int32[np.ndarray, " slot"]
    parent: Int32[np.ndarray, " slot"]
    rank: Int32[np.ndarray, " slot"]
    probability: Float32[np.ndarray, " slot"]
    weight: Float32[np.ndarray, " slot"]
    died_at_step: Int32[np.ndarray, " slot"]

    def __post_init__(self) -> None:
        assert len({len(getattr(self, field.name)) for field in fields(self)}) == 1, (
            "columns of unequal length"
        )
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

    def upto(self, n_slots: int) -> "SlotTable":
        """The table as it was after its first `n_slots` rows."""
        return SlotTable(
            **{field.name: getattr(self, field.name)[:n_slots] for field in fields(self)}
        )

    def with_set(
        self,
        *,
        token: Int64[np.ndarray, " member"],
        position: Float32[np.ndarray, " member"],
        probability: Float32[np.ndarray, " member"],
        weight: Float32[np.ndarray, " member"],
    ) -> "SlotTable":
        """The table after one more step, which writes a parallel set in rank order."""
        n = len(token)
        before = self.members(self.n_steps)
        parent = int(before[0] if self.n_steps > PROMPT_STEP else before[-1])
        added = {
            "token": token,
            "position": position,
            "step": np.full(n, self.n_steps + 1, np.int32),
            "parent": np.full(n, parent, np.int32),
            "rank": np.arange(n, dtype=np.int32),
            "probability": probability,
            "weight": weight,
            "died_at_step": np.full(n, NEVER_DIED, np.int32),
        }
        return SlotTable(
            **{name: np.concatenate([getattr(self, name), rows]) for name, rows in added.items()}
        )


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


COLUMNS = tuple(field.name for field in fields(SlotTable))
