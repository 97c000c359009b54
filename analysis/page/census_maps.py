"""Roles of heads as layer x head maps, for the page of a census and for that of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from analysis.census.heads import (
    ByHead,
    Document,
    RoleHeads,
    further_of,
    label_of,
    number_of,
    roles_of,
    spectrum_of,
)
from analysis.census.result import CENSUS_FILE, read_census
from tempo.errors import TempoError
from tempo.trace.run import Run
from tempo_analysis.parallel.page_charts import HeadMap, coded_map
from tempo_analysis.parallel.tables import model_facts
from tempo_analysis.stats.intervals import Unanswered

NULL_NAME = "null p99"
_SHARES = ("normalised", "normalised_without_sink", "max_weight", "value_share_of_sink")
_BESIDE = ("chance", "q", "percentile")
_ENDS = ("low", "high", "n")
"""Only the page of a census shows these."""


def census_maps(document: Document) -> list[HeadMap]:
    """Every map of a census: roles, further roles, how rows are spread, other measures."""
    owner = {"owner": str(document["model"])}
    roles = [
        _role_map(role, role.column, label_of(role.role), _ENDS)
        | {"group": "further roles" if role.is_further else "roles"}
        for role in roles_of(document)
    ]
    spread = [
        coded_map(
            f"spectrum_{name}",
            label_of(name),
            value,
            scale="share" if name in _SHARES else "positions",
            **({} if np.isnan(chance).all() else {"chance": chance}),
        )
        | {"group": "spread of the rows"}
        for name, (value, chance) in spectrum_of(document).items()
    ]
    rest = [
        coded_map(f"other_{name}", name, value, scale="score") | {"group": "other measures"}
        for name, value in further_of(document).items()
    ]
    return [one | owner for one in (*roles, *spread, *rest)]


def run_role_maps(run: Run, axes: Mapping[str, Any]) -> tuple[list[HeadMap], list[Unanswered]]:
    """Roles for the head map of a run, where `heads.json` lies beside its traces.

    A census of another model, or a damaged one, is refused and said so.
    """
    if run.folder is None or not axes or not (run.folder / CENSUS_FILE).exists():
        return [], []
    try:
        document = read_census(run.folder)
        roles = roles_of(document)
    except TempoError as error:
        return [], [Unanswered("roles of heads", "all arms", str(error))]
    found, own = (facts.get("fingerprint") for facts in (document["model_facts"], model_facts(run)))
    if found != own:
        reason = (
            f"expected a census of the model of this run ({own}) in {CENSUS_FILE}, got one of "
            f"{document['model']} ({found}); make it again with this model"
        )
        return [], [Unanswered("roles of heads", "all arms", reason)]
    return [_run_map(role, axes) for role in roles], []


def _run_map(role: RoleHeads, axes: Mapping[str, Sequence[int]]) -> HeadMap:
    column = {name: _at(values, axes) for name, values in role.column.items()}
    assigned = _at(role.assigned.astype(np.float64), axes)
    label = f"role: {label_of(role.role)}"
    return _role_map(role, column | {"assigned": assigned}, label) | {"owner": CENSUS_FILE}


def _role_map(
    role: RoleHeads, column: Mapping[str, ByHead], label: str, more: Sequence[str] = ()
) -> HeadMap:
    null = np.full_like(column["score"], role.null_p99)
    assigned = column.get("assigned", role.assigned.astype(np.float64))
    beside = {name: column[name] for name in (*_BESIDE, *more)}
    beside |= {"null": null, "assigned": assigned}
    coded = coded_map(f"role_{role.role}", label, column["score"], scale="score", **beside)
    facts = {"nullName": NULL_NAME, "unit": role.unit, "threshold": _known(role.threshold)}
    return coded | facts


def _at(
    values: ByHead, axes: Mapping[str, Sequence[int]]
) -> Float64[np.ndarray, "shown_layer shown_head"]:
    """The layers and heads of a map; NaN where the census has no such head."""
    layers, heads = (np.array(axes[name], np.int64) for name in ("layers", "heads"))
    room = (max(int(layers.max()) + 1, len(values)), max(int(heads.max()) + 1, values.shape[1]))
    whole = np.full(room, np.nan)
    whole[: values.shape[0], : values.shape[1]] = values
    return whole[np.ix_(layers, heads)]


def _known(value: float) -> float | None:
    return None if np.isnan(number_of(value)) else value
