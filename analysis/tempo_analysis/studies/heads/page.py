"""The page of a census of heads: maps, depths, curves and tables in one offline file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tempo_analysis.report.csv import csv_text
from tempo_analysis.report.document import plain
from tempo_analysis.report.page import HERE, json_inside, page_text
from tempo_analysis.report.table import Table
from tempo_analysis.studies.heads.page_charts import (
    census_charts,
    census_maps,
    offset_profiles,
    role_depths,
)
from tempo_analysis.studies.heads.result import (
    HeadsDocument,
    label_of,
    losses_of,
    roles_of,
    shape_of,
)
from tempo_analysis.studies.heads.tables import census_facts

_OWN = Path(__file__).parent
CENSUS_SCRIPTS = (
    *(HERE / "decode.js", HERE / "draw.js", HERE / "theme.js", HERE / "save.js"),
    *(HERE / "headmap.js", HERE / "charts.js"),
    *(_OWN / "census_depth.js", _OWN / "census_head.js", _OWN / "census.js"),
)
OPEN_TABLES = ("roles", "comparison")


def census_page_text(document: HeadsDocument, tables: Sequence[Table]) -> str:
    """The page as text."""
    roles = roles_of(document)
    layers, heads = shape_of(document)
    held = np.any([role.assigned for role in roles], axis=0) if roles else np.zeros(1, bool)
    return page_text(
        _OWN / "census.html.j2",
        scripts=CENSUS_SCRIPTS,
        styles=[HERE / "page.css", _OWN / "census.css"],
        title=str(document["model"]),
        census=json_inside(_page_document(document, tables)),
        n_layers=layers,
        n_heads=heads,
        n_roles=len(roles),
        n_held=int(held.sum()),
        refused={label_of(role): reason for role, reason in document["refused"].items()},
        tables=[table for table in tables if table.name not in ("facts", "refusals")],
        opened=OPEN_TABLES,
        facts=census_facts(document),
    )


def _page_document(document: HeadsDocument, tables: Sequence[Table]) -> dict[str, Any]:
    layers, heads = shape_of(document)
    model = str(document["model"])
    effects = document["detail"].get("effects", {})
    return {
        "model": model,
        "queriesPerKvHead": int(document["model_facts"].get("queries_per_kv_head", 1)),
        "axes": {"layers": list(range(layers)), "heads": list(range(heads))},
        "arms": [],
        "maps": {model: census_maps(document)},
        "depths": role_depths(document),
        "charts": census_charts(document),
        "profiles": offset_profiles(document),
        "losses": {str(head): plain(loss) for head, loss in losses_of(document).items()},
        "silencedBy": {name: effects.get(name) for name in ("replacement", "texts", "tokens")},
        "tables": {table.name: csv_text(table) for table in tables},
    }
