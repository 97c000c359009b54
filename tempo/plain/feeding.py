"""Sequences for a plain forward: refused where they cannot be run, and put into batches."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from tempo.errors import InputError
from tempo.model import LanguageModel
from tempo.support import check_rope

Ids = Int64[np.ndarray, " _"]
"""Token ids of one sequence among others, whose lengths may differ."""
Batch = Int64[np.ndarray, "sequence token"]


def check_sequences(model: LanguageModel, sequences: Sequence[Ids]) -> None:
    """Refuse ids that the model does not have, empty sequences, and too long ones.

    Raises:
        InputError: Says which.
        ModelError: A position at which the model's RoPE would change its frequencies.
    """
    if not sequences or any(not len(ids) for ids in sequences):
        raise InputError("expected at least one sequence of at least one token, got none; add some")
    lowest, highest = (
        min(int(ids.min()) for ids in sequences),
        max(int(ids.max()) for ids in sequences),
    )
    if lowest < 0 or highest >= model.vocab_size:
        raise InputError(
            f"expected token ids from 0 to {model.vocab_size - 1}, got {lowest} to {highest}; "
            "encode with the model's own tokenizer"
        )
    longest = max(len(ids) for ids in sequences)
    if longest > model.max_positions:
        raise InputError(
            f"expected at most {model.max_positions} tokens, got {longest}; take shorter sequences"
        )
    check_rope(model, longest - 1)


def batches_of(sequences: Sequence[Ids], batch: int) -> Iterator[Batch]:
    """Neighbours of one length, up to a number of them, in order."""
    start = 0
    while start < len(sequences):
        end = start + 1
        while (
            end < len(sequences)
            and end - start < batch
            and len(sequences[end]) == len(sequences[start])
        ):
            end += 1
        yield np.stack(sequences[start:end])
        start = end
