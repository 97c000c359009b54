"""Results of boosting parallel members in one model: document, tables, figures and facts."""

from collections.abc import Mapping
from dataclasses import dataclass

from tempo_analysis.report.document import Document, plain
from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.findings import Findings
from tempo_analysis.report.table import Table
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.boost.dose_matching import Restoring
from tempo_analysis.studies.boost.dose_response import (
    FORCED,
    BoostNumbers,
    Dose,
    Repair,
    at_doses,
    less,
    measured,
    slope_of,
)
from tempo_analysis.studies.boost.figures import boost_drawings
from tempo_analysis.studies.boost.tables import boost_tables
from tempo_analysis.studies.boost.verdict import boost_sentences

KIND = "tempo-boost"
FORMAT = 1


@dataclass(frozen=True, slots=True, repr=False)
class BoostFindings(Findings, BoostNumbers):
    """The numbers, with their sentences, tables and figures."""

    file = "boost.json"

    @property
    def title(self) -> str:
        """Heading of the page."""
        return f"Boosting parallel tokens: {self.model['name']}"

    def sentences(self) -> list[str]:
        """What was found, in words that follow from the intervals."""
        return boost_sentences(self)

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

    def tables(self) -> tuple[Table, ...]:
        """Every table that has a row."""
        return boost_tables(self)

    def figures(self) -> tuple[Drawing, ...]:
        """Every figure that has something to show."""
        return boost_drawings(self)

    def facts(self) -> Mapping[str, str]:
        """How it was made."""
        model = self.model
        return {
            "model": f"{model['name']}, {model['dtype']}, {str(model['fingerprint'])[:12]}",
            "prompts": f"{len(self.prompts)}, and {len(self.refused)} without an answer",
            "sets": f"{self.n_sets} of two or more members that a step follows",
            **{name.replace("_", " "): f"{value}" for name, value in self.settings.items()},
            "seed": str(self.seed),
            "tokens": self.tokens_hash[:12],
        }

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


_KEPT = ("estimate", "low", "high", "n", "method")
"""Fields of an interval that the document keeps."""


def _row(found: Interval) -> Document:
    return {name: getattr(found, name) for name in _KEPT}
