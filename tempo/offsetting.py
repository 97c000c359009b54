"""Vectors added to tokens as they enter the first layer of a model."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from tempo.model import LanguageModel
from tempo.policy.edits import EmbeddingOffset

Shift = Float32[Tensor, "row channel"]


def shift_of(
    moves: Sequence[tuple[EmbeddingOffset, Bool[np.ndarray, " row"]]],
) -> Shift | None:
    """The sum of offsets, each on the packed rows that it means; None where there are none."""
    if not moves:
        return None
    return torch.from_numpy(sum(np.outer(rows, edit.vector) for edit, rows in moves)).float()


@contextmanager
def shifted(model: LanguageModel, shift: Shift | None) -> Generator[None]:
    """Add to the rows of a packed forward before the first layer; nothing is left behind."""
    if shift is None:
        yield
        return
    decoder: Any = model.hf.get_decoder()

    def move(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0] + shift.to(given[0]), *given[1:])

    hook = decoder.layers[0].register_forward_pre_hook(move)
    try:
        yield
    finally:
        hook.remove()
