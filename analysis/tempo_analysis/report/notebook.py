"""Results as HTML for a notebook: offline, no scripts, inline styles, every text escaped."""

from collections.abc import Sequence
from html import escape

from tempo.trace.glyphs import line_glyphs

# A notebook file keeps its output, so long tables are cut; the object has all rows.
MOST_ROWS = 120
# Colours are those around it (inherit, currentColor), so dark notebooks stay readable.
_CELL = (
    "padding:2px 8px;text-align:left;vertical-align:top;background:transparent;color:inherit;"
    "border:none;border-bottom:1px solid currentColor"
)
_SCROLL = "overflow-x:auto;max-width:100%;color:inherit;scrollbar-color:currentColor transparent"
_TABLE = "border-collapse:collapse;margin:4px 0;font-size:13px;color:inherit"


def region_markup(name: str, said: str, inside: str) -> str:
    """A labelled region with a sentence and its content, which is markup."""
    return (
        f'<div role="region" tabindex="0" aria-label="{name}" style="{_SCROLL}">'
        f"<p>{said}</p>{inside}</div>"
    )


def table_markup(headings: Sequence[str], body: str) -> str:
    """A table of rows that are markup already."""
    # Headings do not wrap: a narrow notebook scrolls (see `_SCROLL`) and numbers stay on one line.
    head = "".join(
        f'<th scope="col" style="{_CELL};white-space:nowrap">{name}</th>' for name in headings
    )
    return f'<table style="{_TABLE}"><thead>{_line(head)}</thead><tbody>{body}</tbody></table>'


def cells_markup(texts: Sequence[str]) -> str:
    """A row of a table; its first cell names it."""
    # `scope="row"`: a screen reader says the name of the row with each of its cells. Notebooks set
    # headings in bold; a name is to be read like the other cells.
    cells = (f'<td style="{_CELL}">{shown_markup(text)}</td>' for text in texts[1:])
    name = f'<th scope="row" style="{_CELL};font-weight:normal">{shown_markup(texts[0])}</th>'
    return _line(name + "".join(cells))


def refused_markup(lines: Sequence[str]) -> str:
    """List of the refused questions; empty without any."""
    items = "".join(f"<li>{shown_markup(line)}</li>" for line in lines[:MOST_ROWS])
    hidden = len(lines) - MOST_ROWS
    rest = f"<li>and {hidden} more, in <code>refusals</code></li>" if hidden > 0 else ""
    return f"<p>Not answered:</p><ul>{items}{rest}</ul>" if items else ""


def _line(cells: str) -> str:
    return f'<tr style="background:transparent">{cells}</tr>'


def shown_markup(text: str) -> str:
    """A text on one line, escaped."""
    # Line breaks become visible marks first, so that a token cannot break the row; then markup.
    return escape(line_glyphs(text))
