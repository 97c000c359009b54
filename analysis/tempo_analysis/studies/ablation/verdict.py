"""Sentences about an ablation, generated from its intervals."""

from collections.abc import Sequence

import numpy as np

from tempo_analysis.report.document import number, stated
from tempo_analysis.stats.bands import point_of
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.ablation.effects import Effect
from tempo_analysis.studies.ablation.redundancy import (
    TOLERANCE,
    LayerSweep,
    Redundancy,
    RedundancyIndex,
    Sweep,
)

DILUTED = (
    "published means are over all tokens: those before t, which an edit of a head or an edge at t "
    "leaves as they are, dilute them"
)
CAPTURED = 0.9
"""Value of the lower limit of R from which A is reported to have captured what B removes.

The limit and not the estimate, as a wide interval is no evidence."""
SCALE = (
    "R: 1 = A has already removed what B removes, 0 = B loses the same share with A and without; "
    "below 0 and above 1 are possible. Each share is of its own reference and A shortens that of "
    "A|AB, so where A removes something else R falls below 0; the overlap of the removed vectors "
    "does not"
)


def has_limits(found: Interval) -> bool:
    """Whether an interval is known."""
    return not (np.isnan(found.low) or np.isnan(found.high))


def includes(found: Interval, value: float) -> bool:
    """Whether an interval contains a value, within the tolerance of the indices."""
    # Identical passes give limits of zero width that rounding puts beside the value.
    return bool(found.low - TOLERANCE <= value <= found.high + TOLERANCE)


def effect_sentences(effects: Sequence[Effect], layers: Sequence[int]) -> list[str]:
    """The effect of each condition at t, compared with its control."""
    lines = [_effect(effect, layers) for effect in effects if not effect.is_control]
    return [*lines, DILUTED] if lines else []


def redundancy_sentences(
    name: str, found: Redundancy, *, is_own: bool = False, is_other: bool = False
) -> list[str]:
    """Both indices at the layers in which A acts.

    Args:
        name: Of the test.
        found: The test.
        is_own: Whether A removes the listed heads: R in the first layer is then 1 by construction.
        is_other: Whether A removes other heads: the overlap there is then 0 by construction.
    """
    # Only the first: in later layers the edits of the first already change queries and keys.
    known = found.layers[0] if is_own or is_other else None
    return [
        _by_construction(name, index, layer, is_own=is_own)
        if index.scope == "listed" and layer == known
        else _index(name, index, layer, found.n_prompts)
        for layer in found.layers
        for index in found.indices
    ]


def sweep_sentences(name: str, found: Sweep, *, is_own: bool = False) -> list[str]:
    """Offsets at which A has captured what B removes, and those without a conclusion.

    Args:
        name: Of the sweep.
        found: The sweep.
        is_own: Whether B removes the values of the same heads that A silences.
    """
    known = found.layers[:1] if is_own else ()
    lines = [
        f"{name}, sweep, layer {one.layer}: A silences the heads whose values B takes out, so "
        "base|AB equals base|A by construction: no finding"
        for one in known
    ]
    others = found.layers[len(known) :]
    return lines + [f"{name}, sweep, layer {one.layer}: {_sweep(one)}" for one in others]


def index_reading(found: Interval, *, is_share: bool) -> str:
    """R or the overlap in words.

    Args:
        found: The interval.
        is_share: True for R, whose losses are shares of two different references.
    """
    if np.isnan(found.estimate):
        return "undefined, since B alone may change nothing"
    if not has_limits(found):
        return "no verdict"
    # Both may be in a wide interval, so this case is tested first.
    zero, one = includes(found, 0.0), includes(found, 1.0)
    if zero and one:
        return "no verdict: anything from independent to removed already"
    if one:
        return "consistent with A having removed all that B removes"
    if zero:
        return "indistinguishable from independent"
    if found.high < 0 and is_share:
        return "B takes a larger share of what A leaves than of the whole"
    if found.high < 0:
        return "B removes more along the same line after A than before"
    if found.low > 1:
        return "after A, B gives back what it removed before"
    return "A has removed a part of what B removes"


