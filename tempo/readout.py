"""How the rows of a set become one next-token distribution.

A rule is a weight for each member and a mean: arithmetic (of probabilities) or geometric (of
probabilities, renormalised). `combine` is the plain definition; the engine does the same in torch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64

from tempo.errors import InputError

Member = Float32[np.ndarray, " member"]


class Read(ABC):
    """Weights the members of a set."""

    mean: ClassVar[str] = "arithmetic"

    @abstractmethod
    def weights(self, log_probability: Member) -> Member:
        """Share of each member in the readout; sums to 1.

        Args:
            log_probability: Of each member, under the readout that chose it.
        """


@dataclass(frozen=True, slots=True)
class Mixture(Read):
    """Average of the members' distributions, weighted by their renormalised probabilities."""

    def weights(self, log_probability: Member) -> Member:
        """Renormalised probabilities."""
        logs = log_probability.astype(np.float64)
        return np.exp(logs - _logsumexp(logs)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Product(Read):
    """Softmax of the weighted sum of log-probabilities, weights as in `Mixture`."""

    mean: ClassVar[str] = "geometric"

    def weights(self, log_probability: Member) -> Member:
        """Renormalised probabilities."""
        return Mixture().weights(log_probability)


@dataclass(frozen=True, slots=True)
class Top(Read):
    """The distribution after the top-ranked member."""

    def weights(self, log_probability: Member) -> Member:
        """1 for rank 0."""
        return (np.arange(len(log_probability)) == 0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Last(Read):
    """The distribution after the member with the highest slot."""

    def weights(self, log_probability: Member) -> Member:
        """1 for the last slot."""
        return (np.arange(len(log_probability)) == len(log_probability) - 1).astype(np.float32)


READOUTS: dict[str, Read] = {
    "mixture": Mixture(),
    "product": Product(),
    "top": Top(),
    "last": Last(),
}


def parse_readout(text: str) -> Read:
    """Read a readout by name.

    Raises:
        InputError: No such readout.
    """
    if text not in READOUTS:
        raise InputError(f"expected a readout of {', '.join(READOUTS)}, got {text!r}")
    return READOUTS[text]


def combine(
    rows: Float32[np.ndarray, "member vocab"], weights: Member, *, mean: str
) -> Float32[np.ndarray, " vocab"]:
    """One log-distribution from those after each member."""
    share = weights.astype(np.float64)[:, None]
    if mean == "geometric":
        product = (rows * share).sum(0)
        return (product - _logsumexp(product)).astype(np.float32)
    with np.errstate(divide="ignore"):  # a member of no weight
        return _logsumexp(rows + np.log(share)).astype(np.float32)


def _logsumexp(logs: Float64[np.ndarray, "member *vocab"]) -> Float64[np.ndarray, "*vocab"]:
    """Log of the sum of exponentials over the first axis; scipy's takes long to import."""
    peak = logs.max(0)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):  # all of them impossible
        return np.asarray(peak + np.log(np.exp(logs - peak).sum(0)))
