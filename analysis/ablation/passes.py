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
        attention_output: At t, after the output projection, with its bias.
        logits: Of the queries from t on; row 0 is t. Earlier rows cannot differ.
        attention: The row of t over every slot of the prompt; 0 where a slot is not seen.
    """

    attention_output: Float32[np.ndarray, "layer hidden"]
    logits: Float32[np.ndarray, "query vocab"]
    attention: Float32[np.ndarray, "layer head slot"]


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


def token_of(one: Pass, *, n_tokens: int) -> int:
    """The token t that a pass measures.

    Raises:
        InputError: The pass is not one of a prompt of so many tokens.
    """
    n_queries, n_slots = len(one.logits), one.attention.shape[-1]
    if n_slots != n_tokens or not 1 <= n_queries <= n_tokens:
        raise InputError(
            f"expected the row of t over {n_tokens} slots and logits from t on, got {n_slots} "
            f"slots and {n_queries} rows of logits; pass the number of tokens of this prompt"
        )
    return n_tokens - n_queries
