"""Compares the roles of two models and their depths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tempo.errors import TempoError
from tempo_analysis.report.document import plain
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.heads.assignment import RoleScores
from tempo_analysis.studies.heads.depth import RoleDepth, depth_difference
from tempo_analysis.studies.heads.findings import Census

QUANTILES = (0.5, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class RoleInModel:
    """One role in one model.

    Attributes:
        n_assigned: Number of heads with the role.
        n_heads: Number of all heads.
        depth: Of the role.
        population: Quantiles of the score over heads: median, 90 % and maximum.
        chance: Mean chance value over heads.
    """

    n_assigned: int
    n_heads: int
    depth: RoleDepth
    population: tuple[float, ...]
    chance: float


@dataclass(frozen=True, slots=True)
class RoleComparison:
    """One role in two models.

    Attributes:
        role: Its name.
        first: In the first model.
        second: In the second model.
        difference: Centroid of the first minus that of the second, in depths from 0 to 1; limits
            are NaN where there is no interval, with the reason in `method`.
        verdict: The interval in words.
    """

    role: str
    first: RoleInModel
    second: RoleInModel
    difference: Interval
    verdict: str


@dataclass(frozen=True, slots=True)
class CensusComparison:
    """Every role that was scored in both models.

    Attributes:
        first: Name of the first model.
        second: Name of the second model.
        same_sequences: Whether both read the same token ids, so that sequences pair.
        roles: By name.
        left_out: Roles that were scored in one model only.
    """

    first: str
    second: str
    same_sequences: bool
    roles: Mapping[str, RoleComparison]
    left_out: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "first": self.first,
            "second": self.second,
            "same_sequences": self.same_sequences,
            "left_out": list(self.left_out),
            "roles": {role: _row(found) for role, found in self.roles.items()},
        }


def compare_censuses(first: Census, second: Census) -> CensusComparison:
    """Compare two models role by role, each by the same threshold and test."""
    ours, theirs = first.every, second.every
    facts = ("tokenizer_hash",)
    # a missing hash (a tokenizer without one) pairs with nothing
    same = all(first.model[key] and first.model[key] == second.model[key] for key in facts)
    same = same and first.detail["battery"] == second.detail["battery"]
    shared = [role for role in ours if role in theirs]
    return CensusComparison(
        first=str(first.model["name"]),
        second=str(second.model["name"]),
        same_sequences=same,
        roles={
            role: _compared(
                role,
                _side(ours[role], first.depth[role]),
                _side(theirs[role], second.depth[role]),
                same_sequences=same,
            )
            for role in shared
        },
        left_out=tuple(role for role in ours | theirs if role not in shared),
    )


def _side(found: RoleScores, depth: RoleDepth) -> RoleInModel:
    # heads without data (a window without targets) are in no quantile
    known = found.score[~np.isnan(found.score)]
    quantiles = np.quantile(known, QUANTILES).tolist() if len(known) else [np.nan] * 3
    chance = float(np.nanmean(found.chance)) if len(known) else float("nan")
    return RoleInModel(int(found.assigned.sum()), found.score.size, depth, tuple(quantiles), chance)


def _compared(
    role: str, first: RoleInModel, second: RoleInModel, *, same_sequences: bool
) -> RoleComparison:
    try:
        difference = depth_difference(first.depth, second.depth, same_sequences=same_sequences)
    except TempoError:
        # the estimate stays, without limits: roles by weights have a depth but no sequences
        apart = first.depth.centroid.estimate - second.depth.centroid.estimate
        difference = Interval(apart, np.nan, np.nan, 0, "no interval: too few sequences with data")
    return RoleComparison(role, first, second, difference, _verdict(first, second, difference))


def _verdict(first: RoleInModel, second: RoleInModel, difference: Interval) -> str:
    """The interval in words; depths are compared where both models have heads with the role."""
    if not (first.n_assigned and second.n_assigned):
        which = "neither model" if not (first.n_assigned or second.n_assigned) else "one model only"
        return f"held in {which}: depths not compared"
    if np.isnan(difference.low):
        return f"no verdict: {difference.method}"
    if difference.low > 0:
        return f"deeper in the first by {difference.estimate:.2g} of its depth"
    if difference.high < 0:
        return f"earlier in the first by {-difference.estimate:.2g} of its depth"
    return "indistinguishable in depth"


def _row(found: RoleComparison) -> dict[str, Any]:
    return {
        "first": _side_row(found.first),
        "second": _side_row(found.second),
        "difference": plain(found.difference),
        "verdict": found.verdict,
    }


def _side_row(side: RoleInModel) -> dict[str, Any]:
    return {
        "n_assigned": side.n_assigned,
        "n_heads": side.n_heads,
        "centroid": plain(side.depth.centroid),
        "median_of_best": plain(side.depth.median),
        "population": dict(zip(map(str, QUANTILES), plain(side.population), strict=True)),
        "chance": plain(side.chance),
    }
