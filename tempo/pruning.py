"""Which members die after a step. Rules other than `Never` are not offered yet."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from tempo.slots import SlotTable


class Prune(ABC):
    """Names the slots that die once a step has run."""

    @abstractmethod
    def deaths(self, table: SlotTable, step: int) -> Int64[np.ndarray, " dead"]:
        """Slots that later queries no longer see."""


@dataclass(frozen=True, slots=True)
class Never(Prune):
    """Every member lives."""

    def deaths(self, table: SlotTable, step: int) -> Int64[np.ndarray, " dead"]:
        """None."""
        return np.empty(0, np.int64)
