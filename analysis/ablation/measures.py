"""How far one vector, or one distribution over the vocabulary, is from its reference."""

import numpy as np
from jaxtyping import Bool, Float, Float64

from tempo_analysis.stats.distributions import kl_nats, log_probabilities

SMALLEST = 1e-8
"""Below this squared length a vector counts as 0, and nothing is measured along it."""


def nip(
    reference: Float[np.ndarray, "*cell hidden"], changed: Float[np.ndarray, "*cell hidden"]
) -> Float64[np.ndarray, "*cell"]:
    """Normalised inner product <b, a> / ||b||^2: how much of the reference b is left in a.

    1 for the same vector, 0 for an orthogonal one or 0; beyond 1 and below 0 are possible. NaN
    where the reference is 0: nothing could be lost, which is not the same as losing everything.
    """
    b, a = _exact(reference, changed)
    squares = _dot(b, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squares > SMALLEST, _dot(b, a) / squares, np.nan)


def cosine(
    reference: Float[np.ndarray, "*cell hidden"], changed: Float[np.ndarray, "*cell hidden"]
) -> Float64[np.ndarray, "*cell"]:
    """Cosine of the angle between two vectors; NaN where either of them is 0."""
    b, a = _exact(reference, changed)
    squares = np.stack([_dot(b, b), _dot(a, a)])
    known = (squares > SMALLEST).all(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, _dot(b, a) / np.sqrt(squares[0] * squares[1]), np.nan)


def top_1_changed(
    base_logits: Float[np.ndarray, "query vocab"], logits: Float[np.ndarray, "query vocab"]
) -> Bool[np.ndarray, " query"]:
    """Where the most probable token is another one; of equal ones the first counts."""
    return base_logits.argmax(-1) != logits.argmax(-1)


def kl_nats(
    base_logits: Float[np.ndarray, "query vocab"], logits: Float[np.ndarray, "query vocab"]
) -> Float64[np.ndarray, " query"]:
    """KL(base || changed) over the whole vocabulary, in nats; never below 0."""
    rows = zip(base_logits, logits, strict=True)  # one by one: a vocabulary in float64 is large
    found = [kl_nats(log_probabilities(base), log_probabilities(one)) for base, one in rows]
    return np.array(found, np.float64)


def _exact(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return first.astype(np.float64), second.astype(np.float64)


def _dot(
    first: Float64[np.ndarray, "*cell hidden"], second: Float64[np.ndarray, "*cell hidden"]
) -> Float64[np.ndarray, "*cell"]:
    return np.asarray((first * second).sum(-1))  # of one pair, too
