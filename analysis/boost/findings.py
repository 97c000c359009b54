"""What boosting parallel members did to one model, as one document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from analysis.boost.doses import FORCED, Dose, Quantity, at_doses, find, less, slope_of
from analysis.boost.restoring import Restoring
from analysis.boost.verdict import sentences
from analysis.results import plain
from analysis.statistics import Interval, estimate_with_interval

KIND = "tempo-boost"
FORMAT = 1
PAIRS = (("all", "control"), ("set readers", "other heads"), ("first third", "last third"))
"""Targets that are compared dose by dose, where both are there."""

Document = dict[str, Any]


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
class BoostFindings:
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

    def sentences(self) -> list[str]:
        """What was found, in words that follow from the intervals."""
        return sentences(self)

    def document(self) -> Document:
        """The content of `boost.json`: plain JSON values, None where there is no data."""
        return plain(
            {
                "format": FORMAT,
                "kind": KIND,
                "model": self.model["name"],
                "sentences": self.sentences(),
                "betas": list(self.betas),
                "prompts": list(self.prompts),
                "refused": dict(self.refused),
                "skipped": dict(self.skipped),
                "n_sets": self.n_sets,
                "targets": {dose.target: self._target(dose) for dose in self.doses},
                "free": {dose.target: self._measures(dose) for dose in self.free},
                "pairs": [self._pair(*pair) for pair in self.pairs()],
                "restoring": {one.target: _restoring(one) for one in self.restoring},
                "repairs": {one.name: self._repair(one) for one in self.repairs},
                "no_repair": self.no_repair,
                "control_slots_per_member": self.matched,
                "rounding_nats": self.rounding_nats,
                "tokens_hash": self.tokens_hash,
                "settings": dict(self.settings),
                "seed": self.seed,
                "model_facts": dict(self.model),
            }
        )

    def json(self) -> str:
        """The document as text, the same for the same model, prompts and options."""
        return json.dumps(self.document(), allow_nan=False, indent=1) + "\n"

    def _target(self, dose: Dose) -> Document:
        heads = self.heads.get(dose.target)
        return {
            "about": dose.about,
            "n_heads": dose.n_heads,
            "heads": None if heads is None else [list(half) for half in heads],
            "measures": self._measures(dose),
            "slopes": {
                one.name: _row(slope_of(dose, one.name, seed=self.seed)) | {"unit": one.slope}
                for one in measured(dose, FORCED)
                if one.slope
            },
        }

    def _measures(self, dose: Dose) -> Document:
        return {
            name: {
                "value": [_row(one) for one in at_doses(values, seed=self.seed)],
                "change": [_row(one) for one in at_doses(dose.change(name), seed=self.seed)],
            }
            for name, values in dose.values.items()
        }

    def _pair(self, first: Dose, second: Dose) -> Document:
        return {
            "first": first.target,
            "second": second.target,
            "difference": {
                name: [_row(one) for one in less(first, second, name, seed=self.seed)]
                for name in first.values
            },
        }

    def _repair(self, one: Repair) -> Document:
        return {
            "about": one.about,
            "gap": one.gap,
            "gap_before": one.gap_before,
            "change": {name: _row(one.change(name, seed=self.seed)) for name in one.values},
        }


def measured(dose: Dose, quantities: Sequence[Quantity]) -> list[Quantity]:
    """The measures that a dose has."""
    return [one for one in quantities if one.name in dose.values]


def _restoring(one: Restoring) -> Document:
    return {
        "measured": _row(one.measured),
        "law": _row(one.law),
        "difference": _row(one.difference),
        "pooled": one.pooled,
        "pooled_law": one.pooled_law,
        "loss": _row(one.loss),
        "n_without": one.n_without,
    }


def _row(found: Interval) -> Document:
    return {
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "method": found.method,
    }
