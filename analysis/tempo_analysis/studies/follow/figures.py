"""The figure of one followed member; it draws numbers that were computed elsewhere."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tempo_analysis.parallel.trace_figures import drawable_glyphs
from tempo_analysis.report.figure_style import (
    COLOURS,
    FAINT,
    INK,
    NO_DATA,
    house_style,
    new_figure,
    plain_text,
)
from tempo_analysis.studies.follow.result import MemberNumbers
from tempo_analysis.studies.follow.trajectory import KnockedOut, shown

_LOOKS: Mapping[str, dict[str, Any]] = {
    "member": {"color": COLOURS[0], "marker": ".", "markersize": 3, "zorder": 3},
    "alone": {"color": COLOURS[2], "linestyle": "--"},
    "over": {"color": COLOURS[2], "linestyle": "--", "zorder": 4},
    "odds": {"color": COLOURS[3], "linestyle": "-.", "linewidth": 1.0},
    "control": {"color": COLOURS[1], "linestyle": "-"},
    # Below the member: they are context, and there may be many of them.
    "siblings": {"color": NO_DATA, "linewidth": 1.0, "zorder": 1},
    "chance": {"color": FAINT, "linestyle": ":"},
    "readout": {"color": COLOURS[4], "linestyle": "-"},
}
_SMALLEST_KL = 0.1
"""Below this many nats the scale of the lens is linear."""


def member_figure(found: MemberNumbers) -> Figure:
    """Attention, norm, logit lens and knock-out over layers, in four panels."""
    with house_style():
        figure = new_figure(5.4)
        panels = figure.subplots(2, 2)
        _draw_attention(panels[0, 0], found)
        _draw_norm(panels[0, 1], found)
        _draw_lens(panels[1, 0], found)
        _draw_knocked(panels[1, 1], found)
        for axes in panels.ravel():
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(_title(found), fontsize=8)
        _draw_legend(figure, panels.ravel())
    return figure


def caption(found: MemberNumbers) -> str:
    """Caption of the figure."""
    queries = found.n_queries[0]
    control = found.control
    beside = (
        "" if control is None else f", also of prompt slot {control.slot} ({shown(control.text)})"
    )
    return (
        f"One member of one run, so there is no band. Attention: mean over heads and the {queries} "
        f"quer{'y' if queries == 1 else 'ies'} of the next step that may see the slot; dotted is "
        "chance, 1 / visible slots. Norm and logit lens are those of the state at each depth: 0 is "
        "the embedding, d the stream after d layers; the upright line is the depth from which on "
        "the best token of the lens is the last one. Hidden: KL of the next readout over the whole "
        f"vocabulary with the slot hidden in one layer, in nats{beside}; level lines are all "
        "layers at once. Green dashed: the member without its siblings; grey: its siblings."
    )


def _draw_attention(axes: Axes, found: MemberNumbers) -> None:
    for each in found.siblings:
        axes.plot(each.attention_by_layer, **_LOOKS["siblings"], label="siblings")
    if found.control is not None:
        axes.plot(found.control.attention_by_layer, **_LOOKS["control"], label=_control(found))
    if found.alone is not None:
        axes.plot(found.alone.attention_by_layer, **_LOOKS["alone"], label="the member alone")
        axes.plot(found.odds_law[0].mean(-1), **_LOOKS["odds"], label="odds law from alone")
    axes.plot(found.chance[0], **_LOOKS["chance"], label="chance")
    axes.plot(found.member.attention_by_layer, **_LOOKS["member"], label="the member")
    axes.set(title="attention from the next step", ylabel="mean weight", xlabel="layer")
    # A cut axis would exaggerate the distance to chance.
    axes.set_ylim(bottom=0)


def _draw_norm(axes: Axes, found: MemberNumbers) -> None:
    for each in found.siblings:
        axes.plot(each.norm, **_LOOKS["siblings"])
    axes.plot(found.member.norm, **_LOOKS["member"])
    if found.alone is not None:  # over the member, which it often equals
        axes.plot(found.alone.norm, **_LOOKS["over"])
    # Log: the norm grows by orders of magnitude from the embedding to the last layer.
    axes.set(title="norm of its state", ylabel="L2 norm", xlabel="depth", yscale="log")


def _draw_lens(axes: Axes, found: MemberNumbers) -> None:
    lens = found.member.lens
    axes.plot(lens.own_kl_nats, **_LOOKS["member"])
    axes.plot(lens.readout_kl_nats, **_LOOKS["readout"], label="the set's readout || its lens")
    # Not log: the KL of the last depth to itself is exactly 0.
    axes.set_yscale("symlog", linthresh=_SMALLEST_KL)
    axes.set_ylim(bottom=0)
    axes.set(title="KL to its logit lens", ylabel="KL, nats", xlabel="depth")
    axes.axvline(lens.settles_at, color=INK, linestyle=":", linewidth=0.8)
    # The label goes towards the middle, so that it does not leave the panel.
    is_late = lens.settles_at > found.n_layers / 2
    axes.annotate(
        plain_text(f"{drawable_glyphs(lens.text[-1][0])} from depth {lens.settles_at}"),
        (lens.settles_at, 0.06),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_late else 4, 0),
        textcoords="offset points",
        ha="right" if is_late else "left",
        fontsize=7,
    )


def _draw_knocked(axes: Axes, found: MemberNumbers) -> None:
    for each in found.siblings:
        _draw_effect(axes, each.knocked, "siblings")
    if found.control is not None:
        _draw_effect(axes, found.control.knocked, "control")
    if found.alone is not None:
        _draw_effect(axes, found.alone.knocked, "alone")
    _draw_effect(axes, found.member.knocked, "member")
    axes.set(title="hidden from the next step", ylabel="KL of the readout, nats", xlabel="layer")
    axes.set_yscale("log")
    everywhere = 0.0 if found.member.knocked is None else found.member.knocked.every_layer_nats
    if everywhere > 0:
        axes.annotate(
            "all layers",
            (0.99, everywhere),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color=COLOURS[0],
        )


def _draw_effect(axes: Axes, knocked: KnockedOut | None, look: str) -> None:
    """A curve over single layers and a horizontal line for all of them; zeros are left out."""
    if knocked is None:
        return
    axes.plot(_positive(knocked.one_layer_nats), **_LOOKS[look])
    # One horizontal line for each sibling would cover the other three.
    if look != "siblings" and knocked.every_layer_nats > 0:
        colour = _LOOKS[look]["color"]
        axes.axhline(knocked.every_layer_nats, color=colour, linestyle=(0, (1, 1)), linewidth=0.9)


def _positive(values: Float64[np.ndarray, " layer"]) -> Float64[np.ndarray, " layer"]:
    # NaN breaks the curve there; matplotlib would clip a 0 to the bottom and join it.
    return np.where(values > 0, values, np.nan)


def _title(found: MemberNumbers) -> str:
    """Which member, of which set, and how many queries see it."""
    member, queries = found.member, found.n_queries[0]
    everyone = sorted((member, *found.siblings), key=lambda each: each.rank)
    others = (
        f": [{' | '.join(drawable_glyphs(each.text) for each in everyone)}]"
        if found.siblings
        else ""
    )
    first = f"\u201c{drawable_glyphs(member.text)}\u201d in {found.arm}, {found.model['name']}"
    second = (
        f"slot {member.slot}, rank {member.rank} of {found.width} in set {found.step}{others}; "
        f"n = 1 member, {queries} quer{'y' if queries == 1 else 'ies'}"
    )
    return plain_text(f"{first}\n{second}")


def _control(found: MemberNumbers) -> str:
    assert found.control is not None
    return plain_text(f"prompt slot {found.control.slot}, {drawable_glyphs(found.control.text)}")


def _draw_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Every label once, under the figure."""
    named: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
