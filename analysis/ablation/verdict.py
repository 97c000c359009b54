"""What the numbers of an ablation mean, in sentences generated from their intervals."""

from collections.abc import Sequence

import numpy as np

from analysis.ablation.effects import Effect
from analysis.ablation.pooled import TOLERANCE
from analysis.ablation.redundancy import Index, Redundancy
from analysis.ablation.spread import point_of
from analysis.ablation.sweep import LayerSweep, Sweep
from analysis.numerals import limits
from analysis.statistics import Interval

DILUTED = (
    "published means count the tokens before t, which cannot differ: they are the mean from t on "
    "times (T - t) / T"
)
SCALE = (
    "R: 1 = A has already removed what B removes, 0 = B loses the same share with A and without; "
    "below 0 and above 1 are possible. Each share is of its own reference and A shortens that of "
    "A|AB, so where A removes something else R falls below 0; the overlap of the removed vectors "
    "does not. Where A silences exactly the listed heads, R of their values is 1 by construction: "
    "a check and no finding"
)


def has_limits(found: Interval) -> bool:
    """Whether there is an interval at all."""
    return not (np.isnan(found.low) or np.isnan(found.high))


def includes(found: Interval, value: float) -> bool:
    """Whether an interval holds a value, within the tolerance of the indices."""
    return bool(found.low - TOLERANCE <= value <= found.high + TOLERANCE)


def effect_sentences(effects: Sequence[Effect], layers: Sequence[int]) -> list[str]:
    """What each condition does at t, and whether its control does as much."""
    told = [_effect(effect, layers) for effect in effects if not effect.is_control]
    return [*told, DILUTED] if told else []


def redundancy_sentences(name: str, found: Redundancy) -> list[str]:
    """Both indices at the layers where A acts."""
    return [
        _index(name, index, layer, found.n_prompts)
        for layer in found.layers
        for index in found.indices
    ]


def sweep_sentences(name: str, found: Sweep) -> list[str]:
    """Where a flat base|AB may be read as "A has captured it", and where it says nothing."""
    return [f"{name}, sweep, layer {one.layer}: {_sweep(one)}" for one in found.layers]


def index_reading(found: Interval, *, is_share: bool) -> str:
    """R (a share of each reference), or the overlap, in words."""
    if np.isnan(found.estimate):
        return "undefined, since B alone may change nothing"
    if not has_limits(found):
        return f"no verdict: {found.method}"
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
    """A condition less its control, in words."""
    if np.isnan(found.estimate) or not has_limits(found):
        return f"no verdict: {found.method}"
    if found.low <= 0 <= found.high:
        return "indistinguishable from its control"
    return "more than its control" if found.low > 0 else "less than its control"


def spelled(numbers: Sequence[int]) -> str:
    """Whole numbers in order, runs of three or more as `3-7`."""
    runs: list[list[int]] = []
    for each in sorted(numbers):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    parts = [[f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return ", ".join(text for part in parts for text in part)


def _effect(effect: Effect, layers: Sequence[int]) -> str:
    kl, top = effect.numbers["kl_at_t_nats"], effect.numbers["top_1_changed_at_t"]
    kept = "; ".join(f"NIP at layer {layer} {limits(effect.nip.at(layer))}" for layer in layers)
    said = (
        f"{effect.comparison}, {kl.n} prompts: KL at t {limits(kl)} nats, most probable token "
        f"changed in a share of {limits(top)}{'; ' if kept else ''}{kept}"
    )
    less = effect.less_control
    if less is None:
        return f"{said}; no control was run, so nothing says how much any other edit would do"
    gap = less.numbers["kl_at_t_nats"]
    return f"{said}; KL less {less.control} {limits(gap)}: {control_reading(gap)}"


def _index(name: str, index: Index, layer: int, n_prompts: int) -> str:
    pooled, gone = point_of(index.pooled, layer), index.overlap.at(layer)
    return (
        f"{name}, redundancy, values of {index.scope} heads, layer {layer}, {n_prompts} prompts: "
        f"R {limits(pooled)}, {index_reading(pooled, is_share=True)}; overlap {limits(gone)}, "
        f"{index_reading(gone, is_share=False)}"
    )


def _sweep(one: LayerSweep) -> str:
    offsets = one.beyond_a.curve.x.tolist()
    alone = {each: one.nip["base|B"].at(each) for each in offsets}
    told = [each for each in offsets if has_limits(alone[each])]
    if not told:
        return f"no reading: {alone[offsets[0]].method}"
    works = [each for each in told if not includes(alone[each], 1.0)]
    idle = [each for each in told if each not in works]
    flat = [each for each in works if includes(one.beyond_a.at(each), 0.0)]
    vague = [each for each in flat if _may_do_all(one, each)]
    firm = [each for each in flat if each not in vague]
    bent = [each for each in works if each not in flat]
    parts = [_captured(one, firm)] if firm else []
    if vague:
        parts.append(
            f"at offset {spelled(vague)} base|AB is indistinguishable from base|A, but the "
            f"interval also holds all that B does alone: no reading; {_indices(one, vague)}"
        )
    if bent:
        parts.append(
            f"at offset {spelled(bent)} B alone changes the output and base|AB differs from "
            f"base|A: not all of it is captured; {_indices(one, bent)}"
        )
    if idle:
        parts.append(
            f"at offset {spelled(idle)} B alone is not shown to change anything, so a flat base|AB "
            "says nothing there"
        )
    return "; ".join(parts)


def _may_do_all(one: LayerSweep, offset: int) -> bool:
    """Whether B may take away with A as much of the same reference as it does alone."""
    return one.beyond_a.at(offset).low <= one.nip["base|B"].at(offset).estimate - 1


def _captured(one: LayerSweep, flat: Sequence[int]) -> str:
    return (
        f"at offset {spelled(flat)} B alone changes the output and base|AB is indistinguishable "
        f"from base|A, which licenses the reading that A has captured it; {_indices(one, flat)}"
    )


def _indices(one: LayerSweep, offsets: Sequence[int]) -> str:
    return "; ".join(
        f"at {each} R {limits(point_of(one.pooled, each))}, overlap {limits(one.overlap.at(each))}"
        for each in offsets
    )
