"""Biases: finite scores added before the softmax to visible slots; 0 on every prompt slot."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float32, Float64

from tempo.errors import InputError
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import Queries, SameStep, Sees
from tempo.vocabulary import PROMPT_STEP

Scores = Float32[np.ndarray, "query slot"]
_LEAST = -60.0
"""Lower bound of a log share: exp(-60) is negligible, and the score stays finite."""


class Bias(ABC):
    """A finite score added before the softmax to slots that are seen."""

    needs_evidence: ClassVar[bool] = False

    @abstractmethod
    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """The score added for each (query, slot); 0 where nothing is added."""


@dataclass(frozen=True, slots=True)
class Boost(Bias):
    """Adds `beta` to the score of every member of a parallel set (width >= 2).

    Acts on queries of later steps only, unless `own_set`.
    """

    beta: float | int
    own_set: bool = False

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """`beta` on members of sets."""
        targets = (table.width >= 2)[None, :] & _acts_on(table, queries, self.own_set)
        return np.where(targets, np.float32(self.beta), np.float32(0))


@dataclass(frozen=True, slots=True)
class LogWeight(Bias):
    """Adds the log of each member's probability renormalised in its set; 0 for a single token.

    Acts on queries of later steps only, unless `own_set`.
    """

    own_set: bool = False

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """Log of the renormalised probability."""
        generated = table.step != PROMPT_STEP
        # Prompt slots have NaN, which would spread through the sums; 1 has log 0.
        probability = np.where(generated, table.probability, 1).astype(np.float64)
        total = np.bincount(table.step, probability)[table.step]
        share = np.where(generated, np.log(probability / total), 0)
        return np.where(_acts_on(table, queries, self.own_set), share[None, :], 0).astype(
            np.float32
        )


@dataclass(frozen=True, slots=True)
class MassNeutral(Bias):
    """Subtracts the log of the number of members of the slot's set that the row sees.

    So n equal members together weigh as much as one: 0 in an isolated member's own row, -log n in
    later rows.
    """

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """Minus the log of the visible members of the slot's set."""
        n_steps = table.n_steps + 1
        of_step = table.step[:, None] == np.arange(n_steps)[None, :]
        # [query, slot] @ [slot, step]: how many members of each step a row sees.
        seen_of_step = visible.astype(np.int64) @ of_step.astype(np.int64)
        count = np.where(table.step[None, :] == PROMPT_STEP, 1, seen_of_step[:, table.step])
        # 0 visible members happen in hidden cells only, which `total_bias` zeroes.
        return -np.log(np.maximum(count, 1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LogPosterior(Bias):
    """Adds the log of each member's weight, updated by what was fed since: Bayes' rule.

    The weight of member s for a query x of the next set is proportional to w_s p(x | s), the
    probability that the model gave x in the row of s. A later query weighs the members of each
    set in between so, and passes the weights on. Exact for the first set and the token after it;
    further back what a row says already mixes its past. 0 for a single token.

    Acts on queries of later steps only.
    """

    needs_evidence: ClassVar[bool] = True

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """Log of the posterior weight among the members that the query sees."""
        total = np.zeros(visible.shape, np.float32)
        for step in np.unique(table.step[queries][table.step[queries] > PROMPT_STEP]).tolist():
            rows = np.flatnonzero(table.step[queries] == step)
            # One-hot over the query's own set: its slots are consecutive, offsets are ranks.
            share = np.eye(len(table.members(step)))[queries[rows] - table.members(step)[0]]
            for earlier in range(step - 1, PROMPT_STEP, -1):
                # Weights of a set are those of the set after it, carried one step back.
                share = share @ responsibility(table, earlier)
                members = table.members(earlier)
                seen = np.where(visible[np.ix_(rows, members)], share, 0)
                # The smallest normal float in place of 0: an invisible set gives 0 / tiny = 0, not
                # NaN.
                among = seen / np.maximum(seen.sum(-1, keepdims=True), np.finfo(float).tiny)
                floor = np.exp(_LEAST)
                total[np.ix_(rows, members)] = np.log(np.maximum(among, floor))
        return total


def responsibility(table: SlotTable, step: int) -> Float64[np.ndarray, "next member"]:
    """Posterior probability of each member of a set, given each member of the next set.

    Raises:
        InputError: The table carries no evidence of that step.
    """
    if step >= len(table.evidence):
        raise InputError(
            "expected a slot table with the evidence of every set, got "
            f"{len(table.evidence)} for {table.n_steps} sets; decode under the policy itself"
        )
    # A member of weight 0 has log -inf, hence responsibility 0.
    with np.errstate(divide="ignore"):
        log_weight = np.log(table.weight[table.members(step)].astype(np.float64))
    joint = table.evidence[step].astype(np.float64) + log_weight
    # The maximum keeps the exponentials in range and cancels in the ratio.
    joint = np.exp(joint - joint.max(-1, keepdims=True))
    return joint / joint.sum(-1, keepdims=True)


BIASES: dict[str, Bias] = {
    "log-weight": LogWeight(),
    "mass-neutral": MassNeutral(),
    "posterior": LogPosterior(),
}


def parse_bias(text: str) -> tuple[Bias, ...]:
    """Read ``boost:0.5``, ``log-weight``, ``mass-neutral``, ``posterior`` or several with a plus.

    Raises:
        InputError: None of these.
    """
    return tuple(_parse_one(part) for part in text.split("+"))


def _parse_one(text: str) -> Bias:
    name, _, beta = text.partition(":")
    if name == "boost" and beta:
        try:
            return Boost(float(beta))
        except ValueError:
            raise InputError(
                f"expected boost:NUMBER, got {text!r}; for example boost:0.5"
            ) from None
    if text not in BIASES:
        raise InputError(f"expected a bias of boost:NUMBER, {', '.join(BIASES)}, got {text!r}")
    return BIASES[text]


def total_bias(
    biases: tuple[Bias, ...], table: SlotTable, queries: Queries, visible: Sees
) -> Scores:
    """Sum of all biases, 0 where the slot is not seen."""
    total = np.zeros(visible.shape, np.float32)
    for bias in biases:
        total += bias.scores(table, queries, visible)
    # Finite biases only: visibility alone decides what is hidden, so a bias cannot reveal a slot.
    return np.where(visible, total, np.float32(0))


def _acts_on(table: SlotTable, queries: Queries, own_set: bool) -> Bool[np.ndarray, "query slot"]:
    later = table.step[queries, None] > table.step[None, :]
    generated = (table.step != PROMPT_STEP)[None, :]
    return (later | SameStep().sees(table, queries)) & generated if own_set else later & generated
