"""Readouts: how the rows of a set become one next-token distribution.

A rule is a weight for each member and a mean: arithmetic (of probabilities) or geometric (of
probabilities, renormalised). `combine` is the plain definition; the engine does the same in torch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Float64

from tempo.errors import InputError

MemberValues = Float32[np.ndarray, " member"]
Children = Literal["merged", "each", "all"]


class Read(ABC):
    """Weights the members of a set.

    Attributes:
        mean: How the members' distributions are averaged: arithmetic or geometric.
        children: What the next set is chosen from. "merged": the readout; its members descend
            from the whole set. "each": every member's own distribution, which gives it children
            of its own. "all": the readout, and every chosen token becomes a child of every member.
        frontier: Largest set where members have children of their own.
    """

    mean: ClassVar[str] = "arithmetic"
    children: ClassVar[Children] = "merged"
    frontier: int = 0

    @abstractmethod
    def weights(self, log_probability: MemberValues) -> MemberValues:
        """Share of each member in the readout; sums to 1.

        Args:
            log_probability: Log-probability of each member under the readout that chose it; of its
                complete path in a tree.
        """


@dataclass(frozen=True, slots=True)
class Mixture(Read):
    """Average of the members' distributions, weighted by their renormalised probabilities."""

    def weights(self, log_probability: MemberValues) -> MemberValues:
        """Renormalised probabilities."""
        # In logs and float64: path probabilities of a deep tree underflow float32.
        logs = log_probability.astype(np.float64)
        return np.exp(logs - _logsumexp(logs)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Product(Read):
    """Softmax of the weighted sum of log-probabilities, weights as in `Mixture`."""

    mean: ClassVar[str] = "geometric"

    def weights(self, log_probability: MemberValues) -> MemberValues:
        """Renormalised probabilities."""
        return Mixture().weights(log_probability)


@dataclass(frozen=True, slots=True)
class Top(Read):
    """The distribution after the top-ranked member."""

    def weights(self, log_probability: MemberValues) -> MemberValues:
        """Weight 1 for rank 0, 0 for all others."""
        return (np.arange(len(log_probability)) == 0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Last(Read):
    """The distribution after the member with the highest slot."""

    def weights(self, log_probability: MemberValues) -> MemberValues:
        """Weight 1 for the last slot, 0 for all others."""
        return (np.arange(len(log_probability)) == len(log_probability) - 1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class PerNode(Read):
    """A tree: every node has children of its own, chosen by their conditional probability.

    The readout beside it is the mixture over the frontier, weighted by path probability: the exact
    marginal over the paths kept.

    Attributes:
        frontier: Nodes kept at each depth, by path probability.
    """

    children: ClassVar[Children] = "each"
    frontier: int = 8

    def weights(self, log_probability: MemberValues) -> MemberValues:
        """Renormalised path probabilities."""
        return Mixture().weights(log_probability)


@dataclass(frozen=True, slots=True)
class Posterior(Read):
    """The exact Bayesian mixture: tokens are chosen from the mixture, paths weighted by evidence.

    Every token chosen is fed after every path; a path's weight is multiplied by the probability
    that it gave the token. In a tree this is Bayes' rule without approximation.

    Attributes:
        frontier: Paths kept at each depth, by path probability.
    """

    children: ClassVar[Children] = "all"
    frontier: int = 8

    def weights(self, log_probability: MemberValues) -> MemberValues:
        """Renormalised path probabilities."""
        return Mixture().weights(log_probability)


READOUTS: dict[str, Read] = {
    "mixture": Mixture(),
    "product": Product(),
    "top": Top(),
    "last": Last(),
    "per-node": PerNode(),
    "posterior": Posterior(),
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
    rows: Float32[np.ndarray, "member vocab"], weights: MemberValues, *, mean: str
) -> Float32[np.ndarray, " vocab"]:
    """One log-distribution from those after each member."""
    share = weights.astype(np.float64)[:, None]
    if mean == "geometric":
        # The geometric mean does not sum to 1, so it is renormalised.
        product = (rows * share).sum(0)
        return (product - _logsumexp(product)).astype(np.float32)
    with np.errstate(divide="ignore"):  # a member of no weight
        return _logsumexp(rows + np.log(share)).astype(np.float32)


def _logsumexp(logs: Float64[np.ndarray, "member *vocab"]) -> Float64[np.ndarray, "*vocab"]:
    """Log of the sum of exponentials over the first axis; scipy's takes long to import."""
    peak = logs.max(0)
    # If all are -inf, subtracting the peak would give NaN.
    peak = np.where(np.isfinite(peak), peak, 0.0)
    with np.errstate(divide="ignore"):  # all of them impossible
        return np.asarray(peak + np.log(np.exp(logs - peak).sum(0)))
