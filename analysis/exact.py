"""Distributions over a whole vocabulary: their logarithms and their divergence, in float64."""

import numpy as np
from jaxtyping import Float, Float64
from scipy.special import log_softmax


def log_probabilities(
    logits: Float[np.ndarray, "*row vocab"],
) -> Float64[np.ndarray, "*row vocab"]:
    """Of logits, or of log-probabilities that float32 left unnormalised; natural logarithms."""
    return np.asarray(log_softmax(logits.astype(np.float64), axis=-1))


def kl_nats(
    target: Float64[np.ndarray, "... vocab"], other: Float64[np.ndarray, "... vocab"]
) -> Float64[np.ndarray, "..."]:
    """KL(target || other) of log-probabilities over the last axis, in nats; rows broadcast.

    A token of probability 0 in the target adds nothing; one that only the other rules out makes it
    infinite. Rounding never makes it negative.
    """
    share = np.exp(target)
    held = np.broadcast_to(share > 0, np.broadcast_shapes(target.shape, other.shape))
    away = np.subtract(target, other, where=held, out=np.zeros(held.shape))
    return np.asarray(np.maximum((share * away).sum(-1), 0.0))
