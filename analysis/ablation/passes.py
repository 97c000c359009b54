"""What one forward of one prompt leaves for the measures, and which two forwards are compared."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from tempo.errors import InputError

Outputs = Float32[np.ndarray, "layer hidden"]
"""What the attention of each layer gives at t, after its output projection."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One forward of one prompt under one condition; t is the token that is measured.

    Attributes:
        at: t, from 0.
        attention_output: At t, after the output projection, with its bias.
        logits: Of every token: a value that is taken out changes tokens before t as well.
        attention: The row of t over every slot of the prompt; 0 where a slot is not seen.

    Raises:
        InputError: The prompt has no token t, or the row of t has another length.
    """

    at: int
    attention_output: Float32[np.ndarray, "layer hidden"]
    logits: Float32[np.ndarray, "query vocab"]
    attention: Float32[np.ndarray, "layer head slot"]

    def __post_init__(self) -> None:
        n_queries, n_slots = len(self.logits), self.attention.shape[-1]
        if n_slots != n_queries or not 0 <= self.at < n_queries:
            raise InputError(
                f"expected logits and the row of t = {self.at} over all tokens of a prompt, got "
                f"{n_queries} rows of logits and {n_slots} slots; pass those of one forward"
            )


@dataclass(frozen=True, slots=True, order=True)
class Comparison:
    """Which pass is held against which; prints as `base|A`.

    Attributes:
        reference: The pass that counts as unchanged.
        changed: The pass whose change is measured.
    """

    reference: str
    changed: str

    def __str__(self) -> str:
        return f"{self.reference}|{self.changed}"
