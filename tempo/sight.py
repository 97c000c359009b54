"""What every row of one packed forward sees, as arrays for the trace and as masks for the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tempo.attention import Mask
from tempo.policy.biases import Scores, total_bias
from tempo.policy.presets import Policy
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import Sees, visible_slots


@dataclass(frozen=True, slots=True)
class View:
    """One sequence's share of a forward: the rows it adds and the rules they follow.

    Attributes:
        table: Every slot ever written, up to and including the rows of this forward.
        queries: Slots of those rows.
        held: Slots in the cache, in the order of their places; the columns of every row.
    """

    table: SlotTable
    queries: Int[np.ndarray, " query"]
    policy: Policy
    held: Int[np.ndarray, " held"]

    @property
    def places(self) -> Int[np.ndarray, " query"]:
        """Where in the cache the rows are written."""
        return np.searchsorted(self.held, self.queries)

    def sees(self, window: int | None) -> tuple[Sees, Scores]:
        """Which held slots each row sees in layers with this sliding window, and added scores.

        Where deaths are recomputed, the rules are asked about the table without its dead.
        """
        whole = self.policy.keep != "recompute"
        table = self.table if whole else self.table.living()
        queries = self.queries if whole else self.places
        visible = visible_slots(self.policy.see, table, queries, window=window)
        scores = total_bias(self.policy.bias, table, queries, visible)
        if len(table) == len(self.held):
            return visible, scores
        return visible[:, self.held], scores[:, self.held]


@dataclass(slots=True)
class Sight:
    """Visibility of all rows of a forward, worked out once for each sliding window."""

    views: Sequence[View]
    dtype: torch.dtype
    device: torch.device
    _seen: dict[int | None, list[tuple[Sees, Scores]]] = field(default_factory=dict)
    _masks: dict[int | None, Mask] = field(default_factory=dict)

    def visible(self, window: int | None) -> list[Sees]:
        """For each sequence, which held slots its rows see."""
        return [visible for visible, _ in self._both(window)]

    def bias(self, window: int | None) -> list[Scores]:
        """For each sequence, the scores added, rounded as the model gets them."""
        return [scores for _, scores in self._both(window)]

    def _both(self, window: int | None) -> list[tuple[Sees, Scores]]:
        if window not in self._seen:
            seen = [view.sees(window) for view in self.views]
            self._seen[window] = [(visible, self._rounded(exact)) for visible, exact in seen]
        return self._seen[window]

    def _rounded(self, exact: Scores) -> Scores:
        return torch.from_numpy(exact).to(self.dtype).float().numpy()

    def mask(self, window: int | None) -> Mask:
        """Additive mask of all rows, `-inf` exactly where a row does not see a slot.

        Places without a row see slot 0, so that no softmax runs over nothing.
        """
        if window not in self._masks:
            self._masks[window] = self._build(window)
        return self._masks[window]

    def _build(self, window: int | None) -> Tensor:
        n_queries = max(len(view.queries) for view in self.views)
        n_slots = max(len(view.held) for view in self.views)
        mask = np.full((len(self.views), n_queries, n_slots), -np.inf, np.float32)
        for number, (visible, added) in enumerate(self._both(window)):
            rows, columns = visible.shape
            mask[number, :rows, :columns] = np.where(visible, added, -np.inf)
            mask[number, rows:, 0] = 0
        return torch.from_numpy(mask).to(self.device, self.dtype)
