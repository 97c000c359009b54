"""Figures of a census of heads; nothing is computed here but where the ink goes."""

from collections.abc import Iterator, Sequence
from textwrap import fill

import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tempo.vocabulary import Head
from tempo_analysis.parallel.entropy import CHANCE as EVEN_ENTROPY
from tempo_analysis.report.document import array_of, number
from tempo_analysis.report.figure_style import (
    COLOURS,
    FAINT,
    INK,
    NO_DATA,
    Drawing,
    colour,
    house_style,
    new_figure,
    plain_text,
)
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.studies.heads.result import (
    HeadsDocument,
    RoleHeads,
    label_of,
    roles_of,
    spectrum_of,
)

N_COLUMNS = 5
MOST_LINES = 6
MOST_CHANNELS = 3
RING = COLOURS[1]

_SHARES, _SIGNED = "Blues", "PRGn"
_OFFSETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def census_drawings(document: HeadsDocument) -> tuple[Drawing, ...]:
    """Every figure there are data for."""
    return tuple(_drawings(document))


def _drawings(document: HeadsDocument) -> Iterator[Drawing]:
    detail, spectrum = document["detail"], spectrum_of(document)
    if roles_of(document):
        yield Drawing(
            "heads_roles",
            "Roles",
            "Score of every head for every role. Ringed: holds the role; hatched: no data.",
            roles_figure(document),
        )
    if "offsets" in detail:
        yield Drawing(
            "heads_offsets",
            "Offset profiles",
            "Share of the row at each distance, mean over queries; dashed: even rows.",
            offsets_figure(document),
        )
    if "value_share_of_sink" in spectrum:
        yield Drawing(
            "heads_bos",
            "First token",
            "Attention on slot 0, and the share of what a head writes that comes from it.",
            bos_figure(document),
        )
    if "normalised" in spectrum:
        yield Drawing(
            "heads_entropy",
            "Entropy by depth",
            "Entropy of the rows over the logarithm of the visible slots; dotted: even attention.",
            entropy_by_depth_figure(document),
        )
    if "activations" in detail:
        yield Drawing(
            "heads_activations",
            "Massive activations",
            "Largest over median absolute activation of the residual stream, mean over texts.",
            activations_figure(document),
        )


