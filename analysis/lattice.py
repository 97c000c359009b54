"""A picture of one trace: its sets in columns, the likeliest member on top."""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import FancyBboxPatch

from analysis.canvas import FAINT, INK, house_style, new_figure
from tempo.trace import glyphs
from tempo.trace.trace import Trace

COLUMNS_PER_ROW = 10
_FONT = get_font(findfont(FontProperties(family="DejaVu Sans")))
_BOX_HEIGHT, _BOX_WIDTH = 0.72, 0.86


@dataclass(frozen=True, slots=True)
class _Cell:
    column: int
    level: int
    text: str
    probability: float


def token_glyphs(text: str) -> str:
    """A token on one line, as the font can draw it: what it has no glyph for is escaped."""
    return glyphs.token_glyphs(text, drawable=_has_glyph)


def lattice_figure(trace: Trace, *, n_steps: int = 24) -> Figure:
    """Sets in columns, coloured by the probability under which each member was chosen.

    The top path (the first member of every set) is joined by a line. Long traces go on in a further
    row; steps after the first `n_steps` are left out and counted in the title.
    """
    shown = min(trace.n_steps, n_steps)
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
    axes.set(xlim=(-0.55, COLUMNS_PER_ROW - 0.45), ylim=(height - 0.45, -0.55), yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(span)), [f"step {step}" for step in span], fontsize=6, color=FAINT)
    axes.tick_params(length=0, pad=1)
    axes.plot([0, max(len(span) - 1, 0)], [0, 0], color=INK, linewidth=1.2, zorder=1)
    for cell in _cells(trace, span):
        _draw_cell(axes, cell)


def _draw_cell(axes: Axes, cell: _Cell) -> None:
    known = np.isfinite(cell.probability)
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
    bright = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] > 0.45
    text = token_glyphs(cell.text)
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
