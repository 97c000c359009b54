"""Curves and head maps of the page of a census, as data."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo.errors import TempoError
from tempo.trace.run import Run
from tempo_analysis.parallel.entropy import CHANCE as EVEN_ENTROPY
from tempo_analysis.parallel.page_charts import Chart, HeadMap, RoleMaps, Series, coded_map
from tempo_analysis.parallel.tables import model_facts
from tempo_analysis.report.document import array_of, number_of, plain
from tempo_analysis.report.packing import base64
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.stats.intervals import Unanswered
from tempo_analysis.studies.heads.result import (
    CENSUS_FILE,
    HeadsDocument,
    RoleHeads,
    further_of,
    label_of,
    read_census,
    roles_of,
    spectrum_of,
)

SPREAD = "middle 80 % of the heads"
_LIMITS = (10, 90)


def census_charts(document: HeadsDocument) -> list[Chart]:
    """Every curve there are data for."""
    found = spectrum_of(document)
    has_entropy = {"normalised", "normalised_without_sink"} <= set(found)
    return [
        *([_entropy(found)] if has_entropy else []),
        *([_activations(document)] if "activations" in document["detail"] else []),
    ]


def role_depths(document: HeadsDocument) -> list[dict[str, Any]]:
    """Where each role lives: those that a head holds by depth, the others behind them."""
    roles = {role.role: role for role in roles_of(document)}
    rows = [
        {
            "role": label_of(role),
            "held": len(roles[role].holders()),
            "centroid": found["centroid"],
            "median": found["median_of_best"],
        }
        for role, found in document["depth"].items()
        if role in roles and roles[role].best_first() and found["centroid"]["estimate"] is not None
    ]
    return sorted(rows, key=lambda row: (row["held"] == 0, row["centroid"]["estimate"]))


def offset_profiles(document: HeadsDocument) -> dict[str, Any] | None:
    """The profile of every head beside that of even rows; None where there is none."""
    found = document["detail"].get("offsets")
    if found is None:
        return None
    arrays = {name: array_of(found[name]) for name in ("profile", "even")}
    n = document["detail"].get("battery", {}).get("sequences")
    facts = {"offsets": arrays["profile"].shape[-1], "n": n}
    return facts | {name: base64(each.astype("<f4").tobytes()) for name, each in arrays.items()}


def _entropy(found: dict[str, tuple[ByHead, ByHead]]) -> Chart:
    titles = {"normalised": "with slot 0", "normalised_without_sink": "without slot 0"}
    panels = [
        _panel(title, _spread(found[name][0]), EVEN_ENTROPY, "even attention")
        for name, title in titles.items()
    ]
    return _chart(
        "entropy_by_depth",
        "Entropy by depth",
        f"Mean over the heads of a layer, and the {SPREAD}, on plain text. The sink alone lowers "
        "it: read the panel without slot 0.",
        axes=("layer", "entropy / ln(visible slots)"),
        panels=panels,
        counted="heads",
    )


def _activations(document: HeadsDocument) -> Chart:
    found = document["detail"]["activations"]
    ratio = array_of(found["largest_over_median"])
    none = [None] * len(ratio)
    series = {
        "name": "largest / median",
        "isNull": False,
        "x": list(range(len(ratio))),
        "estimate": plain(ratio),
        "low": none,
        "high": none,
        "n": [document["detail"].get("battery", {}).get("sequences")] * len(ratio),
    }
    return _chart(
        "massive_activations",
        "Massive activations",
        "Largest over median size of what the stream holds, mean over texts. The largest is most "
        f"often in {_channels(found['channel_of_largest'])}.",
        axes=("layers behind", "largest / median"),
        panels=[_panel("the stream", series, 1.0, "no channel stands out")],
        counted="texts",
        log=True,
    )


def _spread(values: ByHead) -> Series:
    """Mean and limits over the heads of each layer that has data."""
    known = ~np.isnan(values)
    layers = np.flatnonzero(known.any(1))
    rows = [values[layer][known[layer]] for layer in layers]
    limits: Float64[np.ndarray, "layer 2"] = np.array([np.percentile(row, _LIMITS) for row in rows])
    limits = limits.reshape(len(rows), 2)
    return {
        "name": "mean of the heads",
        "isNull": False,
        "x": layers.tolist(),
        "estimate": [float(row.mean()) for row in rows],
        "low": limits[:, 0].tolist(),
        "high": limits[:, 1].tolist(),
        "n": [len(row) for row in rows],
    }


def _channels(channels: list[int]) -> str:
    """`channel 31 (behind 0), 507 (behind 1 to 30)`."""
    return f"channel {', '.join(_runs(channels))}"


def _runs(channels: list[int]) -> Iterator[str]:
    for channel, run in groupby(enumerate(channels), key=lambda pair: pair[1]):
        depths = [depth for depth, _ in run]
        ends = f"{depths[0]}" if len(depths) == 1 else f"{depths[0]} to {depths[-1]}"
        yield f"{channel} (behind {ends})"


def _panel(title: str, series: Series, level: float, name: str) -> dict[str, Any]:
    return {"title": title, "series": [series], "level": level, "levelName": name}


def _chart(
    key: str,
    title: str,
    note: str,
    *,
    axes: tuple[str, str],
    panels: list[dict[str, Any]],
    counted: str,
    log: bool = False,
) -> Chart:
    """`counted` is what each point is a mean of."""
    labels = {"key": key, "title": title, "note": note, "x": axes[0], "y": axes[1]}
    drawn = {"panels": panels, "log": log, "kind": "lines", "arm": None}
    return labels | drawn | {"counted": counted, "spread": SPREAD}


NULL_NAME = "null p99"
_SHARES = ("normalised", "normalised_without_sink", "max_weight", "value_share_of_sink")
_BESIDE = ("chance", "q", "percentile")
_ENDS = ("low", "high", "n")
"""Only the page of a census shows these."""


def census_maps(document: HeadsDocument) -> list[HeadMap]:
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


def run_role_maps(run: Run, axes: Mapping[str, Any]) -> RoleMaps:
    """Roles for the head map of a run, where `heads.json` lies beside its traces.

    A census of another model, or a damaged one, is refused and said so.
    """
    if run.folder is None or not axes or not (run.folder / CENSUS_FILE).exists():
        return RoleMaps()
    try:
        document = read_census(run.folder)
        roles = roles_of(document)
    except TempoError as error:
        return RoleMaps(refusals=[Unanswered("roles of heads", "all arms", str(error))])
    found, own = (facts.get("fingerprint") for facts in (document["model_facts"], model_facts(run)))
    if found != own:
        reason = (
            f"expected a census of the model of this run ({own}) in {CENSUS_FILE}, got one of "
            f"{document['model']} ({found}); make it again with this model"
        )
        return RoleMaps(refusals=[Unanswered("roles of heads", "all arms", reason)])
    return RoleMaps([_run_map(role, axes) for role in roles])


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
