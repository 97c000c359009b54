"""A census as HTML for a notebook."""

from collections.abc import Mapping
from typing import Any

from analysis.census.heads import RoleHeads, label_of, roles_of
from tempo_analysis.report.notebook import (
    cells_markup,
    refused_markup,
    region_markup,
    shown_markup,
    table_markup,
)
from tempo_analysis.report.numbers import DASH, number

MOST_BEST = 5
_HEADINGS = ("role", "heads", "best heads", "chance", "null p99", "threshold")
_NOTE = (
    "A head holds a role if its score is above the threshold, above the 99th percentile of the "
    "null over heads, and above its own control at q &lt; 0.05. Scores stand behind the best "
    "heads, whether they hold the role or not."
)


def census_markup(document: Mapping[str, Any]) -> str:
    """Every role of a census with the heads that hold it and the best heads; what was refused.

    Raises:
        CorruptTraceError: The document lacks what a census has.
    """
    body = "".join(_role_row(role) for role in roles_of(document))
    refused = [f"{label_of(role)}: {reason}" for role, reason in document["refused"].items()]
    said = f"Heads of {shown_markup(str(document['model']))}. {_NOTE}"
    return region_markup("Heads", said, table_markup(_HEADINGS, body) + refused_markup(refused))


def _role_row(role: RoleHeads) -> str:
    best = ", ".join(f"{head} {number(role.score[head])}" for head in role.best_first()[:MOST_BEST])
    beside = [number(role.mean_chance()), number(role.null_p99), number(role.threshold)]
    return cells_markup([label_of(role.role), str(len(role.holders())), best or DASH, *beside])
