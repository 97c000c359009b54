"""Curves of the page of a census as data: depth of roles, entropy, activations, offsets."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float64

from analysis.census.heads import ByHead, Document, array_of, label_of, roles_of, spectrum_of
from tempo_analysis.parallel.entropy import CHANCE as EVEN_ENTROPY
from tempo_analysis.parallel.page_charts import Chart, Series
from tempo_analysis.parallel.results import plain
from tempo_analysis.report.packing import base64

SPREAD = "middle 80 % of the heads"
_LIMITS = (10, 90)


def census_charts(document: Document) -> list[Chart]:
    """Every curve there are data for."""
    found = spectrum_of(document)
    has_entropy = {"normalised", "normalised_without_sink"} <= set(found)
    return [
        *([_entropy(found)] if has_entropy else []),
        *([_activations(document)] if "activations" in document["detail"] else []),
    ]


def role_depths(document: Document) -> list[dict[str, Any]]:
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


def offset_profiles(document: Document) -> dict[str, Any] | None:
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


def _activations(document: Document) -> Chart:
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
