"""Figures of a concept; they draw numbers that were computed elsewhere."""

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from tempo_analysis.report.figure_style import (
    COLOURS,
    FAINT,
    INK,
    NO_DATA,
    Drawing,
    house_style,
    new_figure,
    plain_text,
)
from tempo_analysis.stats.association import EVEN_AREA
from tempo_analysis.studies.concepts.result import ConceptNumbers
from tempo_analysis.studies.concepts.separation import LEVEL

_NULL = "null: pairs swap sides"
_NO_ANSWER = "no more heads than are counted:\nthe share is 1 whatever they do"
_DECADES = 2.0
"""Range of the colours of lengths, in decades below the longest; shorter ones share one colour."""


def concept_drawings(found: ConceptNumbers) -> tuple[Drawing, ...]:
    """Maps of the heads, and how concentrated each layer is."""
    n = f"{found.heads.n} pairs"
    return (
        Drawing(
            "heads",
            "Every head",
            f"Length of the difference between the sides after W_O, and AUROC on held-out pairs; "
            f"{n}. Ringed: assigned. Grey: layers without heads to read.",
            concept_maps(found),
        ),
        Drawing(
            "concentration",
            "A few heads or all?",
            f"By layer, the share of the longest heads in the summed length, and the effective "
            f"heads; {n}. Dashed: the null, in which pairs swap sides; dotted: heads of equal "
            f"length. Full markers: p < {LEVEL:g}.",
            concentration_figure(found),
        ),
    )


def concept_maps(found: ConceptNumbers) -> Figure:
    """Layer x head maps of the length after W_O and of the AUROC on held-out pairs."""
    n_layers = int(found.model["n_layers"])
    with house_style():
        figure = new_figure(1.6 + min(0.11 * n_layers + 0.4, 6.0))
        lengths, areas = figure.subplots(1, 2, sharey=True)
        _draw_lengths(figure, lengths, found)
        _draw_areas(figure, areas, found)
        lengths.set_ylabel("layer")
        title = f"{plain_text(found.concept)} in {plain_text(str(found.model['name']))}"
        rings = "ringed: assigned" if found.heads.assigned.any() else "no head is assigned"
        grey = "; grey: layers without heads to read" if found.skipped else ""
        figure.suptitle(f"{title}; {rings}{grey}", fontsize=8)
    return figure


def concentration_figure(found: ConceptNumbers) -> Figure:
    """Share of the longest heads and effective heads by layer, with chance and null."""
    by_layer = found.heads.concentration
    n_heads = found.heads.auroc.shape[1]
    layers = np.array(found.layers)
    with house_style():
        figure = new_figure(2.7)
        shares, effective = figure.subplots(1, 2, sharex=True)
        shares.plot(layers, by_layer.null, color=COLOURS[1], linestyle="--", label=_NULL)
        shares.axhline(by_layer.chance, color=FAINT, linestyle=":", label="heads of equal length")
        _draw_tested(shares, layers, by_layer.share, by_layer.p)
        counted = "all" if by_layer.top == n_heads else f"the {by_layer.top} longest of"
        shares.set(ylabel=f"share of {counted} {n_heads} heads", ylim=(0, 1.06))
        effective.plot(layers, by_layer.null_effective, color=COLOURS[1], linestyle="--")
        effective.axhline(n_heads, color=FAINT, linestyle=":")
        effective.plot(layers, by_layer.effective_heads, color=COLOURS[0], marker="x", ms=3)
        effective.set(ylabel="effective heads", ylim=(0, 1.06 * n_heads))
        for axes in (shares, effective):
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if by_layer.top == n_heads:
            shares.text(0.5, 0.5, _NO_ANSWER, transform=shares.transAxes, ha="center", va="center")
        handles, labels = shares.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _draw_tested(
    axes: Axes,
    layers: np.ndarray,
    values: Float64[np.ndarray, " layer"],
    p: Float64[np.ndarray, " layer"],
) -> None:
    """Draw a line with full markers where p is below `LEVEL`, and open ones elsewhere."""
    axes.plot(layers, values, color=COLOURS[0], label="these pairs")
    sure = p < LEVEL
    for chosen, face, label in ((sure, COLOURS[0], f"p < {LEVEL:g}"), (~sure, "white", None)):
        if chosen.any():
            axes.scatter(
                layers[chosen],
                values[chosen],
                s=12,
                facecolor=face,
                edgecolor=COLOURS[0],
                zorder=3,
                label=label,
            )


def _draw_lengths(figure: Figure, axes: Axes, found: ConceptNumbers) -> None:
    lengths = found.heads.written_norm
    # 1.0 where all lengths are 0: a logarithmic scale needs a positive end.
    longest = float(lengths.max(initial=0.0)) or 1.0
    norm = LogNorm(longest / 10**_DECADES, longest, clip=True)
    image = _draw_map(axes, found, lengths, "viridis", norm)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
    if norm.vmin and found.heads.null_p99 > norm.vmin:
        bar.ax.axvline(found.heads.null_p99, color="white", linewidth=1.5)
    bar.ax.tick_params(labelsize=6)
    bar.set_label(f"line: 99 % of swaps are below {found.heads.null_p99:.2g}", fontsize=7)
    axes.set_title("length of the difference after W_O")


def _draw_areas(figure: Figure, axes: Axes, found: ConceptNumbers) -> None:
    areas = found.heads.auroc
    # Symmetric around chance, so that white is 0.5; at least 0.1, or noise would fill the colours.
    widest = max(float(np.abs(areas - EVEN_AREA).max(initial=0.0)), 0.1)
    norm = Normalize(EVEN_AREA - widest, EVEN_AREA + widest)
    image = _draw_map(axes, found, areas, "RdBu_r", norm)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
    bar.ax.tick_params(labelsize=6)
    bar.set_label(f"chance {EVEN_AREA:g}", fontsize=7)
    axes.set_title("AUROC on pairs not fitted")


def _draw_map(
    axes: Axes,
    found: ConceptNumbers,
    values: Float64[np.ndarray, "row head"],
    colours: str,
    norm: Normalize,
) -> AxesImage:
    """One cell for each head, layer 0 at the top; a ring around each assigned head."""
    # All layers of the model: skipped ones stay NaN and show the grey background.
    every = np.full((int(found.model["n_layers"]), values.shape[1]), np.nan)
    every[list(found.layers)] = values
    image = axes.imshow(every, aspect="auto", interpolation="nearest", cmap=colours, norm=norm)
    rows, heads = np.nonzero(found.heads.assigned)
    layers = np.array(found.layers)[rows]
    # A white ring under a dark one is visible on every colour.
    for edge, width in (("white", 1.6), (INK, 0.7)):
        axes.scatter(heads, layers, s=14, facecolor="none", edgecolor=edge, linewidth=width)
    axes.set_facecolor(NO_DATA)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("head")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return image
