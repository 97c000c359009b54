"""The numbers of a boost: every dose of every target, and what repairs what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from analysis.boost.doses import Dose, find
from analysis.boost.restoring import Restoring
from tempo_analysis.stats.intervals import Interval, estimate_with_interval

PAIRS = (("all", "control"), ("set readers", "other heads"), ("first third", "last third"))
"""Targets that are compared dose by dose, where both are there."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A bias chosen to give members the mass they get alone, and what it did.

    Attributes:
        name: Of the way it was chosen.
        about: In words, with its size.
        values: Of each measure, by prompt.
        base: The same without a bias.
        gap: Mean over heads of |mean over prompts of log(mass in the set / mass alone)|.
        gap_before: The same without a bias.
    """

    name: str
    about: str
    values: Mapping[str, Float64[np.ndarray, " prompt"]]
    base: Mapping[str, Float64[np.ndarray, " prompt"]]
    gap: float
    gap_before: float

    def change(self, measure: str, *, seed: int) -> Interval:
        """Mean over prompts of a measure less its value without a bias."""
        return estimate_with_interval(self.values[measure] - self.base[measure], seed=seed)


@dataclass(frozen=True, slots=True)
class BoostNumbers:
    """Dose and response of a bias on members of sets, in one model.

    Attributes:
        model: What identifies it, as in a trace.
        prompts: Ids of the prompts that have an answer, in order.
        refused: Why each of the other prompts has none, by id.
        skipped: Targets without an answer, and why.
        betas: Doses in nats, rising, 0 among them.
        doses: On identical tokens, one for each target.
        free: Decoded freely under the bias; empty where it was not asked for.
        restoring: The dose that restores the mass alone, one for each target but the control.
        repairs: What happens at that dose.
        no_repair: Why there is none.
        heads: Heads of each target that was chosen, for either half of the prompts.
        matched: Slots biased in the control for each member biased otherwise, mean over prompts.
        rounding_nats: Largest mean KL of a prompt when the same code adds nothing to the scores.
        n_sets: Sets of two or more that a step follows.
        tokens_hash: SHA-256 over the tokens and positions of the references.
        settings: Threshold, steps and what else made the references.
        seed: Of draws and intervals.
    """

    model: Mapping[str, Any]
    prompts: tuple[str, ...]
    refused: Mapping[str, str]
    skipped: Mapping[str, str]
    betas: tuple[float, ...]
    doses: tuple[Dose, ...]
    free: tuple[Dose, ...]
    restoring: tuple[Restoring, ...]
    repairs: tuple[Repair, ...]
    no_repair: str
    heads: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    matched: float
    rounding_nats: float
    n_sets: int
    tokens_hash: str
    settings: Mapping[str, Any]
    seed: int

    def dose(self, target: str) -> Dose:
        """The forced replays of one target."""
        found = find(self.doses, target)
        assert found is not None, f"no target {target}"
        return found

    def pairs(self) -> list[tuple[Dose, Dose]]:
        """Targets that are compared."""
        both = [(find(self.doses, first), find(self.doses, second)) for first, second in PAIRS]
        return [(one, other) for one, other in both if one and other]
