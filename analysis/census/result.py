"""A census of attention heads: every role of every head, as one document."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.roles.assignment import RoleScores
from analysis.roles.depth import Depth
from tempo.trace.store import disk_errors, read_json
from tempo.vocabulary import Head
from tempo_analysis.parallel.results import plain
from tempo_analysis.report.files import write_atomic

FORMAT = 1
KIND = "tempo-heads"
CENSUS_FILE = "heads.json"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Census:
    """What the heads of one model do.

    Attributes:
        model: What identifies the model, as in a trace.
        roles: Scores of every head, in the order of the census.
        more: Further versions of roles, listed apart.
        depth: Where each role lives.
        refused: Role, or what else was asked, to the reason why it has no answer.
        detail: Everything else, by name, as plain values: what was read, spread of the rows,
            offset profile, sinks, weights, effects of silencing heads.
    """

    model: Mapping[str, Any]
    roles: Mapping[str, RoleScores]
    more: Mapping[str, RoleScores]
    depth: Mapping[str, Depth]
    refused: Mapping[str, str]
    detail: Mapping[str, Any]

    @property
    def every(self) -> dict[str, RoleScores]:
        """The roles and their further versions."""
        return {**self.roles, **self.more}

    def document(self) -> Document:
        """The content of `heads.json`: plain JSON values, `None` where there is no data."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "model": self.model["name"],
            "roles": {role: self._heads(found) for role, found in self.roles.items()},
            "more_roles": {role: self._heads(found) for role, found in self.more.items()},
            "rules": {role: _rule(found) for role, found in self.every.items()},
            "refused": dict(self.refused),
            "depth": {role: _depth(found) for role, found in self.depth.items()},
            "model_facts": plain(dict(self.model)),
            "detail": plain(dict(self.detail)),
        }

    def json(self) -> str:
        """The document as text, the same for the same model and options."""
        return json_text(self.document())

    def _heads(self, found: RoleScores) -> list[Document]:
        """Every head, best first."""
        group = int(self.model["queries_per_kv_head"])
        return [
            {
                "head": str(Head(layer, head)),
                "kv_head": head // group,
                "score": _number(found.score[layer, head]),
                "chance": _number(found.chance[layer, head]),
                "null_p99": _number(found.null_p99),
                "assigned": bool(found.assigned[layer, head]),
                "low": _number(found.low[layer, head]),
                "high": _number(found.high[layer, head]),
                "q": _number(found.q[layer, head]),
                "percentile": _number(found.percentile[layer, head]),
                "n": int(found.n[layer, head]),
            }
            for layer, head in found.best_first()
        ]

    def _repr_html_(self) -> str:
        from analysis.census.markup import census_markup

        return census_markup(self.document())


def write_census(document: Document, folder: Path) -> Path:
    """Write `heads.json`, whole or not at all; gives its path.

    Raises:
        OutputError: The disk refused.
    """
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / CENSUS_FILE, json_text(document))
    return folder / CENSUS_FILE


def json_text(document: Document) -> str:
    """A document as it lies on disk."""
    return json.dumps(document, allow_nan=False, indent=1) + "\n"


def read_census(path: Path) -> Document:
    """The document of a census, from its file or the folder that holds it.

    Raises:
        CorruptTraceError: There is none, or a damaged one.
    """
    place = Path(path)
    file = place / CENSUS_FILE if place.is_dir() else place
    return read_json(file, kind=KIND, format_number=FORMAT)


def _rule(found: RoleScores) -> Document:
    """What a head needed to hold the role."""
    return {
        "unit": found.unit,
        "threshold": found.threshold,
        "null_p99": _number(found.null_p99),
        "n_assigned": int(found.assigned.sum()),
    }


def _depth(found: Depth) -> Document:
    return {
        "centroid": plain(found.centroid),
        "median_of_best": plain(found.median),
        "best": [str(Head(layer, head)) for layer, head in found.heads],
        "n_assigned": found.n_assigned,
    }


def _number(value: float | np.floating[Any]) -> float | None:
    return plain(float(value))
