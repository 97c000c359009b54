"""A census of attention heads: what every head does, and everything shown and saved of it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo.errors import InputError, OutputError
from tempo.trace.run_folder import RUN_FILE
from tempo.vocabulary import Head
from tempo_analysis.report.document import Document, number, plain
from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.findings import Findings, refuse_other_files
from tempo_analysis.report.page import save_page
from tempo_analysis.report.table import Table
from tempo_analysis.studies.heads.assignment import RoleScores
from tempo_analysis.studies.heads.depth import RoleDepth
from tempo_analysis.studies.heads.figures import census_drawings
from tempo_analysis.studies.heads.page import census_page_text
from tempo_analysis.studies.heads.result import (
    CENSUS_FILE,
    FORMAT,
    KIND,
    HeadsDocument,
    RoleHeads,
    census_markup,
    label_of,
    roles_of,
)
from tempo_analysis.studies.heads.tables import census_facts, census_tables

HEADS_FOLDER = "heads"
AGAINST_FOLDER = "against"


class CensusFindings(Findings):
    """What is shown and saved of a census follows from its document."""

    __slots__ = ()
    file = CENSUS_FILE
    stale_figures = "heads_*"

    @abstractmethod
    def document(self) -> Document:
        """The content of `heads.json`: plain JSON values, `None` where there is no data."""

    @property
    def title(self) -> str:
        """Heading of the page."""
        return f"Heads of {self.document()['model']}"

    def sentences(self) -> list[str]:
        """Who holds each role, and what was not answered."""
        document = self.document()
        refused = document["refused"].items()
        return [
            *map(_sentence, roles_of(document)),
            *(f"not answered: {label_of(role)}: {reason}" for role, reason in refused),
        ]

    def tables(self) -> tuple[Table, ...]:
        """Every table that has a row."""
        return census_tables(self.document())

    def figures(self) -> tuple[Drawing, ...]:
        """Every figure that has something to show."""
        return census_drawings(self.document())

    def facts(self) -> Mapping[str, str]:
        """How it was made."""
        return census_facts(self.document())

    @classmethod
    def check_folder(cls, folder: Path, *, force: bool = False) -> None:
        """As for every study, but a folder that holds a run is taken too.

        Raises:
            OutputError: It holds an earlier census and `force` was not given, or is refused as by
                every study.
        """
        if not (folder / RUN_FILE).exists():
            refuse_other_files(folder, cls.file, force=force)
        elif (folder / cls.file).exists() and not force:
            raise OutputError(
                f"expected a folder without {cls.file}, got one at {folder}; give another --out, "
                "or --force to replace it"
            )

    def write_report(self, folder: Path) -> list[Path]:
        """Write tables, figures and the page; gives the paths, the page first.

        A folder that holds a run has a report of its own, so everything goes into `heads/` in it.
        What a second model was asked goes into `against/`.

        Raises:
            CorruptTraceError: The document lacks what a census has.
            OutputError: The disk refused.
        """
        place = folder / HEADS_FOLDER if (folder / RUN_FILE).exists() else folder
        document = self.document()
        if "against" in document:
            SavedCensus(document["against"]).write_report(place / AGAINST_FOLDER)
        return super().write_report(place)

    def write_page(
        self, folder: Path, tables: Sequence[Table], drawings: Sequence[Drawing]
    ) -> Path:
        """Write `report.html`, in which maps and curves can be pointed at; gives its path."""
        return save_page(census_page_text(self.document(), tables), folder)

    def _repr_html_(self) -> str:
        return census_markup(self.document())


@dataclass(frozen=True, slots=True, repr=False)
class SavedCensus(CensusFindings):
    """A census of which only the document is there: read back, or with a second model in it.

    Attributes:
        content: The document.
    """

    content: HeadsDocument

    def document(self) -> Document:
        """The content of `heads.json`."""
        return dict(self.content)


@dataclass(frozen=True, slots=True, repr=False)
class Census(CensusFindings):
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
    depth: Mapping[str, RoleDepth]
    refused: Mapping[str, str]
    detail: Mapping[str, Any]

    @property
    def every(self) -> dict[str, RoleScores]:
        """The roles and their further versions."""
        return {**self.roles, **self.more}

    def holders(self, role: str) -> list[str]:
        """Labels of the heads that hold a role, such as `L16H0`, best first.

        Raises:
            InputError: The role was not asked, or had no answer; the message says why.
        """
        if role in self.refused:
            raise InputError(f"expected a role with an answer, got {role!r}: {self.refused[role]}")
        if role not in self.every:
            raise InputError(
                f"expected a role of {', '.join(self.every)}, got {role!r}; ask for it in roles=..."
            )
        found = self.every[role]
        return [str(Head(*place)) for place in found.best_first() if found.assigned[place]]

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

    def _heads(self, found: RoleScores) -> list[Document]:
        """Every head, best first."""
        group = int(self.model["queries_per_kv_head"])
        return [
            {
                "head": str(Head(layer, head)),
                "kv_head": head // group,
                "score": plain(found.score[layer, head]),
                "chance": plain(found.chance[layer, head]),
                "null_p99": plain(found.null_p99),
                "assigned": bool(found.assigned[layer, head]),
                "low": plain(found.low[layer, head]),
                "high": plain(found.high[layer, head]),
                "q": plain(found.q[layer, head]),
                "percentile": plain(found.percentile[layer, head]),
                "n": int(found.n[layer, head]),
            }
            for layer, head in found.best_first()
        ]


def _sentence(role: RoleHeads) -> str:
    """Who holds a role, beside what an average head would score."""
    n, best = len(role.holders()), role.best_first()
    if not best:
        return f"{label_of(role.role)}: no head has data"
    held = f"{n} head{'s' * (n != 1)} hold{'s' * (n == 1)} it" if n else "no head holds it"
    score, chance = number(role.score[best[0]]), number(role.mean_chance())
    return f"{label_of(role.role)}: {held}; best is {best[0]} with {score}, chance {chance}"


def _rule(found: RoleScores) -> Document:
    """What a head needed to hold the role."""
    return {
        "unit": found.unit,
        "threshold": found.threshold,
        "null_p99": plain(found.null_p99),
        "n_assigned": int(found.assigned.sum()),
    }


def _depth(found: RoleDepth) -> Document:
    return {
        "centroid": plain(found.centroid),
        "median_of_best": plain(found.median),
        "best": [str(Head(layer, head)) for layer, head in found.heads],
        "n_assigned": found.n_assigned,
    }
