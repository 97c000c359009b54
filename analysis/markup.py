"""Results as HTML for a notebook: offline, no script, styles inline, every text escaped."""

from collections.abc import Sequence
from html import escape

import numpy as np

from analysis.metrics import Metric
from analysis.numerals import limits, number
from analysis.refusal import Refusal
from tempo.glyphs import line_glyphs

MOST_ROWS = 120
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


def results_markup(
    metrics: Sequence[Metric], refusals: Sequence[Refusal], *, n_prompts: int
) -> str:
    """Every number with its interval, beside chance, null and verdict; then what was refused."""
    head = "".join(
        f'<th scope="col" style="{_CELL};white-space:nowrap">{name}</th>' for name in _HEADINGS
    )
    body = "".join(_row(metric) for metric in metrics[:MOST_ROWS])
    hidden = len(metrics) - MOST_ROWS
    rest = f"<p>{hidden} more numbers are in <code>metrics</code>.</p>" if hidden > 0 else ""
    table = f'<table style="{_TABLE}"><thead>{_line(head)}</thead><tbody>{body}</tbody></table>'
    return (
        f'<div role="region" tabindex="0" aria-label="Results" style="{_SCROLL}">'
        f"<p>Results of {n_prompts} prompts. {_NOTE}</p>"
        f"{table}{rest}{_refused(refusals)}</div>"
    )


def _row(metric: Metric) -> str:
    found = metric.interval
    texts = [metric.name, metric.arm, _estimate(metric), str(found.n)]
    texts += [number(metric.chance), number(metric.null), metric.verdict]
    cells = (f'<td style="{_CELL}">{_shown(text)}</td>' for text in texts[1:])
    name = f'<th scope="row" style="{_CELL};font-weight:normal">{_shown(texts[0])}</th>'
    return _line(name + "".join(cells))


def _estimate(metric: Metric) -> str:
    """With its limits, or alone where there are too few prompts for an interval."""
    found = metric.interval
    return limits(found) if np.isfinite(found.low) else number(found.estimate)


def _refused(refusals: Sequence[Refusal]) -> str:
    items = "".join(
        f"<li>{_shown(f'{one.question}, {one.arm}: {one.reason}')}</li>"
        for one in refusals[:MOST_ROWS]
    )
    hidden = len(refusals) - MOST_ROWS
    rest = f"<li>and {hidden} more, in <code>refusals</code></li>" if hidden > 0 else ""
    return f"<p>Not answered:</p><ul>{items}{rest}</ul>" if items else ""


def _line(cells: str) -> str:
    return f'<tr style="background:transparent">{cells}</tr>'


def _shown(text: str) -> str:
    return escape(line_glyphs(text))
