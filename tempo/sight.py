"""What every row of one packed forward sees, as arrays for the trace and as masks for the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tempo.attention import Mask
from tempo.policies import Policy
from tempo.slots import SlotTable
from tempo.visibility import Scores, Sees, total_bias, visible_slots


@dataclass(frozen=True, slots=True)
class View:
    """One sequence's share of a forward: the rows it adds and the rules they follow.

    Attributes:
        table: Its slots up to and including the rows of this forward.
        queries: Slots of those rows.
    """

    table: SlotTable
    queries: Int[np.ndarray, " query"]
    policy: Policy

    def visible(self, window: int | None) -> Sees:
        """Which slots each row sees in layers with this sliding window."""
        return visible_slots(self.policy.see, self.table, self.queries, window=window)

    def bias(self, visible: Sees) -> Scores:
        """Finite scores that the policy adds."""
        return total_bias(self.policy.bias, self.table, self.queries, visible)


@dataclass(slots=True)
class Sight:
    """Visibility of all rows of a forward, worked out once for each sliding window."""

    views: Sequence[View]
    dtype: torch.dtype
    device: torch.device
    _visible: dict[int | None, list[Sees]] = field(default_factory=dict)
    _bias: dict[int | None, list[Scores]] = field(default_factory=dict)
    _masks: dict[int | None, Mask] = field(default_factory=dict)

    @property
    def biased(self) -> bool:
        """Whether any policy adds scores."""
        return any(view.policy.bias for view in self.views)

    def visible(self, window: int | None) -> list[Sees]:
        """For each sequence, which slots its rows see."""
        if window not in self._visible:
            self._visible[window] = [view.visible(window) for view in self.views]
        return self._visible[window]

    def bias(self, window: int | None) -> list[Scores]:
        """For each sequence, the scores added, rounded as the model gets them."""
        if window not in self._bias:
            pairs = zip(self.views, self.visible(window), strict=True)
            exact = [view.bias(visible) for view, visible in pairs]
            self._bias[window] = [torch.from_numpy(b).to(self.dtype).float().numpy() for b in exact]
        return self._bias[window]

    def mask(self, window: int | None) -> Mask:
        """Additive mask of all rows, `-inf` exactly where a row does not see a slot.

        Places without a row see slot 0, so that no softmax runs over nothing.
        """
        if window not in self._masks:
            self._masks[window] = self._build(window)
        return self._masks[window]

    def _build(self, window: int | None) -> Tensor:
        n_queries = max(len(view.queries) for view in self.views)
        n_slots = max(len(view.table) for view in self.views)
        mask = np.full((len(self.views), n_queries, n_slots), -np.inf, np.float32)
        for number, visible in enumerate(self.visible(window)):
            rows, columns = visible.shape
            added = self.bias(window)[number] if self.biased else np.float32(0)
            mask[number, :rows, :columns] = np.where(visible, added, -np.inf)
            mask[number, rows:, 0] = 0
        return torch.from_numpy(mask).to(self.device, self.dtype)
