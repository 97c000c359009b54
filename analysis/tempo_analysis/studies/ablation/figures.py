"""Figures of an ablation; they draw numbers that were computed elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tempo.vocabulary import Head
from tempo_analysis.report.figure_style import (
    COLOURS,
    FAINT,
    INK,
    Drawing,
    colour,
    house_style,
    new_figure,
    plain_text,
)
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE, Curve, Interval
from tempo_analysis.studies.ablation.effects import Effect
from tempo_analysis.studies.ablation.offsets import Difference, OffsetDistribution, OffsetFindings
from tempo_analysis.studies.ablation.passes import Comparison
from tempo_analysis.studies.ablation.redundancy import CURVES, LayerSweep, Sweep
from tempo_analysis.studies.ablation.result import AblationNumbers
from tempo_analysis.studies.ablation.tables import bin_names

MOST_PANELS = 8
"""Heads in one figure: the named ones, then the most changed."""

_N_COLUMNS = 2
_PANEL_INCHES = 1.6
_OFFSET_SHIFT = 0.13
_EVERY = 5


def panel_heads(
    found: OffsetFindings, comparison: Comparison, named: Sequence[Head]
) -> tuple[Head, ...]:
    """The named heads, then the heads that the comparison changes most, at most `MOST_PANELS`."""
    changed = [one.head for one in found.changes if one.comparison == comparison]
    return tuple(dict.fromkeys([*named, *changed]))[:MOST_PANELS]


def distribution_figure(
    found: OffsetFindings, comparison: Comparison, heads: Sequence[Head]
) -> Figure:
    """The row of t of each head in both passes: mean and one sd, on one scale for all heads."""
    own = {(one.head, one.condition): one for one in found.distributions}

    def draw(axes: Axes, head: Head) -> None:
        axes.plot(_x(len(found.even)), found.even, color=FAINT, linestyle=":", label="even row")
        for place, name in enumerate((comparison.reference, comparison.changed)):
            _draw_distribution(axes, own[head, name], place)

    means = [_kept(own[head, comparison.reference]) for head in heads]
    figure = _panels(heads, draw, means, "attention of t")
    # Shares of a row: a cut axis would exaggerate small changes.
    for axes in figure.axes:
        axes.set_ylim(bottom=0.0)
    return figure


def difference_figure(
    found: OffsetFindings, comparison: Comparison, heads: Sequence[Head]
) -> Figure:
    """The paired differences of each head with their band, on one scale for all heads."""
    own = {one.head: one for one in found.differences if one.comparison == comparison}

    def draw(axes: Axes, head: Head) -> None:
        axes.axhline(0.0, color=FAINT, linestyle=":", label="unchanged")
        _draw_difference(axes, own[head])

    curves = [own[head].share.curve for head in heads]
    # Bins with few prompts are left out, as a mean of two prompts looks like an effect.
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


def _kept(one: OffsetDistribution) -> Float64[np.ndarray, " bin"]:
    return np.where(_enough(one.n), one.mean, np.nan)


def _draw_distribution(axes: Axes, one: OffsetDistribution, place: int) -> None:
    kept = _enough(one.n)
    # place 0 to the left, place 1 to the right of the bin, so that the bars do not overlap.
    x, mean = (_x(len(one.mean)) + (2 * place - 1) * _OFFSET_SHIFT)[kept], one.mean[kept]
    sd = np.nan_to_num(one.sd[kept])
    axes.errorbar(
        x,
        mean,
        # Cut at 0 and 1, which no share of a row can leave; the caption says so.
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
    # No limits below 8 prompts; the mean is drawn all the same.
    known = np.isfinite(curve.low) & kept
    if known.any():
        axes.vlines(x[known], curve.low[known], curve.high[known], color=INK, linewidth=0.9)


def _enough(n: Int64[np.ndarray, " bin"]) -> Bool[np.ndarray, " bin"]:
    """Bins with enough prompts; all bins if no bin has that many."""
    return n >= min(SMALLEST_SAMPLE, int(n.max(initial=0)))


def _x(n_bins: int) -> np.ndarray:
    """Positions of the bins on the axis; the last bin, the rest, is set apart by a gap."""
    return np.append(np.arange(n_bins - 1.0), n_bins)


def _last(means: Sequence[Float64[np.ndarray, " bin"]]) -> int:
    """The last bin in which any mean is not 0."""
    return int(np.flatnonzero((np.nan_to_num(np.stack(means)) != 0).any(0)).max(initial=1))


def _name_bins(axes: Axes, n_bins: int, *, last: int) -> None:
    names = bin_names(n_bins)
    shown = [*range(0, n_bins - 1, _EVERY), n_bins - 1]
    axes.set_xticks(_x(n_bins)[shown], [names[place] for place in shown])
    axes.set_xlim(-0.8, _x(n_bins)[last] + 0.8)


_WIDE = 30
"""Ratio of the largest to the smallest value above which the scale is symlog."""
_NEXT_TOKEN = (
    ("kl_at_t_nats", "KL at t, nats"),
    ("top_1_changed_at_t", "top-1 changed at t, share of prompts"),
)
_LOOKS: dict[str, dict[str, Any]] = {
    "base|B": {"color": COLOURS[0], "marker": "o"},
    "A|AB": {"color": COLOURS[2], "marker": "s"},
    "base|AB": {"color": COLOURS[1], "marker": "^"},
    "base|A": {"color": INK, "linestyle": "--"},
}
_ROW_INCHES = 0.24
_SHIFT = 0.08


def ablation_drawings(found: AblationNumbers) -> tuple[Drawing, ...]:
    """Every figure that there are numbers for."""
    return tuple(_drawings(found))


def _drawings(found: AblationNumbers) -> Iterator[Drawing]:
    n = f"{found.n_prompts} prompts"
    yield Drawing(
        "nip_by_layer",
        "Attention outputs at t, by layer",
        f"Normalised inner product with the reference at t; 1 = unchanged. {n}; "
        f"{_bands(found.effects[0].nip.curve)}. "
        "Dashed: the control of the same colour, its band is in the table.",
        nip_figure(found.effects, found.facts.layers),
    )
    yield Drawing(
        "next_token",
        "The next token at t",
        f"KL(reference || changed) and share of prompts whose most probable token changes; 0 = "
        f"unchanged. {n}; bars: {_bars(found.effects[0].numbers['kl_at_t_nats'])}. Open: controls.",
        next_token_figure(found.effects),
    )
    for number, (name, one) in enumerate(found.sweeps.items()):
        yield Drawing(
            f"sweep_{number}",
            f"Redundancy by offset: {name}",
            f"B takes out the values of token t - offset; 1 = unchanged. {one.n_prompts} prompts; "
            f"{_bands(one.layers[0].beyond_a.curve)}. A flat base|AB says something only where "
            "base|B differs from 1. Right: indices, each offset by itself; R has no value "
            "where base|B may be 1.",
            sweep_figure(one),
        )
    yield from _offset_drawings(found, n)


def _offset_drawings(found: AblationNumbers, n: str) -> Iterator[Drawing]:
    shown = [effect for effect in found.effects if not effect.is_control]
    for number, effect in enumerate(shown):
        comparison = effect.comparison
        heads = panel_heads(found.offsets, comparison, found.facts.heads)
        if not heads:
            continue
        chosen = "Named heads first, then those that change most on these prompts."
        yield Drawing(
            f"offsets_{number}",
            f"Where heads look from t: {comparison}",
            f"Mean and one standard deviation (cut at 0 and 1) over {n}; offsets that fewer than "
            "8 prompts have are left out. The first token of a prompt "
            f"stands at offset t, which differs from prompt to prompt. {chosen}",
            distribution_figure(found.offsets, comparison, heads),
        )
        yield Drawing(
            f"offset_differences_{number}",
            f"What changes in where heads look: {comparison}",
            f"Changed less reference, paired over {n}; "
            f"{_bands(found.offsets.differences[0].share.curve, what='bars')}. {chosen}",
            difference_figure(found.offsets, comparison, heads),
        )


def nip_figure(effects: Sequence[Effect], layers: Sequence[int]) -> Figure:
    """NIP of the attention outputs by layer, a line for each comparison."""
    with house_style():
        figure = new_figure(3.1 + 0.12 * (len(effects) // 3))
        axes = figure.subplots()
        for layer in layers:
            axes.axvspan(layer - 0.5, layer + 0.5, color=FAINT, alpha=0.15, linewidth=0)
        axes.axhline(1.0, color=FAINT, linestyle=":", label="unchanged")
        inks = _inks(effects)
        for effect in effects:
            if effect.is_control:  # no band: drawn over each other, they would hide the rest
                ink, curve = inks[effect.comparison.changed], effect.nip.curve
                axes.plot(curve.x, curve.estimate, color=ink, linestyle="--", linewidth=0.8)
            else:
                ink = inks[effect.comparison.changed]
                _draw_curve(axes, effect.nip.curve, str(effect.comparison), color=ink)
        if any(effect.is_control for effect in effects):
            axes.plot([], [], color=FAINT, linestyle="--", linewidth=0.8, label="its control")
        axes.set(xlabel="layer (shaded: where the edit acts)", ylabel="NIP at t")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _draw_legend(figure, [axes], n_columns=4)
    return figure


def next_token_figure(effects: Sequence[Effect]) -> Figure:
    """KL at t and share of changed top-1 tokens, a row for each comparison."""
    places = np.arange(len(effects))
    with house_style():
        figure = new_figure(1.1 + _ROW_INCHES * len(effects))
        panels = figure.subplots(1, len(_NEXT_TOKEN), sharey=True)
        for axes, (name, label) in zip(panels, _NEXT_TOKEN, strict=True):
            axes.axvline(0.0, color=FAINT, linestyle=":")
            for place, effect in enumerate(effects):
                _draw_bar(axes, place, effect.numbers[name], is_open=effect.is_control)
            axes.set_xlabel(label)
        _spread_small(panels[0], [effect.numbers[_NEXT_TOKEN[0][0]] for effect in effects])
        names = [plain_text(str(effect.comparison)) for effect in effects]
        panels[0].set_yticks(places, names)
        # Reversed limits: the first comparison at the top, in the order of the table.
        panels[0].set_ylim(len(effects) - 0.5, -0.5)
        # All of 0 to 1, with room for a marker at either end.
        panels[1].set_xlim(-0.04, 1.04)
    return figure


def sweep_figure(found: Sweep) -> Figure:
    """The curves over the offsets, and both indices; a row for each layer where A acts."""
    with house_style():
        figure = new_figure(0.8 + 2.2 * len(found.layers))
        panels = figure.subplots(len(found.layers), 2, squeeze=False, sharex=True)
        for (curves, indices), one in zip(panels, found.layers, strict=True):
            _draw_sweep(curves, one)
            _draw_indices(indices, one)
        for axes in panels[-1]:
            axes.set_xlabel("tokens back (offset of B)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _draw_legend(figure, panels.flat, n_columns=4)
    return figure


def _draw_sweep(axes: Axes, one: LayerSweep) -> None:
    axes.axhline(1.0, color=FAINT, linestyle=":", label="unchanged")
    for name in CURVES:
        _draw_curve(axes, one.nip[name].curve, name, **_LOOKS[name])
    axes.set(title=f"layer {one.layer}", ylabel="NIP at t")


def _draw_indices(axes: Axes, one: LayerSweep) -> None:
    for level in (0.0, 1.0):
        axes.axhline(level, color=FAINT, linestyle=":")
    for shift, (label, points) in zip(
        (-_SHIFT, _SHIFT), {"R": one.pooled, "overlap": one.overlap.curve}.items(), strict=True
    ):
        look = {"R": (COLOURS[3], "D"), "overlap": (COLOURS[4], "v")}[label]
        _draw_points(axes, points, shift, label, look)
    axes.set(title=f"layer {one.layer}: 1 = A has removed it, 0 = independent", ylabel="index")


def _inks(effects: Sequence[Effect]) -> dict[str, str]:
    """The colour of each condition, and of its control."""
    found: dict[str, str] = {}
    for number, effect in enumerate(effect for effect in effects if not effect.is_control):
        found[effect.comparison.changed] = colour(number)
        if effect.less_control is not None:
            found[effect.less_control.control] = colour(number)
    return found


def _spread_small(axes: Axes, found: Sequence[Interval]) -> None:
    """Use a symlog scale if values differ so much that small ones could not be seen."""
    positive = [one.estimate for one in found if one.estimate > 0]
    if positive and max(positive) > _WIDE * min(positive):
        # Not log: an interval may include 0.
        axes.set_xscale("symlog", linthresh=min(positive))
        axes.set_xlim(left=-0.3 * min(positive))


def _draw_curve(axes: Axes, curve: Curve, label: str, **look: Any) -> None:
    axes.plot(curve.x, curve.estimate, markersize=3, label=plain_text(label), **look)
    axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.2, linewidth=0)


def _draw_points(
    axes: Axes, points: Curve, shift: float, label: str, look: tuple[str, str]
) -> None:
    """Points with bars and no line, as the limits of each point hold for that point only."""
    ink, marker = look
    x = points.x + shift
    axes.plot(x, points.estimate, marker=marker, markersize=4, color=ink, label=label, ls="")
    known = np.isfinite(points.low)
    axes.vlines(x[known], points.low[known], points.high[known], color=ink, linewidth=1.2)


def _draw_bar(axes: Axes, place: int, found: Interval, *, is_open: bool) -> None:
    ink = FAINT if is_open else COLOURS[0]
    if np.isfinite(found.low) and np.isfinite(found.high):
        axes.plot([found.low, found.high], [place, place], color=ink, linewidth=1.2)
    face = "white" if is_open else ink
    axes.plot(found.estimate, place, marker="o", markersize=4, color=ink, markerfacecolor=face)


def _bands(curve: Curve, *, what: str = "bands") -> str:
    if np.isfinite(curve.low).any():
        return f"{what}: 95 %, all points of a curve at once"
    return f"too few prompts for {what}"


def _bars(found: Interval) -> str:
    return "95 % intervals" if np.isfinite(found.low) else "none, too few prompts"


def _draw_legend(figure: Figure, panels: Iterable[Axes], *, n_columns: int) -> None:
    """Every label of the panels once, under them."""
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=n_columns)
