"""The quality document of a concept: what was measured, on what, and beside what."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from analysis.concept.effect import ConceptEffect
from analysis.concept.heads import TOP, Concentration, ConceptHeads
from tempo_analysis.stats.intervals import Interval

FORMAT = 1

DEFINITIONS = {
    "raw_norm": "length of mean(positive) - mean(negative) at the input of the output projection",
    "selectivity": "raw_norm over the RMS distance of the negatives from their mean",
    "written_norm": "length of the same difference behind the head's output weights",
    "unbiased": "squared written length from halves of the pairs; about 0 without a difference",
    "auroc": "positive above negative along a direction fitted to other pairs; chance 0.5",
    "paired": "share of pairs left out whose own two sides are in order; chance 0.5",
    "head_concentration": "share of the longest heads in the total written length of a layer; "
    "chance is top / heads, null when pairs swap sides at random",
    "effective_heads": "(sum of written lengths)^2 / sum of their squares, for each layer",
    "assigned": "q < 0.05 over all heads when pairs swap sides, written_norm beyond the 99th "
    "percentile of the null over all heads, and auroc above 0.5",
}


def quality_document(
    found: ConceptHeads,
    layers: Sequence[int],
    *,
    skipped: Sequence[Mapping[str, object]] = (),
    effect: ConceptEffect | None = None,
    facts: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Everything as plain JSON; a number that has no value is null.

    Args:
        layers: Number of each captured layer.
        skipped: A mapping with layer, kind and reason for each of the others.
        facts: What else the caller knows: model, concept, pooling.
    """
    return {
        "format": FORMAT,
        **(facts or {}),
        "n_pairs": found.n,
        "folds": found.folds,
        "definitions": DEFINITIONS,
        "null_p99_written_norm": number(found.null_p99),
        "assigned": [
            f"L{layers[place]}H{head}" for place, head in np.argwhere(found.assigned).tolist()
        ],
        "layers": [_layer(found, place, layer) for place, layer in enumerate(layers)],
        "skipped": [dict(each) for each in skipped],
        "causal": None if effect is None else _effect(effect),
    }


def _layer(found: ConceptHeads, place: int, layer: int) -> dict[str, object]:
    order = np.argsort(-found.written_norm[place], kind="stable")[:TOP]
    return {
        "layer": layer,
        "head_concentration": _concentration(found.concentration, place),
        "raw_head_concentration": _concentration(found.raw_concentration, place),
        "top": [_head(found, place, int(head)) for head in order],
    }


def _head(found: ConceptHeads, place: int, head: int) -> dict[str, object]:
    names = ("raw_norm", "selectivity", "written_norm", "unbiased", "separation", "auroc")
    values = {name: number(getattr(found, name)[place, head]) for name in (*names, "paired", "q")}
    return {"head": head, **values, "assigned": bool(found.assigned[place, head])}


def _concentration(found: Concentration, place: int) -> dict[str, object]:
    return {
        "top": found.top,
        "share": number(found.share[place]),
        "chance": number(found.chance),
        "null": number(found.null[place]),
        "p": number(found.p[place]),
        "effective_heads": number(found.effective_heads[place]),
        "null_effective_heads": number(found.null_effective[place]),
        "effective_heads_p": number(found.effective_p[place]),
    }


def _effect(effect: ConceptEffect) -> dict[str, object]:
    names = ("base", "lost_top", "lost_random", "difference")
    found: dict[str, object] = {name: _interval(getattr(effect, name)) for name in names}
    return found | {"draws": effect.n_draws}


def _interval(interval: Interval) -> dict[str, object]:
    return {
        name: number(value) if isinstance(value, float) else value
        for name, value in asdict(interval).items()
    }


def number(value: float | np.floating) -> float | None:
    """As JSON has it: NaN and infinities are null."""
    return float(value) if math.isfinite(value) else None
