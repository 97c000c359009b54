"""Figures of a boost; only means and their limits are computed here."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tempo_analysis.report.figure_style import (
    FAINT,
    INK,
    Drawing,
    colour,
    house_style,
    new_figure,
    plain_text,
)
from tempo_analysis.stats.bands import band
from tempo_analysis.studies.boost.dose_matching import Restoring
from tempo_analysis.studies.boost.dose_response import CONTROL, BoostNumbers, Dose

_NARROW = 1e-3
_TITLES = {
    "response": "Dose and response",
    "restoring": "The dose that gives members their mass alone",
    "free": "Decoded freely under the bias",
}
_CAPTIONS = {
    "response": "Change from the run without a bias on identical tokens, by dose and target. "
    "Lines: means over prompts; bands: 95 % limits that hold at all doses at once. Dotted: no "
    "change. The control has the same bias on as many slots in no set.",
    "restoring": "log(mass of a member in its set / mass alone) by dose, in the biased heads. "
    "Lines and bands: means over prompts, 95 % limits at all doses at once. Dotted: the mass "
    "alone. Vertical: the dose that restores it, mean over prompts with its 95 % interval; dashed: "
    "the same by the odds law; n: prompts that have such a dose.",
    "free": "Decoded freely under the bias, texts of one length; change from no bias. Bands: 95 % "
    "limits at all doses at once. The top path is scored by the model without bias.",
}
_SHORT = {
    "kl": "KL from no bias, nats",
    "top_1_changed": "top token changed, share",
    "log_entropy": "log entropy ratio",
    "set_nll": "-log p of the next set, nats",
    "mixture_kl": "KL from exact mixture, nats",
    "share": "share on biased slots",
    "path_nll": "-log p of top path, nats/token",
    "distinct_2": "different bigrams, share",
    "branches": "effective branches",
    "repetition": "repeated trigrams, share",
}
_FAMILIES = (
    ("all", "control"),
    ("first third", "middle third", "last third"),
    ("set readers", "other heads"),
)
_RESPONSE = ("kl", "top_1_changed", "log_entropy", "set_nll", "mixture_kl", "share")
_FREE = ("path_nll", "distinct_2", "branches", "repetition")


def boost_drawings(found: BoostNumbers) -> tuple[Drawing, ...]:
    """Every figure that has something to show."""
    made = {
        "response": response_figure(found) if found.doses else None,
        "restoring": restoring_figure(found),
        "free": free_figure(found),
    }
    return tuple(
        Drawing(name, _TITLES[name], _CAPTIONS[name], figure)
        for name, figure in made.items()
        if figure is not None
    )


def response_figure(found: BoostNumbers) -> Figure:
    """A row for each measure, a column for each family of targets, dose by dose."""
    columns = [[d for d in found.doses if _family(d.target) == n] for n in range(len(_FAMILIES))]
    return _panels([one for one in columns if one], _RESPONSE, seed=found.seed)


def free_figure(found: BoostNumbers) -> Figure | None:
    """The same for texts decoded freely; None if there are none."""
    if not found.free:
        return None
    return _panels([[dose] for dose in found.free], _FREE, seed=found.seed)


def restoring_figure(found: BoostNumbers) -> Figure | None:
    """The curve of each target and the dose at which it is 0; None if there is no target."""
    if not found.restoring:
        return None
    columns = min(3, len(found.restoring))
    # Division rounded up.
    rows = -(-len(found.restoring) // columns)
    with house_style():
        figure = new_figure(0.4 + 2.3 * rows)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for place, one in enumerate(found.restoring):
            _draw_restoring(axes[place], found, one, place)
        for rest in axes[len(found.restoring) :]:
            rest.set_visible(False)
        for row in range(rows):
            axes[row * columns].set_ylabel("log(in the set / alone), nats", fontsize=7)
        for place in range(len(found.restoring)):
            _set_doses(axes[place], found.betas)
            axes[place].tick_params(labelbottom=True)
    return figure


def _family(target: str) -> int:
    """Column of a target; heads named by a caller are in that of the groups of heads."""
    places = [n for n, names in enumerate(_FAMILIES) if target in names]
    return places[0] if places else len(_FAMILIES) - 1


def _panels(columns: Sequence[Sequence[Dose]], measures: Sequence[str], *, seed: int) -> Figure:
    with house_style():
        figure = new_figure(0.7 + 1.45 * len(measures))
        # sharey: one scale for each measure, so that targets can be compared along a row.
        axes = figure.subplots(
            len(measures), len(columns), sharex=True, sharey="row", squeeze=False
        )
        for row, name in enumerate(measures):
            for place, doses in enumerate(columns):
                _draw_changes(axes[row, place], doses, name, seed)
            axes[row, 0].set_ylabel(_SHORT[name], fontsize=7)
            # The y axis is shared along the row: one panel is enough.
            _widen(axes[row, 0])
        for place, doses in enumerate(columns):
            _set_doses(axes[-1, place], doses[0].betas)
            axes[0, place].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=6.5)
        n = len(columns[0][0].values[measures[0]])
        figure.align_ylabels()
        figure.suptitle(f"change from no bias; {n} prompts", fontsize=8)
    return figure


def _widen(axes: Axes) -> None:
    """Widen a very narrow y axis, on which rounding would look like an effect."""
    low, high = axes.get_ylim()
    if high - low < _NARROW:
        axes.set_ylim((low + high) / 2 - _NARROW, (low + high) / 2 + _NARROW)


def _set_doses(axes: Axes, betas: Sequence[float]) -> None:
    """Ticks at the doses, and the label of the axis."""
    axes.set_xticks(list(betas), [f"{beta:g}" for beta in betas], fontsize=7)
    axes.set_xlabel("bias, nats")


def _draw_changes(axes: Axes, doses: Sequence[Dose], measure: str, seed: int) -> None:
    for number, dose in enumerate(doses):
        _draw_change(axes, dose, measure, number, seed)
    axes.axhline(0, color=FAINT, linestyle=":", linewidth=0.8)


def _draw_change(axes: Axes, dose: Dose, measure: str, number: int, seed: int) -> None:
    # By index: a band is over integer points; the doses are only drawn at their values.
    found = band(np.arange(len(dose.betas)), dose.change(measure), seed=seed)
    betas = np.asarray(dose.betas)
    ink, style = (INK, "--") if dose.target == CONTROL else (colour(number), "-")
    label = plain_text(f"{dose.target} ({dose.n_heads} heads)")
    axes.fill_between(betas, found.low, found.high, color=ink, alpha=0.18, linewidth=0)
    axes.plot(betas, found.estimate, style, color=ink, marker="o", ms=2, label=label, linewidth=1)


def _draw_restoring(axes: Axes, found: BoostNumbers, one: Restoring, number: int) -> None:
    dose = found.dose(one.target)
    betas = np.asarray(dose.betas)
    curve = band(np.arange(len(betas)), dose.values["log_ratio"], seed=found.seed)
    ink = colour(number)
    axes.fill_between(betas, curve.low, curve.high, color=ink, alpha=0.2, linewidth=0)
    axes.plot(betas, curve.estimate, color=ink, marker="o", ms=2, linewidth=1)
    axes.axhline(0, color=FAINT, linestyle=":", linewidth=0.8)
    # No limits with too few prompts; the line of the estimate stays.
    if np.isfinite(one.measured.low):
        axes.axvspan(one.measured.low, one.measured.high, color=ink, alpha=0.2, linewidth=0)
    for where, style in ((one.measured.estimate, "-"), (one.law.estimate, "--")):
        if np.isfinite(where):
            axes.axvline(where, color=INK, linestyle=style, linewidth=0.8)
    told = "none" if np.isnan(one.measured.estimate) else f"{one.measured.estimate:.2f}"
    law = "none" if np.isnan(one.law.estimate) else f"{one.law.estimate:.2f}"
    n = f"n = {one.measured.n} of {len(one.by_prompt)}"
    axes.set_title(f"{plain_text(one.target)}\nat {told}, law {law}; {n}", fontsize=7)
