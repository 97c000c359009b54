"""The pass over the weights: what heads would write, whatever they attend to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.circuits.copying import OvCopying, ov_copying
from analysis.circuits.inhibition import DirectCopy, direct_copy
from analysis.circuits.successor import SuccessorOv, order_of, successor_ov
from analysis.circuits.suppression import CopySuppression, copy_suppression
from analysis.roles.assignment import RoleScores
from analysis.roles.weight_roles import copying_role, successor_role, suppression_role
from tempo.census.battery import Battery
from tempo.errors import TempoError
from tempo.models.circuit_weights import CircuitWeights
from tempo.models.head_weights import circuit_weights, processed_embedding
from tempo.models.language_model import LanguageModel
from tempo.prompts.word_runs import families

N_TOKENS = 500
"""Tokens of the sample that copy suppression is judged on."""


@dataclass(frozen=True, slots=True)
class WeightCensus:
    """What the weights say; None where a role was not asked for or was refused.

    Attributes:
        roles: By name.
        refused: Role to reason.
    """

    roles: dict[str, RoleScores]
    refused: dict[str, str]
    copying: OvCopying | None
    successor: SuccessorOv | None
    suppression: CopySuppression | None


def read_weights(model: LanguageModel, battery: Battery) -> WeightCensus:
    """Score the weights.

    Raises:
        ModelError: The family's weights are not known to add up.
    """
    weights = circuit_weights(model)
    roles: dict[str, RoleScores] = {}
    refused: dict[str, str] = {}
    copying, successor, suppression = None, None, None
    if "ov_copying" in battery.roles:
        copying = ov_copying(weights, seed=battery.seed)
        roles["ov_copying"] = copying_role(copying)
    if "successor_ov" in battery.roles:
        try:
            successor = _successor(model, battery, weights)
            roles["successor_ov"] = successor_role(successor)
        except TempoError as error:
            refused["successor_ov"] = str(error)
    if "copy_suppression" in battery.roles:
        sample = processed_embedding(model, _sample(battery))
        suppression = copy_suppression(weights, sample, seed=battery.seed)
        roles["copy_suppression"] = suppression_role(suppression, seed=battery.seed)
    return WeightCensus(roles, refused, copying, successor, suppression)


def name_copying(model: LanguageModel, tokens: Sequence[int]) -> tuple[DirectCopy, DirectCopy]:
    """The OV copy score of names without and with the norms around the head.

    Raises:
        ModelError: The family's weights are not known to add up.
    """
    weights = circuit_weights(model)
    return direct_copy(weights, tokens, norm=False), direct_copy(weights, tokens, norm=True)


def _successor(model: LanguageModel, battery: Battery, weights: CircuitWeights) -> SuccessorOv:
    orders = [order_of(family) for family in families(battery.facts)]
    tokens = sorted({token for order in orders for token in order.tokens})
    return successor_ov(weights, orders, processed_embedding(model, tokens))


def _sample(battery: Battery) -> list[int]:
    """Tokens that the corpus holds, as a sample of what the model meets."""
    held = np.unique(np.array(battery.facts.encode(battery.corpus.text), np.int64))
    rng = np.random.default_rng([battery.seed, *b"suppression"])
    known = np.intersect1d(held, battery.facts.ordinary)
    return sorted(rng.choice(known, min(N_TOKENS, len(known)), replace=False).tolist())
