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
        n_slots: Largest number of slots that the cache holds of any, this forward included.
        sequence: Number of the row's sequence in the batch.
        query: Place of the row among its sequence's rows.
        place: Place in the cache that the row writes.
        row: Row number for each (sequence, query); rows that do not exist repeat row 0.
    """

    sequences: slice
    n_slots: int
    sequence: Int64[Tensor, " row"]
    query: Int64[Tensor, " row"]
    place: Int64[Tensor, " row"]
    row: Int64[Tensor, "sequence query"]

    def unpack(self, rows: Float[Tensor, "row head channel"]) -> Query:
        """Rows laid out per sequence; places without a row hold a copy of row 0."""
        return rows[self.row.to(rows.device)].transpose(1, 2)

    def pack(self, laid_out: Query) -> Float[Tensor, "row head channel"]:
        """The inverse of `unpack`."""
        device = laid_out.device
        local = self.sequence.to(device) - self.sequences.start
        return laid_out.transpose(1, 2)[local, self.query.to(device)]


def packed(
    places: Sequence[Int[np.ndarray, " _"]],
    n_slots: Sequence[int],
    *,
    first: int,
    device: torch.device,
) -> Packing:
    """The packing of some neighbouring sequences.

    Args:
        places: Where in the cache each sequence's rows are written.
        n_slots: Slots held of each sequence, these included.
        first: Number in the batch of the first sequence.
    """
    counts = [len(one) for one in places]
    row = np.zeros((len(places), max(counts)), np.int64)
    for number, (start, count) in enumerate(zip(np.cumsum([0, *counts[:-1]]), counts, strict=True)):
        row[number, :count] = np.arange(start, start + count)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device)

    return Packing(
        sequences=slice(first, first + len(places)),
        n_slots=max(n_slots),
        sequence=tensor(first + np.repeat(np.arange(len(places)), counts)),
        query=tensor(np.concatenate([np.arange(count) for count in counts])),
        place=tensor(np.concatenate(places)),
        row=tensor(row),
    )
