"""Pictures of one trace: its sets in columns, and what one head attends to."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import FancyBboxPatch, Rectangle

from tempo.errors import InputError
from tempo.trace import glyphs
from tempo.trace.trace import Trace
from tempo.vocabulary import Head, HeadName, head_of
from tempo_analysis.report.figure_style import (
    COLOURS,
    FAINT,
    INK,
    NO_DATA,
    house_style,
    new_figure,
    plain_text,
)

COLUMNS_PER_ROW = 10
# The font that is drawn with, asked for its glyphs: a missing one would be an empty box and a
# warning.
_FONT = get_font(findfont(FontProperties(family="DejaVu Sans")))
_BOX_HEIGHT, _BOX_WIDTH = 0.72, 0.86


@dataclass(frozen=True, slots=True)
class _Cell:
    column: int
    level: int
    text: str
    probability: float


def drawable_glyphs(text: str) -> str:
    """A token on one line; characters without a glyph in the font are escaped."""
    return glyphs.token_glyphs(text, drawable=_has_glyph)


def lattice_figure(trace: Trace, *, n_steps: int = 24) -> Figure:
    """Sets in columns, coloured by the probability under which each member was chosen.

    The top path (the first member of every set) is joined by a line. Long traces go on in a further
    row; steps after the first `n_steps` are left out and counted in the title.
    """
    shown = min(trace.n_steps, n_steps)
    # max(..., 1): a trace without steps still gets one, empty, row.
    starts = range(1, max(shown, 1) + 1, COLUMNS_PER_ROW)
    spans = [range(start, min(start + COLUMNS_PER_ROW, shown + 1)) for start in starts]
    heights = [max((len(trace.members(step)) for step in span), default=1) for span in spans]
    with house_style():
        figure = new_figure(0.9 + 0.5 * len(heights) + 0.24 * sum(heights))
        panels = figure.subplots(len(spans), 1, squeeze=False, height_ratios=heights)
        for axes, span, height in zip(panels[:, 0], spans, heights, strict=True):
            _draw_row(axes, trace, span, height)
        _draw_key(figure, panels[:, 0].tolist())
        figure.suptitle(_title(trace, shown), fontsize=7, parse_math=False, x=0.02, ha="left")
    return figure


def _has_glyph(character: str) -> bool:
    return not glyphs.is_mark(character) and bool(_FONT.get_char_index(ord(character)))


def _title(trace: Trace, shown: int) -> str:
    prompt = glyphs.line_end(trace.header.prompt, longest=71, drawable=_has_glyph)
    left_out = trace.n_steps - shown
    rest = f"; {left_out} later steps left out" if left_out else ""
    return f"{trace.header.prompt_id}, {trace.header.arm}{rest}\n{prompt}"


def _cells(trace: Trace, span: range) -> list[_Cell]:
    return [
        _Cell(column, level, trace.token_text(int(slot)), float(trace.slots.probability[slot]))
        for column, step in enumerate(span)
        for level, slot in enumerate(trace.members(step))
    ]


def _draw_row(axes: Axes, trace: Trace, span: range, height: int) -> None:
    # The y axis is turned round, so that the top-ranked member is on top; the same x range in all
    # rows keeps boxes of a short last row as wide as the others.
    axes.set(xlim=(-0.55, COLUMNS_PER_ROW - 0.45), ylim=(height - 0.45, -0.55), yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(span)), [f"step {step}" for step in span], fontsize=6, color=FAINT)
    axes.tick_params(length=0, pad=1)
    axes.plot([0, max(len(span) - 1, 0)], [0, 0], color=INK, linewidth=1.2, zorder=1)
    for cell in _cells(trace, span):
        _draw_cell(axes, cell)


def _draw_cell(axes: Axes, cell: _Cell) -> None:
    known = np.isfinite(cell.probability)
    # Grey where no probability was recorded (NaN).
    colour = colormaps["viridis"](cell.probability) if known else (0.8, 0.8, 0.8, 1.0)
    box = FancyBboxPatch(
        (cell.column - _BOX_WIDTH / 2, cell.level - _BOX_HEIGHT / 2),
        _BOX_WIDTH,
        _BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=colour,
        edgecolor=INK if cell.level == 0 else "none",
        linewidth=0.8,
        zorder=2,
    )
    axes.add_patch(box)
    # Relative luminance (Rec. 709): black text on bright boxes, white on dark ones.
    bright = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] > 0.45
    text = drawable_glyphs(cell.text)
    axes.text(
        cell.column,
        cell.level,
        text,
        ha="center",
        va="center",
        fontsize=7 if len(text) <= 8 else 5,
        color="black" if bright else "white",
        parse_math=False,
        zorder=3,
    )


def _draw_key(figure: Figure, panels: list[Axes]) -> None:
    scale = ScalarMappable(Normalize(0, 1), "viridis")
    bar = figure.colorbar(scale, ax=panels, location="right", fraction=0.03, pad=0.01)
    bar.set_label("probability", fontsize=6)
    bar.ax.tick_params(labelsize=6)


_GAMMA = 0.5
"""Colour follows the square root of a weight; on a linear scale only the sink would be visible."""
_INCHES_PER_ROW = 0.17


def attention_figure(traces: Mapping[str, Trace], *, head: HeadName) -> Figure:
    """The rows of one head, a panel for each trace by title.

    Rows are the slots of the sets in the order written, columns all slots. A cell is grey where
    the query may not see the slot, empty where the slot was not yet written, and outlined where
    the two are siblings.

    Args:
        traces: Title to trace, such as a trace and its twin.
        head: A label such as `"L3H5"`, in the numbers of the model.

    Returns:
        A matplotlib figure, which a notebook shows and `savefig` writes.

    Raises:
        InputError: No trace, one without a set, or a head that was not captured.
        LevelError: A trace was reduced to group masses.

    Example:
        >>> tempo.attention_figure({"isolated": trace, "visible": twin}, head="L3H5")
    """
    head = head_of(head)
    if not traces:
        raise InputError("expected at least one trace, got none; give a title and a trace")
    shares = {title: rows_of_head(trace, head=head) for title, trace in traces.items()}
    height = 0.9 + max(len(rows) for rows in shares.values()) * _INCHES_PER_ROW
    with house_style():
        figure = new_figure(height)
        panels = figure.subplots(1, len(traces), squeeze=False)[0]
        for axes, (title, trace) in zip(panels, traces.items(), strict=True):
            _draw_rows(axes, trace, shares[title])
            axes.set_title(plain_text(title))
        bar = figure.colorbar(panels[0].images[0], ax=list(panels), fraction=0.03, pad=0.01)
        bar.set_label(f"attention of {head}", fontsize=6)
        bar.ax.tick_params(labelsize=6)
    return figure


def rows_of_head(trace: Trace, *, head: Head) -> Float32[np.ndarray, "query slot"]:
    """Attention of every slot of a set to every slot; NaN where it is not visible.

    Raises:
        InputError: The trace has no set, or does not hold this head.
        LevelError: The trace was reduced to group masses.
    """
    if head.layer not in trace.layers or head.head not in trace.heads:
        raise InputError(
            f"expected a head of layers {trace.layers} and heads {trace.heads}, got {head}; "
            "capture it or choose another"
        )
    if not trace.n_steps:
        raise InputError(f"expected a trace with sets, got none in {trace.header.prompt_id}")
    layer, place = trace.layers.index(head.layer), trace.heads.index(head.head)
    return np.concatenate([_step_rows(trace, step, layer, place) for step in _steps(trace)])


def siblings(trace: Trace) -> Bool[np.ndarray, "query slot"]:
    """Whether each slot is a sibling of each query, for the rows of `rows_of_head`."""
    step = trace.slots.step
    queries = np.flatnonzero(step > 0)
    same_set = step[queries, None] == step[None, :]
    return same_set & (queries[:, None] != np.arange(len(step)))


def _steps(trace: Trace) -> range:
    return range(1, trace.n_steps + 1)


def _step_rows(trace: Trace, step: int, layer: int, head: int) -> Float32[np.ndarray, "query slot"]:
    weights, visible = trace.attention(step)[layer, head], trace.visible(step)[layer]
    seen = np.where(visible, weights, np.float32(np.nan))
    unwritten = len(trace.slots) - seen.shape[1]
    # Slots of later steps do not exist yet for these queries: NaN, so all steps stack.
    return np.pad(seen, ((0, 0), (0, unwritten)), constant_values=np.nan)


def _draw_rows(axes: Axes, trace: Trace, rows: Float32[np.ndarray, "query slot"]) -> None:
    step = trace.slots.step
    queries = np.flatnonzero(step > 0)
    # Two kinds of NaN: not visible (grey) and not yet written (blank). Only the table tells them
    # apart.
    unwritten = step[None, :] > step[queries, None]
    colours = colormaps["viridis"].with_extremes(bad=NO_DATA)
    axes.imshow(rows, cmap=colours, norm=PowerNorm(_GAMMA, 0, 1), aspect="auto")
    # Value 1 of a map from 1 to 2 is its first colour, white, drawn over the grey.
    blank = np.ma.masked_where(~unwritten, np.ones(rows.shape))
    axes.imshow(blank, cmap="binary", vmin=1, vmax=2, aspect="auto")
    for row, column in np.argwhere(siblings(trace)).tolist():
        box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.1)
        box.set(edgecolor=COLOURS[1], clip_on=False)
        axes.add_patch(box)
    names = [plain_text(drawable_glyphs(trace.token_text(slot))) for slot in range(len(step))]
    axes.set_yticks(range(len(queries)), [names[slot] for slot in queries], fontsize=5, color=INK)
    axes.set_xticks(range(len(names)), names, fontsize=5, rotation=90, color=INK)
    axes.set_xlabel("slot", fontsize=6, color=FAINT)
    axes.set_ylabel("query", fontsize=6, color=FAINT)
    axes.tick_params(length=0, pad=1)