def roles_figure(document: HeadsDocument) -> Figure:
    """A layer x head map of every role; heads that hold it are ringed, no data is hatched."""
    roles = roles_of(document)
    n_rows = -(-len(roles) // N_COLUMNS)
    with house_style():
        figure = new_figure(n_rows * (1.15 + _map_height(roles[0].score)) + 0.5)
        panels = figure.subplots(n_rows, N_COLUMNS, squeeze=False)
        for axes, role in zip(panels.flat, roles, strict=False):
            _draw_role(figure, axes, role)
        for axes in panels.flat[len(roles) :]:
            axes.set_visible(False)
        note = "ringed: holds the role (their number is in the title); hatched: no data"
        if document["refused"]:
            note += "\nnot answered: " + ", ".join(map(label_of, document["refused"]))
        figure.suptitle(f"{plain_text(str(document['model']))}; {note}", fontsize=7)
    return figure


def offsets_figure(document: HeadsDocument) -> Figure:
    """How much the best positional heads give to each distance, beside even rows."""
    found = document["detail"]["offsets"]
    profile, even = array_of(found["profile"]), array_of(found["even"])
    with house_style():
        figure = new_figure(2.9)
        axes = figure.subplots()
        chosen = _best_positional(document, profile)
        offsets = np.arange(profile.shape[-1])
        for place, head in enumerate(chosen):
            axes.plot(offsets, profile[head], ".-", color=colour(place), label=str(head))
        label: str | None = "chance: even rows"
        for line in np.unique([even[head] for head in chosen], axis=0):
            axes.plot(offsets, line, color=INK, linestyle="--", label=label)
            label = None
        axes.set_xscale("symlog", base=2, linthresh=1)
        shown = [offset for offset in _OFFSETS if offset < len(offsets)]
        axes.set_xticks(shown, [str(offset) for offset in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlim=(-0.2, len(offsets) - 1), xlabel="tokens back", ylabel="share without slot 0")
        axes.set_title("Where the most positional heads look, mean over queries")
        axes.legend(ncols=2)
    return figure


def bos_figure(document: HeadsDocument) -> Figure:
    """Mass on slot 0, and the share of what a head writes that comes from it."""
    written, _ = spectrum_of(document)["value_share_of_sink"]
    role = next((each for each in roles_of(document) if each.role == "bos_sink"), None)
    with house_style():
        figure = new_figure(1.3 + _map_height(written))
        panels = figure.subplots(1, 1 if role is None else 2, squeeze=False)[0]
        if role is not None:
            title = f"mass on slot 0; chance {number(role.mean_chance())}"
            _draw_map(figure, panels[0], role.score, title, _SHARES, Normalize(0, 1))
            _ring(panels[0], role.holders())
        title = "share of what is written that comes from slot 0"
        _draw_map(figure, panels[-1], written, title, _SHARES, Normalize(0, 1))
        note = "ringed: holds the role of a sink; a head may look there and write nothing"
        figure.suptitle(note, fontsize=7)
    return figure


def entropy_by_depth_figure(document: HeadsDocument) -> Figure:
    """Entropy of every head and its mean by layer, with the sink and without."""
    found = spectrum_of(document)
    with house_style():
        figure = new_figure(2.7)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        names = {"normalised": "with the sink", "normalised_without_sink": "without the sink"}
        for axes, (name, title) in zip(panels, names.items(), strict=True):
            _draw_heads(axes, found[name][0])
            axes.axhline(EVEN_ENTROPY, color=FAINT, linestyle=":", label="chance: even attention")
            axes.set(title=title, xlabel="layer", ylim=(0, 1.06))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("entropy / ln(visible slots)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def activations_figure(document: HeadsDocument) -> Figure:
    """Largest over median activation of the stream by depth, and the channel that holds it."""
    found = document["detail"]["activations"]
    ratio = array_of(found["largest_over_median"])
    channel = np.array(found["channel_of_largest"])
    depth = np.arange(len(ratio))
    with house_style():
        figure = new_figure(2.7)
        axes = figure.subplots()
        axes.plot(depth, ratio, color=FAINT, zorder=1)
        names, counts = np.unique(channel, return_counts=True)
        common = names[np.argsort(-counts, kind="stable")][:MOST_CHANNELS]
        for place, name in enumerate(common.tolist()):
            kept = channel == name
            axes.scatter(depth[kept], ratio[kept], 16, colour(place), label=f"channel {name}")
        rest = ~np.isin(channel, common)
        if rest.any():
            axes.scatter(depth[rest], ratio[rest], 16, INK, marker="x", label="other channels")
        axes.set(yscale="log", xlabel="layers behind (0: embedding)", ylabel="largest / median")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("Massive activations: largest over median |activation|, mean over texts")
        axes.legend(ncols=4)
    return figure


def _best_positional(document: HeadsDocument, profile: Float64[np.ndarray, "_ _ _"]) -> list[Head]:
    """By their score, or, where the role was not asked for, by their highest offset from 1 on."""
    role = next((each for each in roles_of(document) if each.role == "positional"), None)
    if role is not None:
        return role.best_first()[:MOST_LINES]
    highest = np.nan_to_num(profile[..., 1:], nan=-1.0).max(-1)
    order = np.argsort(-highest, axis=None, kind="stable")[:MOST_LINES]
    return [Head(*divmod(int(place), highest.shape[1])) for place in order]


def _draw_role(figure: Figure, axes: Axes, role: RoleHeads) -> None:
    held = len(role.holders())
    title = (
        f"{label_of(role.role)}\nchance {role.mean_chance():.2g}; {held} head{'s' * (held != 1)}"
    )
    known = role.score[~np.isnan(role.score)]
    largest = max(float(np.abs(known).max(initial=0.0)), role.threshold)
    is_signed = bool((known < -0.05 * largest).any())
    norm = Normalize(-largest if is_signed else 0.0, largest)
    _draw_map(figure, axes, role.score, title, _SIGNED if is_signed else _SHARES, norm)
    axes.set_title(title, fontsize=5.8)
    axes.set_xlabel(fill(plain_text(role.unit), 26), fontsize=6)
    _ring(axes, role.holders())


def _draw_map(
    figure: Figure, axes: Axes, values: ByHead, title: str, colours: str, norm: Normalize
) -> None:
    """One cell for each head; where there is no data, the hatched ground shows."""
    axes.patch.set(facecolor="white", hatch="//////", edgecolor=NO_DATA, linewidth=0)
    axes.spines[:].set_visible(False)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        cmap=colormaps[colours],
        norm=norm,
        interpolation="nearest",
    )
    for axis, n in ((axes.yaxis, values.shape[0]), (axes.xaxis, values.shape[1])):
        shown = list(range(0, n, max(1, -(-n // 6))))
        axis.set_ticks(shown, [str(place) for place in shown])
        axis.set_tick_params(labelsize=6, length=2)
    axes.set_title(title, fontsize=7)
    axes.set_xlabel("head", fontsize=6)
    axes.set_ylabel("layer", fontsize=6)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=14, pad=0.02)
    bar.ax.tick_params(labelsize=6, length=2)
    bar.ax.xaxis.set_major_locator(MaxNLocator(3))


def _ring(axes: Axes, heads: Sequence[Head]) -> None:
    for layer, head in heads:
        box = Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=RING, linewidth=0.9)
        axes.add_patch(box)


def _draw_heads(axes: Axes, values: ByHead) -> None:
    """Every head as a dot, their mean as a line."""
    layers = np.arange(len(values))
    axes.plot(layers, values, linestyle="", marker=".", markersize=2.5, color=COLOURS[5])
    axes.lines[0].set_label("a head")
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(1)
    mean = np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)
    axes.plot(layers, mean, color=COLOURS[0], marker="o", markersize=2.5, label="mean of heads")


def _map_height(values: ByHead) -> float:
    """Inches."""
    return min(0.3 + 0.045 * len(values), 2.4)