def control_reading(found: Interval) -> str:
    """A condition minus its control, in words."""
    if np.isnan(found.estimate) or not has_limits(found):
        return "no verdict"
    if found.low <= 0 <= found.high:
        return "indistinguishable from its control"
    # The sign is condition minus control.
    return "more than its control" if found.low > 0 else "less than its control"


def spelled(numbers: Sequence[int]) -> str:
    """Sorted whole numbers as text, with runs of three or more as `3-7`."""
    runs: list[list[int]] = []
    for each in sorted(numbers):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    # Two in a row stay apart: "3-4" is no shorter than "3, 4" and less clear.
    parts = [[f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return ", ".join(text for part in parts for text in part)


def _effect(effect: Effect, layers: Sequence[int]) -> str:
    kl, top = effect.numbers["kl_at_t_nats"], effect.numbers["top_1_changed_at_t"]
    kept = "; ".join(f"NIP at layer {layer} {stated(effect.nip.at(layer))}" for layer in layers)
    said = (
        f"{effect.comparison}, {kl.n} prompts: KL at t {stated(kl)} nats, most probable token "
        f"changed in a share of {stated(top)}{'; ' if kept else ''}{kept}"
    )
    # KL is compared with the control, as it is defined for every condition and any t.
    less = effect.less_control
    if less is None:
        return f"{said}; no control was run, so nothing says how much any other edit would do"
    gap = less.numbers["kl_at_t_nats"]
    return f"{said}; KL less {less.control} {stated(gap)}: {control_reading(gap)}"


def _index(name: str, index: RedundancyIndex, layer: int, n_prompts: int) -> str:
    pooled, gone = point_of(index.pooled, layer), index.overlap.at(layer)
    return (
        f"{name}, redundancy, values of {index.scope} heads, layer {layer}, {n_prompts} prompts: "
        f"R {stated(pooled)}, {index_reading(pooled, is_share=True)}; overlap {stated(gone)}, "
        f"{index_reading(gone, is_share=False)}"
    )


def _by_construction(name: str, index: RedundancyIndex, layer: int, *, is_own: bool) -> str:
    """The value that the first edited layer must have, and the measured value."""
    where = f"{name}, redundancy, values of listed heads, layer {layer}, a check and no finding"
    if not is_own:
        gone = index.overlap.at(layer).estimate
        return f"{where}: other heads are silent, so the overlap must be 0; it is {number(gone)}"
    pooled = point_of(index.pooled, layer).estimate
    return f"{where}: these heads are silent, so R must be 1; it is {number(pooled)}"


def _sweep(one: LayerSweep) -> str:
    offsets = one.beyond_a.curve.x.tolist()
    alone = {each: one.nip["base|B"].at(each) for each in offsets}
    known = [each for each in offsets if has_limits(alone[each])]
    if not known:
        return f"no reading: {alone[offsets[0]].method}"
    # First whether B works alone: a flat base|AB proves nothing where B has no effect anyway.
    works = [each for each in known if not includes(alone[each], 1.0)]
    firm = [each for each in works if point_of(one.pooled, each).low >= CAPTURED]
    bent = [each for each in works if each not in firm and not includes(one.beyond_a.at(each), 0.0)]
    flat = [each for each in works if each not in firm and each not in bent]
    idle = [each for each in known if each not in works]
    changes = "B alone changes the output and"
    readings = (
        (firm, f"{changes} A has captured at least {CAPTURED:.0%} of it", True),
        (bent, f"{changes} base|AB differs from base|A: not all of it is captured", True),
        (
            flat,
            f"{changes} base|AB is not told apart from base|A, which is no evidence that A has "
            "captured it",
            True,
        ),
        (
            idle,
            "B alone is not shown to change anything, so a flat base|AB says nothing there",
            False,
        ),
    )
    return "; ".join(
        f"at offset {spelled(which)} {reading}{_indices(one, which) if measured else ''}"
        for which, reading, measured in readings
        if which
    )


def _indices(one: LayerSweep, offsets: Sequence[int]) -> str:
    parts = [
        f"at {each} ({one.beyond_a.at(each).n} prompts) R {stated(point_of(one.pooled, each))}, "
        f"overlap {stated(one.overlap.at(each))}"
        for each in offsets
    ]
    return f" ({'; '.join(parts)})"
