"""Figures of results: they draw numbers that were computed elsewhere."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tempo.trace.run import Run
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import arms_of
from tempo_analysis.parallel.divergence import IDENTICAL, Divergence
from tempo_analysis.parallel.entropy import CHANCE as EVEN_ENTROPY
from tempo_analysis.parallel.entropy import EntropyFunnel
from tempo_analysis.parallel.head_kinds import HeadTable
from tempo_analysis.parallel.ratio import CHANCE as EVEN_RATIO
from tempo_analysis.parallel.ratio import AttentionRatio
from tempo_analysis.parallel.run_numbers import RunNumbers
from tempo_analysis.parallel.set_effect import ALONE, SetEffect
from tempo_analysis.parallel.trace_figures import lattice_figure
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
from tempo_analysis.stats.intervals import Curve

# Factors that a reader knows; matplotlib's own ticks on a log axis are powers of ten, of which a
# range from 0.5 to 2 has one.
FACTOR_TICKS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6, 2.0, 3.0, 4.0)
_SPLIT_LOOKS: Mapping[str, tuple[str, dict[str, str]]] = {
    "drift": ("score drift", {"color": COLOURS[0]}),
    "competition": ("competition", {"color": COLOURS[1]}),
    "predicted": ("dilution by independent odds", {"color": COLOURS[2], "linestyle": "--"}),
}
RATIO_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def run_drawings(run: Run, found: RunNumbers) -> tuple[Drawing, ...]:
    """Every figure of a run for which there are data."""
    return tuple(_drawings(run, found))


def _drawings(run: Run, found: RunNumbers) -> Iterator[Drawing]:
    arms, bands = found.by_arm, f"{found.n_prompts} prompts; bands: 95 %, none with fewer than 8."
    ratios = {arm: each.ratio for arm, each in arms.items() if each.ratio}
    if ratios:
        yield Drawing(
            "ratio_by_step",
            "Ratio by step",
            f"Weight per slot of a set over weight per other slot, by step of the query. {bands}",
            ratio_figure(ratios),
        )
    yield Drawing(
        "entropy_by_layer",
        "Entropy by layer",
        f"Entropy of the rows over the logarithm of the slots they see. {bands}",
        entropy_figure({arm: each.entropy for arm, each in arms.items()}, found.greedy),
    )
    for arm, each in arms.items():
        if each.ratio or each.heads:
            yield Drawing(
                f"heads_{_file_name(arm)}",
                f"Heads, {arm}",
                "Ratio without the sink, mass on slot 0, entropy without it. Grey: no data.",
                head_figure(arm, each.ratio.get("without"), each.heads),
            )
    if found.set_effects:
        yield Drawing(
            "split_by_layer",
            "A member in its set over alone",
            f"Score drift, competition and its prediction by layer; 1 is a token alone. {bands}",
            split_figure(found.set_effects["without"]),
        )
    if found.divergence:
        yield Drawing(
            "readouts_by_step",
            "Readouts on identical tokens",
            f"Divergence of the readouts and best tokens in common, by step. {bands}",
            divergence_figure(found.divergence),
        )
    for trace in _first_traces(run):
        prompt_id, arm = trace.header.prompt_id, trace.header.arm
        yield Drawing(
            f"lattice_{prompt_id}_{_file_name(arm)}",
            f"Lattice, {prompt_id}, {arm}",
            "Every set of one run: its tokens and their probabilities.",
            lattice_figure(trace),
        )


def _first_traces(run: Run) -> list[Trace]:
    """The parallel traces of the first prompt."""
    pairs = ((run.prompts[0].id, arm) for arm in arms_of(run).parallel)
    traces = [run.traces[pair] for pair in pairs if pair in run.traces]
    return [trace for trace in traces if trace.n_steps]


def _file_name(arm: str) -> str:
    # Names of arms hold `@` and `|`, which are no good in file names.
    return re.sub(r"[^\w.-]+", "_", arm)


def ratio_figure(ratios: Mapping[str, Mapping[str, AttentionRatio]]) -> Figure:
    """The ratio by step for each arm, with and without the sink, beside its null and chance."""
    with house_style():
        # A fixed part for the legend, then one row for each arm.
        figure = new_figure(0.6 + 1.75 * len(ratios))
        panels = figure.subplots(len(ratios), 2, sharex=True, sharey=True, squeeze=False)
        for row, (arm, by_sink) in zip(panels, ratios.items(), strict=True):
            for axes, (sink, ratio) in zip(row, by_sink.items(), strict=True):
                _draw_ratio(axes, ratio)
                axes.set_title(f"{plain_text(arm)}, {sink} the sink")
            row[0].set_ylabel("set slot / other slot")
        for axes in panels[-1]:
            axes.set_xlabel("step of the query")
        _draw_legend(figure, panels.ravel(), n_columns=3)
    return figure


def entropy_figure(funnels: Mapping[str, EntropyFunnel], null: str | None) -> Figure:
    """Normalised entropy by layer with and without the sink; the null arm is dashed."""
    with house_style():
        figure = new_figure(2.7)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for number, (arm, funnel) in enumerate(funnels.items()):
            # The null looks the same in every figure, whatever its number among the arms.
            look = {"color": INK, "linestyle": "--"} if arm == null else {"color": colour(number)}
            label = f"{arm} (null)" if arm == null else arm
            _draw_curve(panels[0], funnel.normalised, label, **look)
            _draw_curve(panels[1], funnel.normalised_without_sink, label, **look)
        for axes, title in zip(panels, ("with the sink", "without the sink"), strict=True):
            axes.axhline(EVEN_ENTROPY, color=FAINT, linestyle=":", label="chance: even attention")
            axes.set(title=title, xlabel="layer", ylim=(0, 1.06))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("entropy / ln(visible slots)")
        _draw_legend(figure, panels, n_columns=5)
    return figure


def head_figure(arm: str, ratio: AttentionRatio | None, heads: HeadTable | None) -> Figure:
    """Layer x head maps: the ratio without the sink, sink mass, entropy without the sink."""
    table = ratio or heads
    assert table is not None, "a head figure needs a ratio or a head table"
    with house_style():
        n_panels = (ratio is not None) + 2 * (heads is not None)
        figure = new_figure(1.3 + min(0.085 * len(table.layers) + 0.6, 5.0))
        panels = iter(figure.subplots(1, n_panels, squeeze=False)[0])
        if ratio is not None:
            _draw_ratio_map(figure, next(panels), ratio)
        if heads is not None:
            sink, entropy = "sink", "normalised_entropy_without_sink"
            _draw_share_map(figure, next(panels), heads, sink, "share of the row on slot 0")
            _draw_share_map(figure, next(panels), heads, entropy, "H' / ln n, without the sink")
        figure.suptitle(plain_text(arm), fontsize=9)
    return figure


def divergence_figure(pairs: Mapping[str, Divergence]) -> Figure:
    """Jensen-Shannon divergence and top-10 overlap of the readouts by step, for each pair."""
    with house_style():
        figure = new_figure(2.7)
        panels = figure.subplots(1, 2, sharex=True)
        for number, (pair, found) in enumerate(pairs.items()):
            _draw_curve(panels[0], found.js, pair, color=colour(number))
            _draw_curve(panels[1], found.top_overlap, pair, color=colour(number))
        is_bound = any(found.lower_bounds for found in pairs.values())
        panels[0].set_ylabel(f"JS, nats{' (lower bound)' if is_bound else ''}")
        panels[1].set_ylabel("shared among the 10 best tokens")
        for axes, measure in zip(panels, ("js", "top_overlap"), strict=True):
            same = IDENTICAL[measure]
            axes.axhline(same, color=FAINT, linestyle=":", label="identical readouts")
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # A little below 0, or a curve at exactly 0 would lie under the axis.
        panels[0].set_ylim(bottom=-0.02 * panels[0].get_ylim()[1])
        panels[1].set_ylim(0, 1.06)
        _draw_legend(figure, panels, n_columns=4)
    return figure


def split_figure(effect: SetEffect) -> Figure:
    """Drift, competition and its prediction by layer, of first sets and of all sets."""
    with house_style():
        figure = new_figure(2.9)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        parts = {"first sets": effect.first, "all sets": effect.all_sets}
        for axes, (title, part) in zip(panels, parts.items(), strict=True):
            axes.set_yscale("log")
            axes.axhline(ALONE, color=FAINT, linestyle=":", label="a token alone")
            for name, (label, look) in _SPLIT_LOOKS.items():
                _draw_curve(axes, part.by_layer[name], label, **look)
            axes.set(title=f"{plain_text(effect.arm)}, {title}", xlabel="layer")
            _name_factors(axes, FACTOR_TICKS)
        panels[0].set_ylabel("member in its set / alone")
        has_band = bool(np.isfinite(effect.all_sets.by_layer["drift"].low).any())
        note = "bands: 95 %, all layers at once" if has_band else "too few prompts for bands"
        figure.suptitle(f"{note}; scores relative to the prompt without slot 0", fontsize=7)
        _draw_legend(figure, panels, n_columns=4)
    return figure


def _draw_curve(axes: Axes, curve: Curve, label: str, **look: Any) -> None:
    """A line with markers, and a band where there are intervals."""
    text = plain_text(label)
    axes.plot(curve.x, curve.estimate, marker="o", markersize=2.5, label=text, **look)
    axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.2, linewidth=0)


def _draw_ratio(axes: Axes, ratio: AttentionRatio) -> None:
    axes.set_yscale("log")
    axes.axhline(EVEN_RATIO, color=FAINT, linestyle=":", label="chance: even attention")
    has_band = bool(np.isfinite(ratio.by_step.low).any())
    label = "arm, 95 % interval over prompts" if has_band else "arm (too few prompts for intervals)"
    _draw_curve(axes, ratio.by_step, label, color=COLOURS[0])
    if ratio.null.n:
        null = "null: same labels on the greedy run"
        _draw_curve(axes, ratio.null_by_step, null, color=COLOURS[1], linestyle="--")
    _name_factors(axes, RATIO_TICKS)


def _name_factors(axes: Axes, ticks: tuple[float, ...]) -> None:
    """Plain numbers as ticks of the logarithmic y axis, integers as ticks of the x axis."""
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    # Minor ticks of a log axis get labels of their own in a narrow range.
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_ratio_map(figure: Figure, axes: Axes, ratio: AttentionRatio) -> None:
    """Log-ratios on a scale symmetrical around 1, labelled as ratios."""
    logs = ratio.log_ratio_by_head
    finite = np.abs(logs[np.isfinite(logs)])
    # At least log 2 to each side: maps of heads that hardly differ from 1 would show noise in full
    # colour.
    largest = max(float(finite.max(initial=0.0)), float(np.log(2)))
    # Symmetric in the logarithm, so that half and double are equally far from white.
    image = _draw_map(axes, logs, ratio, "RdBu_r", Normalize(-largest, largest))
    ticks = [tick for tick in RATIO_TICKS if abs(np.log(tick)) <= largest]
    bar = figure.colorbar(image, ax=axes, ticks=np.log(ticks), location="bottom", shrink=0.9)
    bar.ax.set_xticklabels([f"{tick:g}" for tick in ticks], fontsize=6)
    bar.set_label("set slot / other slot; chance 1", fontsize=7)
    axes.set_title("ratio, without the sink")


def _draw_share_map(figure: Figure, axes: Axes, heads: HeadTable, measure: str, unit: str) -> None:
    chance = heads.mean_chance(measure)
    image = _draw_map(axes, heads.column(measure), heads, "viridis", Normalize(0, 1))
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
    bar.ax.tick_params(labelsize=6)
    if np.isfinite(chance):
        bar.ax.axvline(chance, color="white", linewidth=1.5)
    bar.set_label(f"{unit}; chance {chance:.2g}", fontsize=7)
    axes.set_title("sink mass" if measure == "sink" else "entropy, without the sink")


def _draw_map(
    axes: Axes,
    values: Float64[np.ndarray, "layer head"],
    table: AttentionRatio | HeadTable,
    colours: str,
    norm: Normalize,
) -> AxesImage:
    """One cell for each head; cells without data are grey."""
    # imshow leaves NaN cells transparent, so the face of the axes is their colour.
    axes.set_facecolor(NO_DATA)
    axes.spines[:].set_visible(False)
    image = axes.imshow(values, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    for axis, numbers in ((axes.yaxis, table.layers), (axes.xaxis, table.heads)):
        # About ten labels on an axis, whatever the number of heads.
        shown = range(0, len(numbers), max(1, len(numbers) // 10))
        axis.set_ticks(list(shown), [str(numbers[place]) for place in shown])
    axes.set(xlabel="head", ylabel="layer")
    return image


def _draw_legend(figure: Figure, panels: Iterable[Axes], *, n_columns: int) -> None:
    """One legend below the panels, in which each label of the panels occurs once."""
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        # By label: the same curve in several panels has one entry.
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=n_columns)
