"""What was found as HTML for a notebook: offline, no script, styles inline, every text escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from analysis.census_heads import RoleHeads, label_of, roles_of
from analysis.metrics import Metric
from analysis.numerals import DASH, limits, number
from analysis.refusal import Refusal
from tempo.glyphs import line_glyphs

MOST_ROWS = 120
MOST_BEST = 5
_CELL = (
    "padding:2px 8px;text-align:left;vertical-align:top;background:transparent;color:inherit;"
    "border:none;border-bottom:1px solid currentColor"
)
_SCROLL = "overflow-x:auto;max-width:100%;color:inherit;scrollbar-color:currentColor transparent"
_TABLE = "border-collapse:collapse;margin:4px 0;font-size:13px;color:inherit"
_HEADINGS = ("metric", "arm", "estimate (95 %)", "prompts", "chance", "null", "verdict")
_NOTE = (
    "Intervals are over prompts. Chance is even attention, or no effect; the null is the same "
    "number on the greedy runs. A dash is no data, never zero."
)
_CENSUS_HEADINGS = ("role", "heads", "best heads", "chance", "null p99", "threshold")
_CENSUS_NOTE = (
    "A head holds a role if its score is above the threshold, above the 99th percentile of the "
    "null over heads, and above its own control at q &lt; 0.05. Scores stand behind the best "
    "heads, whether they hold the role or not."
)


def results_markup(
    metrics: Sequence[Metric], refusals: Sequence[Refusal], *, n_prompts: int
) -> str:
    """Every number with its interval, beside chance, null and verdict; then what was refused."""
    body = "".join(_row(metric) for metric in metrics[:MOST_ROWS])
    hidden = len(metrics) - MOST_ROWS
    rest = f"<p>{hidden} more numbers are in <code>metrics</code>.</p>" if hidden > 0 else ""
    refused = [f"{one.question}, {one.arm}: {one.reason}" for one in refusals]
    said = f"Results of {n_prompts} prompts. {_NOTE}"
    return _region("Results", said, f"{_table(_HEADINGS, body)}{rest}{_refused(refused)}")


def census_markup(document: Mapping[str, Any]) -> str:
    """Every role of a census with the heads that hold it and the best heads; what was refused.

    Raises:
        CorruptTraceError: The document lacks what a census has.
    """
    body = "".join(_role_row(role) for role in roles_of(document))
    refused = [f"{label_of(role)}: {reason}" for role, reason in document["refused"].items()]
    said = f"Heads of {_shown(str(document['model']))}. {_CENSUS_NOTE}"
    return _region("Heads", said, _table(_CENSUS_HEADINGS, body) + _refused(refused))


def _row(metric: Metric) -> str:
    found = metric.interval
    texts = [metric.name, metric.arm, _estimate(metric), str(found.n)]
    return _cells([*texts, number(metric.chance), number(metric.null), metric.verdict])


def _role_row(role: RoleHeads) -> str:
    best = ", ".join(f"{head} {number(role.score[head])}" for head in role.best_first()[:MOST_BEST])
    beside = [number(role.mean_chance()), number(role.null_p99), number(role.threshold)]
    return _cells([label_of(role.role), str(len(role.holders())), best or DASH, *beside])


def _region(name: str, said: str, inside: str) -> str:
    return (
        f'<div role="region" tabindex="0" aria-label="{name}" style="{_SCROLL}">'
        f"<p>{said}</p>{inside}</div>"
    )


def _table(headings: Sequence[str], body: str) -> str:
    head = "".join(
        f'<th scope="col" style="{_CELL};white-space:nowrap">{name}</th>' for name in headings
    )
    return f'<table style="{_TABLE}"><thead>{_line(head)}</thead><tbody>{body}</tbody></table>'


def _cells(texts: Sequence[str]) -> str:
    cells = (f'<td style="{_CELL}">{_shown(text)}</td>' for text in texts[1:])
    name = f'<th scope="row" style="{_CELL};font-weight:normal">{_shown(texts[0])}</th>'
    return _line(name + "".join(cells))


def _estimate(metric: Metric) -> str:
    """With its limits, or alone where there are too few prompts for an interval."""
    found = metric.interval
    return limits(found) if np.isfinite(found.low) else number(found.estimate)


def _refused(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{_shown(line)}</li>" for line in lines[:MOST_ROWS])
    hidden = len(lines) - MOST_ROWS
    rest = f"<li>and {hidden} more, in <code>refusals</code></li>" if hidden > 0 else ""
    return f"<p>Not answered:</p><ul>{items}{rest}</ul>" if items else ""


def _line(cells: str) -> str:
    return f'<tr style="background:transparent">{cells}</tr>'


def _shown(text: str) -> str:
    return escape(line_glyphs(text))
