"""What boosting parallel members did to one model, as one document."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tempo_analysis.parallel.results import plain
from tempo_analysis.report.findings import Findings
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.boost.dose_matching import Restoring
from tempo_analysis.studies.boost.dose_response import (
    FORCED,
    BoostNumbers,
    Dose,
    Quantity,
    Repair,
    at_doses,
    less,
    slope_of,
)
from tempo_analysis.studies.boost.verdict import sentences

KIND = "tempo-boost"
FORMAT = 1
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, repr=False)
class BoostFindings(Findings, BoostNumbers):
    """The numbers, with what they say."""

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
