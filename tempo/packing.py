"""The rows of many sequences as one: where each row of a packed forward belongs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

Query = Float[Tensor, "sequence head query channel"]


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the rows of one packed forward belong.

    Attributes:
        sequences: Neighbouring sequences of the batch that take part.
        n_slots: Largest number of slots any of them has, this forward included.
        sequence: Number of the row's sequence in the batch.
        query: Place of the row among its sequence's rows.
        slot: Slot that the row writes.
        place: Row number for each (sequence, query); rows that do not exist repeat row 0.
    """

    sequences: slice
    n_slots: int
    sequence: Int64[Tensor, " row"]
    query: Int64[Tensor, " row"]
    slot: Int64[Tensor, " row"]
    place: Int64[Tensor, "sequence query"]

    def unpack(self, rows: Float[Tensor, "row head channel"]) -> Query:
        """Rows laid out per sequence; places without a row hold a copy of row 0."""
        return rows[self.place.to(rows.device)].transpose(1, 2)

    def pack(self, laid_out: Query) -> Float[Tensor, "row head channel"]:
        """The inverse of `unpack`."""
        device = laid_out.device
        local = self.sequence.to(device) - self.sequences.start
        return laid_out.transpose(1, 2)[local, self.query.to(device)]


def packed(
    queries: Sequence[Int[np.ndarray, " _"]],
    n_slots: Sequence[int],
    *,
    first: int,
    device: torch.device,
) -> Packing:
    """The packing of some neighbouring sequences.

    Args:
        queries: Slots that each sequence's rows write.
        n_slots: Slots of each sequence, these included.
        first: Number in the batch of the first sequence.
    """
    counts = [len(slots) for slots in queries]
    place = np.zeros((len(queries), max(counts)), np.int64)
    for number, (start, count) in enumerate(zip(np.cumsum([0, *counts[:-1]]), counts, strict=True)):
        place[number, :count] = np.arange(start, start + count)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device)

    return Packing(
        sequences=slice(first, first + len(queries)),
        n_slots=max(n_slots),
        sequence=tensor(first + np.repeat(np.arange(len(queries)), counts)),
        query=tensor(np.concatenate([np.arange(count) for count in counts])),
        slot=tensor(np.concatenate(queries)),
        place=tensor(place),
    )
