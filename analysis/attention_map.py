"""A picture of what one head does: each query of a set against every slot, siblings outlined."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.canvas import COLOURS, FAINT, INK, NO_DATA, house_style, new_figure, plain_text
from analysis.lattice import token_glyphs
from tempo.errors import InputError
from tempo.trace.trace import Trace
from tempo.vocabulary import Head

_GAMMA = 0.5
"""Colour follows the square root of a weight, or the sink alone would have one."""
_INCHES_PER_ROW = 0.17


def attention_figure(traces: Mapping[str, Trace], *, head: Head) -> Figure:
    """The rows of one head, a panel for each trace by title.

    Rows are the slots of the sets in the order written, columns all slots. A cell is grey where
    the query may not see the slot, empty where the slot was not yet written, and outlined where
    the two are siblings.

    Raises:
        InputError: No trace, one without a set, or a head that was not captured.
        LevelError: A trace was reduced to group masses.
    """
    if not traces:
        raise InputError("expected at least one trace, got none; give a title and a trace")
    shares = {title: head_rows(trace, head=head) for title, trace in traces.items()}
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


def head_rows(trace: Trace, *, head: Head) -> Float32[np.ndarray, "query slot"]:
    """What every slot of a set pays to every slot; NaN where it may not see it.

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
    """Whether each slot is another member of the set of each query, for the rows of `head_rows`."""
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
    return np.pad(seen, ((0, 0), (0, unwritten)), constant_values=np.nan)


def _draw_rows(axes: Axes, trace: Trace, rows: Float32[np.ndarray, "query slot"]) -> None:
    step = trace.slots.step
    queries = np.flatnonzero(step > 0)
    unwritten = step[None, :] > step[queries, None]
    colours = colormaps["viridis"].with_extremes(bad=NO_DATA)
    axes.imshow(rows, cmap=colours, norm=PowerNorm(_GAMMA, 0, 1), aspect="auto")
    blank = np.ma.masked_where(~unwritten, np.ones(rows.shape))
    axes.imshow(blank, cmap="binary", vmin=1, vmax=2, aspect="auto")
    for row, column in np.argwhere(siblings(trace)).tolist():
        box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.1)
        box.set(edgecolor=COLOURS[1], clip_on=False)
        axes.add_patch(box)
    names = [plain_text(token_glyphs(trace.token_text(slot))) for slot in range(len(step))]
    axes.set_yticks(range(len(queries)), [names[slot] for slot in queries], fontsize=5, color=INK)
    axes.set_xticks(range(len(names)), names, fontsize=5, rotation=90, color=INK)
    axes.set_xlabel("slot", fontsize=6, color=FAINT)
    axes.set_ylabel("query", fontsize=6, color=FAINT)
    axes.tick_params(length=0, pad=1)
