"""Keys and values of every slot, per layer, for a batch of sequences.

Slots are kept in the order written; a sequence uses the first `n` columns of its row, and its slots
move up where one is evicted. Buffers grow by doubling and live on each layer's own device.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Buffer = Float[Tensor, "sequence kv_head capacity channel"]


class SlotCache:
    """Key and value buffers."""

    def __init__(self, *, n_sequences: int, capacity: int) -> None:
        self.n_sequences = n_sequences
        self.capacity = capacity
        self._keys: dict[int, Buffer] = {}
        self._values: dict[int, Buffer] = {}

    def reserve(self, n_slots: int) -> None:
        """Make room for this many slots in every sequence."""
        if n_slots <= self.capacity:
            return
        # doubling: copying stays linear in the number of slots over a whole run
        self.capacity = max(n_slots, 2 * self.capacity)
        for buffers in (self._keys, self._values):
            for layer, old in buffers.items():
                new = old.new_zeros(*old.shape[:2], self.capacity, old.shape[3])
                new[:, :, : old.shape[2]] = old
                buffers[layer] = new

    def write(
        self,
        layer: int,
        key: Float[Tensor, "row kv_head channel"],
        value: Float[Tensor, "row kv_head channel"],
        *,
        sequence: Int64[Tensor, " row"],
        cache_column: Int64[Tensor, " row"],
    ) -> None:
        """Store each row at its sequence and cache column."""
        for buffers, rows in ((self._keys, key), (self._values, value)):
            if layer not in buffers:
                n_heads, n_channels = rows.shape[1:]
                buffers[layer] = rows.new_zeros(
                    self.n_sequences, n_heads, self.capacity, n_channels
                )
            device = rows.device
            buffers[layer][sequence.to(device), :, cache_column.to(device)] = rows

    def read(self, layer: int, sequences: slice, n_slots: int) -> tuple[Buffer, Buffer]:
        """Views of the first `n_slots` keys and values of some sequences."""
        return self._keys[layer][sequences, :, :n_slots], self._values[layer][
            sequences, :, :n_slots
        ]

    def evict(self, sequence: int, kept: Int64[Tensor, " kept"]) -> None:
        """Free every column of a sequence but these, which move up in their order."""
        for buffers in (self._keys, self._values):
            for buffer in buffers.values():
                own = buffer[sequence]
                # the right side is a copy (advanced indexing), so overlapping columns are safe
                own[:, : len(kept)] = own[:, kept.to(buffer.device)]

    def take(self, sequences: Sequence[int]) -> "SlotCache":
        """A cache of copies of some sequences, in this order."""
        taken = SlotCache(n_sequences=len(sequences), capacity=self.capacity)
        index = torch.tensor(sequences)
        taken._keys = {
            layer: buffer[index.to(buffer.device)] for layer, buffer in self._keys.items()
        }
        taken._values = {
            layer: buffer[index.to(buffer.device)] for layer, buffer in self._values.items()
        }
        return taken
