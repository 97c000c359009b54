"""The rows of one packed forward: where each row belongs and what it sees."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tempo.policy.biases import Scores, total_bias
from tempo.policy.presets import Policy
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import Sees, visible_slots

Mask = Float[Tensor, "sequence query slot"]

Query = Float[Tensor, "sequence head query channel"]


@dataclass(frozen=True, slots=True)
class Packing:
    """The sequence, query index and cache column of every row of a packed forward.

    Attributes:
        sequences: Neighbouring sequences of the batch that take part.
        n_slots: Largest number of slots that the cache holds of any, this forward included.
        sequence: Number of the row's sequence in the batch.
        query: Index of the row among its sequence's rows.
        cache_column: Column of the cache that the row writes.
        row: Row number for each (sequence, query); rows that do not exist repeat row 0.
    """

    sequences: slice
    n_slots: int
    sequence: Int64[Tensor, " row"]
    query: Int64[Tensor, " row"]
    cache_column: Int64[Tensor, " row"]
    row: Int64[Tensor, "sequence query"]

    def unpack(self, rows: Float[Tensor, "row head channel"]) -> Query:
        """Rows laid out per sequence; padding holds a copy of row 0."""
        # Layers of one model may lie on several devices; the indices follow the rows.
        return rows[self.row.to(rows.device)].transpose(1, 2)

    def pack(self, laid_out: Query) -> Float[Tensor, "row head channel"]:
        """The inverse of `unpack`."""
        device = laid_out.device
        local = self.sequence.to(device) - self.sequences.start
        return laid_out.transpose(1, 2)[local, self.query.to(device)]


def packed(
    cache_columns: Sequence[Int[np.ndarray, " _"]],
    n_slots: Sequence[int],
    *,
    first: int,
    device: torch.device,
) -> Packing:
    """The packing of some neighbouring sequences.

    Args:
        cache_columns: Where in the cache each sequence's rows are written.
        n_slots: Slots cached of each sequence, these included.
        first: Number in the batch of the first sequence.
    """
    counts = [len(one) for one in cache_columns]
    # padding points at row 0: any row that exists will do, its result is never packed again
    row = np.zeros((len(cache_columns), max(counts)), np.int64)
    for number, (start, count) in enumerate(zip(np.cumsum([0, *counts[:-1]]), counts, strict=True)):
        row[number, :count] = np.arange(start, start + count)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device)

    return Packing(
        sequences=slice(first, first + len(cache_columns)),
        n_slots=max(n_slots),
        sequence=tensor(first + np.repeat(np.arange(len(cache_columns)), counts)),
        query=tensor(np.concatenate([np.arange(count) for count in counts])),
        cache_column=tensor(np.concatenate(cache_columns)),
        row=tensor(row),
    )


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """One sequence's share of a forward: the rows it adds and the rules they follow.

    Attributes:
        table: Every slot ever written, up to and including the rows of this forward.
        queries: Slots of those rows.
        cached_slots: Slots in the cache, in the order of its columns; the columns of every row.
    """

    table: SlotTable
    queries: Int[np.ndarray, " query"]
    policy: Policy
    cached_slots: Int[np.ndarray, " cached"]

    @property
    def cache_columns(self) -> Int[np.ndarray, " query"]:
        """Where in the cache the rows are written."""
        # cached slots stay in the order written, also after an eviction, so they are sorted
        return np.searchsorted(self.cached_slots, self.queries)

    def sees(self, window: int | None) -> tuple[Sees, Scores]:
        """Which cached slots each row sees in layers with this sliding window, and added scores.

        Where pruning recomputes, the rules read the table without its pruned slots.
        """
        # without pruned slots a slot's number is its cache column, for queries as for keys
        whole = self.policy.keep != "recompute"
        table = self.table if whole else self.table.without_pruned()
        queries = self.queries if whole else self.cache_columns
        visible = visible_slots(self.policy.see, table, queries, window=window)
        scores = total_bias(self.policy.bias, table, queries, visible)
        if len(table) == len(self.cached_slots):
            return visible, scores
        return visible[:, self.cached_slots], scores[:, self.cached_slots]


@dataclass(slots=True)
class BatchMask:
    """Visibility of all rows of a forward, computed once for each sliding window."""

    views: Sequence[SequenceBatch]
    dtype: torch.dtype
    device: torch.device
    _seen: dict[int | None, list[tuple[Sees, Scores]]] = field(default_factory=dict)
    _masks: dict[int | None, Mask] = field(default_factory=dict)

    def visible(self, window: int | None) -> list[Sees]:
        """For each sequence, which cached slots its rows see."""
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
        # a trace states the bias that acted, which a bfloat16 model adds rounded
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
        n_slots = max(len(view.cached_slots) for view in self.views)
        mask = np.full((len(self.views), n_queries, n_slots), -np.inf, np.float32)
        for number, (visible, added) in enumerate(self._both(window)):
            rows, columns = visible.shape
            mask[number, :rows, :columns] = np.where(visible, added, -np.inf)
            mask[number, rows:, 0] = 0  # a softmax over -inf alone would be NaN
        return torch.from_numpy(mask).to(self.device, self.dtype)
