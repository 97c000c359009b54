"""Figures of where heads look from t; nothing is computed here but where the ink goes."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.ablation.offset_tables import bin_names
from analysis.ablation.offsets import Difference, Distribution, OffsetFindings
from analysis.ablation.passes import Comparison
from tempo.vocabulary import Head
from tempo_analysis.report.figure_style import (
    COLOURS,
    FAINT,
    INK,
    house_style,
    new_figure,
    plain_text,
)
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE

MOST_PANELS = 8
"""Heads in one figure: the named ones, then the most changed."""

_N_COLUMNS = 2
_PANEL_INCHES = 1.6
_SHIFT = 0.13
_EVERY = 5


def panel_heads(
    found: OffsetFindings, comparison: Comparison, named: Sequence[Head]
) -> tuple[Head, ...]:
    """The named heads, then those that the comparison changes most."""
    changed = [one.head for one in found.changes if one.comparison == comparison]
    return tuple(dict.fromkeys([*named, *changed]))[:MOST_PANELS]


def distribution_figure(
    found: OffsetFindings, comparison: Comparison, heads: Sequence[Head]
) -> Figure:
    """Each head's row at t under reference and changed; mean and one sd, one scale for all."""
    own = {(one.head, one.condition): one for one in found.distributions}

    def draw(axes: Axes, head: Head) -> None:
        axes.plot(_x(len(found.even)), found.even, color=FAINT, linestyle=":", label="even row")
        for place, name in enumerate((comparison.reference, comparison.changed)):
            _draw_distribution(axes, own[head, name], place)

    means = [_kept(own[head, comparison.reference]) for head in heads]
    figure = _panels(heads, draw, means, "attention of t")
    for axes in figure.axes:
        axes.set_ylim(bottom=0.0)
    return figure


def difference_figure(
    found: OffsetFindings, comparison: Comparison, heads: Sequence[Head]
) -> Figure:
    """Each head's paired differences with their band, one scale for all."""
    own = {one.head: one for one in found.differences if one.comparison == comparison}

    def draw(axes: Axes, head: Head) -> None:
        axes.axhline(0.0, color=FAINT, linestyle=":", label="unchanged")
        _draw_difference(axes, own[head])

    curves = [own[head].share.curve for head in heads]
    means = [np.where(_enough(curve.n), curve.estimate, np.nan) for curve in curves]
    return _panels(heads, draw, means, "changed less reference")


def _panels(
    heads: Sequence[Head],
    draw: Callable[[Axes, Head], None],
    means: Sequence[Float64[np.ndarray, " bin"]],
    unit: str,
) -> Figure:
    """A panel for each head, as wide as the longest prompt reaches."""
    n_rows = -(-len(heads) // _N_COLUMNS)
    with house_style():
        figure = new_figure(0.6 + _PANEL_INCHES * n_rows)
        panels = figure.subplots(n_rows, _N_COLUMNS, squeeze=False, sharex=True, sharey=True)
        for axes, head in zip(panels.flat, heads, strict=False):
            draw(axes, head)
            axes.set_title(str(head))
            _name_bins(axes, len(means[0]), last=_last(means))
            axes.tick_params(labelbottom=True)
        for axes in panels.flat[len(heads) :]:
            axes.set_visible(False)
        figure.supxlabel("tokens back from t", fontsize=8)
        figure.supylabel(unit, fontsize=8)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def _kept(one: Distribution) -> Float64[np.ndarray, " bin"]:
    return np.where(_enough(one.n), one.mean, np.nan)


def _draw_distribution(axes: Axes, one: Distribution, place: int) -> None:
    kept = _enough(one.n)
    x, mean = (_x(len(one.mean)) + (2 * place - 1) * _SHIFT)[kept], one.mean[kept]
    sd = np.nan_to_num(one.sd[kept])
    axes.errorbar(
        x,
        mean,
        yerr=(np.minimum(sd, mean), np.minimum(sd, 1 - mean)),
        fmt="o" if place else "s",
        markersize=2.5,
        markerfacecolor=COLOURS[1] if place else "white",
        color=COLOURS[1] if place else INK,
        linewidth=0.7,
        label=plain_text(one.condition),
    )


def _draw_difference(axes: Axes, one: Difference) -> None:
    curve = one.share.curve
    kept = _enough(curve.n)
    x = _x(len(curve.x))
    axes.bar(x[kept], curve.estimate[kept], width=0.7, color=COLOURS[1], label="mean")
    known = np.isfinite(curve.low) & kept
    if known.any():
        axes.vlines(x[known], curve.low[known], curve.high[known], color=INK, linewidth=0.9)


def _enough(n: Int64[np.ndarray, " bin"]) -> Bool[np.ndarray, " bin"]:
    """Bins of enough prompts; all where there are few prompts anyway."""
    return n >= min(SMALLEST_SAMPLE, int(n.max(initial=0)))


def _x(n_bins: int) -> np.ndarray:
    """Places of the bins; the rest stands apart."""
    return np.append(np.arange(n_bins - 1.0), n_bins)


def _last(means: Sequence[Float64[np.ndarray, " bin"]]) -> int:
    """The last bin that any prompt has something in."""
    return int(np.flatnonzero((np.nan_to_num(np.stack(means)) != 0).any(0)).max(initial=1))


def _name_bins(axes: Axes, n_bins: int, *, last: int) -> None:
    names = bin_names(n_bins)
    shown = [*range(0, n_bins - 1, _EVERY), n_bins - 1]
    axes.set_xticks(_x(n_bins)[shown], [names[place] for place in shown])
    axes.set_xlim(-0.8, _x(n_bins)[last] + 0.8)
