"""Distributions over a whole vocabulary: logarithms, divergence, entropy, mass; in float64."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.special import log_softmax, logsumexp


def log_probabilities(
    logits: Float[np.ndarray, "*row vocab"],
) -> Float64[np.ndarray, "*row vocab"]:
    """Of logits, or of log-probabilities that float32 left unnormalised; natural logarithms."""
    # float64 before the softmax: over 50,000 tokens float32 sums are off by 1e-6 and more, the size
    # of the divergences that are called rounding.
    return np.asarray(log_softmax(logits.astype(np.float64), axis=-1))


def kl_nats(
    target: Float64[np.ndarray, "... vocab"], other: Float64[np.ndarray, "... vocab"]
) -> Float64[np.ndarray, "..."]:
    """KL(target || other) of log-probabilities over the last axis, in nats; rows broadcast.

    A token of probability 0 in the target adds nothing; one of probability 0 in the other only
    makes it infinite. Values that rounding makes negative are set to 0.
    """
    share = np.exp(target)
    # Where the target has 0, -inf - -inf would be NaN; the limit of p log p is 0.
    held = np.broadcast_to(share > 0, np.broadcast_shapes(target.shape, other.shape))
    away = np.subtract(target, other, where=held, out=np.zeros(held.shape))
    # Two nearly equal distributions sum to some -1e-17.
    return np.asarray(np.maximum((share * away).sum(-1), 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class FullReadout:
    """One distribution; its probabilities sum to 1 to the precision of float64.

    Attributes:
        raw: Log-probabilities as the engine gave them.
        log: The same, normalised.
    """

    raw: Float32[np.ndarray, " vocab"]
    log: Float64[np.ndarray, " vocab"] = field(init=False)

    def __post_init__(self) -> None:
        exact = self.raw.astype(np.float64)
        # The only way to set a derived field of a frozen dataclass.
        object.__setattr__(self, "log", exact - np.asarray(logsumexp(exact)))

    def top(self) -> int:
        """The most probable token, the lowest id among equals."""
        # Of the float32 values, which are what the engine compared.
        return int(self.raw.argmax())

    def entropy_nats(self) -> float:
        """Entropy; a probability of 0 adds nothing."""
        seen = self.log[self.log > -np.inf]
        return float(-(np.exp(seen) * seen).sum())

    def log_mass(self, tokens: Sequence[int] | Int[np.ndarray, " _"]) -> float:
        """Log of the probability of some tokens together."""
        return float(np.asarray(logsumexp(self.log[np.asarray(tokens, np.int64)])))


def mixed(
    log_weight: Float64[np.ndarray, " path"], log: Float64[np.ndarray, "path vocab"]
) -> Float64[np.ndarray, " vocab"]:
    """Log of the mixture of some paths; weights need not sum to 1."""
    # In logarithms throughout: path weights fall below 1e-300 after some hundred tokens.
    share = log_weight - logsumexp(log_weight)
    return np.asarray(logsumexp(log + share[:, None], axis=0))
