"""Curves, bars and head maps of the page as data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo_analysis.parallel.divergence import Divergence
from tempo_analysis.parallel.entropy import CHANCE as EVEN_ENTROPY
from tempo_analysis.parallel.head_kinds import MEASURES
from tempo_analysis.parallel.ratio import CHANCE as EVEN_RATIO
from tempo_analysis.parallel.ratio import AttentionRatio
from tempo_analysis.parallel.run_numbers import ArmResults, RunNumbers
from tempo_analysis.parallel.set_effect import SetEffect
from tempo_analysis.report.document import plain
from tempo_analysis.report.packing import base64
from tempo_analysis.stats.intervals import Curve, Unanswered

Chart = dict[str, Any]
Series = dict[str, Any]


def charts(results: RunNumbers) -> list[Chart]:
    """Every chart for which there are data; `arm` is set in charts of one arm."""
    return [
        _entropy(results),
        *(_ratio(arm, each.ratio) for arm, each in results.by_arm.items() if each.ratio),
        *([_split(results.set_effects["without"])] if results.set_effects else []),
        *([_divergence(results.divergence)] if results.divergence else []),
    ]


def _entropy(results: RunNumbers) -> Chart:
    def series(without_sink: bool) -> Iterator[Series]:
        for arm, found in results.by_arm.items():
            funnel = found.entropy
            curve = funnel.normalised_without_sink if without_sink else funnel.normalised
            yield _series(arm, curve, is_null=arm == results.greedy)

    panels = [
        _panel(f"{word} slot 0", list(series(word == "without")), EVEN_ENTROPY, "even attention")
        # Both panels, since the sink alone lowers entropy: only without it does the distance to 1
        # tell how selective a head is.
        for word in ("with", "without")
    ]
    return _chart(
        "entropy_by_layer",
        "Entropy by layer",
        "Entropy of the rows of generated steps over the logarithm of the slots they see. The sink "
        "alone lowers it: read the panel without slot 0.",
        x="layer",
        y="entropy / ln(visible slots)",
        panels=panels,
    )


def _ratio(arm: str, by_sink: Mapping[str, AttentionRatio]) -> Chart:
    panels = []
    for word, ratio in by_sink.items():
        both = [_series(arm, ratio.by_step), _series("null", ratio.null_by_step, is_null=True)]
        # A series without points would still have its name in the key.
        has_null = bool((ratio.null_by_step.n > 0).any())
        panels.append(_panel(f"{word} slot 0", both[: 1 + has_null], EVEN_RATIO, "even attention"))
    return _chart(
        f"ratio_by_step_{arm}",
        f"Ratio by step, {arm}",
        "Mean weight per earlier slot in sets of width >= 2 over mean weight per other earlier "
        "slot. The null is the greedy run of the same prompts under the same labels.",
        x="step of the query",
        y="set slot / other slot",
        panels=panels,
        log=True,
        arm=arm,
    )


def _split(effect: SetEffect) -> Chart:
    panels = []
    for title, part in (("first sets", effect.first), ("all sets", effect.all_sets)):
        parts = [
            # In logarithms, because only there the two parts add up to the total of the stack.
            _series("score drift", _logarithm(part.by_layer["drift"])),
            _series("competition", _logarithm(part.by_layer["competition"])),
        ]
        # Level 0: a logarithm of the factor 1 that a token alone has.
        panels.append(_panel(title, parts, 0.0, "a token alone"))
    return _chart(
        "split_by_layer",
        f"What a set does to the mass of its members, {effect.arm}",
        "Log of (mass of a member in its set / its mass alone), split exactly into score drift "
        "(down-weighting) and competition (dilution). Bars add up to the marked total.",
        x="layer",
        y="log(in set / alone), nats",
        panels=panels,
        kind="stack",
    )


def _divergence(pairs: Mapping[str, Divergence]) -> Chart:
    panels = [
        _panel("JS divergence, nats", [_series(pair, one.js) for pair, one in pairs.items()], 0.0),
        _panel(
            "shared among the 10 best tokens",
            [_series(pair, one.top_overlap) for pair, one in pairs.items()],
            1.0,
        ),
    ]
    # One stored list without a complete tail is enough to make a curve a lower bound.
    is_bound = any(one.lower_bounds for one in pairs.values())
    return _chart(
        "readouts_by_step",
        "Readouts on identical tokens",
        "How far the next-token distributions of twins are apart."
        + (" JS is a lower bound: the tails of both lists were merged." if is_bound else ""),
        x="step",
        y="",
        panels=panels,
        shares_y=False,
    )


def _chart(
    key: str,
    title: str,
    note: str,
    *,
    x: str,
    y: str,
    panels: list[dict[str, Any]],
    log: bool = False,
    kind: str = "lines",
    arm: str | None = None,
    shares_y: bool = True,
) -> Chart:
    labels = {"key": key, "title": title, "note": note, "x": x, "y": y}
    looks = {"log": log, "kind": kind, "arm": arm, "sharesY": shares_y}
    return labels | {"panels": panels} | looks


def _panel(
    title: str, series: list[Series], same: float, name: str = "identical readouts"
) -> dict[str, Any]:
    """One panel; `same` is the value without any effect, marked by a line called `name`."""
    return {"title": title, "series": series, "level": same, "levelName": name}


def _series(name: str, curve: Curve, *, is_null: bool = False) -> Series:
    # Points without data are left out, not drawn at 0; NaN would become null in JSON.
    kept = curve.n > 0
    columns = ("x", "estimate", "low", "high", "n")
    values = {column: plain(getattr(curve, column)[kept]) for column in columns}
    return {"name": name, "isNull": is_null} | values


def _logarithm(curve: Curve) -> Curve:
    # A factor of 0 is -inf in nats, which `plain` writes as null.
    with np.errstate(divide="ignore"):
        estimate, low, high = (np.log(each) for each in (curve.estimate, curve.low, curve.high))
    return Curve(curve.x, estimate, low, high, curve.n, curve.methods, curve.simultaneous)


LABELS = {
    "sink": "mass on slot 0",
    "self": "mass on the query itself",
    "siblings": "mass on siblings",
    "recent": "mass at most 8 positions back",
    "distant": "mass further back",
    "earlier_sets": "mass on earlier sets",
    "local_without_sink": "local share without slot 0",
    "distant_without_sink": "distant share without slot 0",
    "distance_without_sink": "mean distance without slot 0",
    "max_weight": "largest weight",
    "normalised_entropy": "entropy / ln n",
    "normalised_entropy_without_sink": "entropy / ln n without slot 0",
}
_FIRST = ("normalised_entropy_without_sink", "sink")

HeadMap = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RoleMaps:
    """Maps of head roles from a census of the same model, and the reasons for missing ones."""

    maps: Sequence[HeadMap] = ()
    refusals: Sequence[Unanswered] = ()


def head_maps(results: RunNumbers) -> dict[str, list[HeadMap]]:
    """For each free arm its maps, the ratio first."""
    return {arm: [*_ratio_maps(found), *_measures(found)] for arm, found in results.by_arm.items()}


def _ratio_maps(found: ArmResults) -> Iterator[HeadMap]:
    for sink, ratio in found.ratio.items():
        # exp of a large log-ratio overflows to infinity, which is a valid value here and no error.
        with np.errstate(over="ignore"):
            value, null = np.exp(ratio.log_ratio_by_head), np.exp(ratio.log_null_by_head)
        yield coded_map(
            f"ratio_{sink}_sink",
            f"ratio set slot / other slot, {sink} slot 0",
            value,
            scale="log",
            chance=np.ones_like(value),
            null=null,
            q=ratio.q_value_by_head,
        )


def _measures(found: ArmResults) -> Iterator[HeadMap]:
    table = found.heads
    if table is None:
        return
    # The entropy without the sink first: it is the map that the sink does not decide.
    for name in (*_FIRST, *(name for name in MEASURES if name not in _FIRST)):
        scale = "positions" if name.startswith("distance") else "share"
        chance = table.chance_column(name)
        yield coded_map(name, LABELS[name], table.column(name), scale=scale, chance=chance)


def coded_map(
    key: str,
    label: str,
    value: Float64[np.ndarray, "layer head"],
    *,
    scale: str,
    **beside: Float64[np.ndarray, "layer head"],
) -> HeadMap:
    """One map of the page.

    `scale` is share (0 to 1), positions (from 0), log (a factor; 1 is in the middle) or score: from
    0 to the largest score or the threshold, on both sides of 0 where scores fall below it.
    """
    arrays = {"value": value, **beside}
    # Little-endian float32 whatever the machine, as the page's typed arrays expect; three digits
    # are shown, so float64 would be twice the bytes for nothing.
    coded = {name: base64(each.astype("<f4").tobytes()) for name, each in arrays.items()}
    return {"key": key, "label": label, "scale": scale} | coded
