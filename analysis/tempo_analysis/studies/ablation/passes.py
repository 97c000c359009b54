"""The data kept of one forward pass of one prompt, and distances between two passes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from tempo.errors import InputError
from tempo_analysis.stats.distributions import kl_nats, log_probabilities

Outputs = Float32[np.ndarray, "layer hidden"]
"""Output of the attention of each layer at t, after its output projection."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One forward pass of one prompt under one condition, measured at the token t.

    Attributes:
        at: Index of t, from 0.
        attention_output: At t, after the output projection, with its bias.
        logits: Of every token, since a removed value also changes tokens before t.
        attention: Row of t over every slot of the prompt; 0 for slots that it cannot see.

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
    """A pass compared with another; prints as `base|A`.

    Attributes:
        reference: The pass that counts as unchanged.
        changed: The pass whose change is measured.
    """

    reference: str
    changed: str

    def __str__(self) -> str:
        return f"{self.reference}|{self.changed}"


# The published code divides by max(||b||^2, 1e-8), so a zero reference has a NIP of 0 there, the
# value of a total loss. Here it is NaN.
SMALLEST = 1e-8
"""A vector with a smaller squared length counts as 0, and quotients by it are NaN."""


def nip(
    reference: Float[np.ndarray, "*cell hidden"], changed: Float[np.ndarray, "*cell hidden"]
) -> Float64[np.ndarray, "*cell"]:
    """Normalised inner product <b, a> / ||b||^2: how much of the reference b is left in a.

    Returns:
        1 for the same vector, 0 for an orthogonal or zero vector; values above 1 and below 0 are
        possible. NaN if the reference is 0, since nothing could be lost.
    """
    # float64: 1 - NIP is read as a loss, and in float32 it would be rounding near 1
    b, a = _exact(reference, changed)
    squares = _dot(b, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squares > SMALLEST, _dot(b, a) / squares, np.nan)


def cosine(
    reference: Float[np.ndarray, "*cell hidden"], changed: Float[np.ndarray, "*cell hidden"]
) -> Float64[np.ndarray, "*cell"]:
    """Cosine of the angle between two vectors; NaN if either of them is 0."""
    b, a = _exact(reference, changed)
    squares = np.stack([_dot(b, b), _dot(a, a)])
    known = (squares > SMALLEST).all(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, _dot(b, a) / np.sqrt(squares[0] * squares[1]), np.nan)


def top_1_changed(
    base_logits: Float[np.ndarray, "query vocab"], logits: Float[np.ndarray, "query vocab"]
) -> Bool[np.ndarray, " query"]:
    """Whether the most probable token differs, by query; among equal logits the first counts."""
    return base_logits.argmax(-1) != logits.argmax(-1)


def next_token_kl_nats(
    base_logits: Float[np.ndarray, "query vocab"], logits: Float[np.ndarray, "query vocab"]
) -> Float64[np.ndarray, " query"]:
    """KL(base || changed) over the whole vocabulary, by query, in nats; never below 0."""
    rows = zip(base_logits, logits, strict=True)  # one by one: a vocabulary in float64 is large
    found = [kl_nats(log_probabilities(base), log_probabilities(one)) for base, one in rows]
    return np.array(found, np.float64)


def _exact(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return first.astype(np.float64), second.astype(np.float64)


def _dot(
    first: Float64[np.ndarray, "*cell hidden"], second: Float64[np.ndarray, "*cell hidden"]
) -> Float64[np.ndarray, "*cell"]:
    return np.asarray((first * second).sum(-1))  # sum gives a scalar for a single pair
