"""The results of a concept in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from tempo_analysis.report.document import limits, number
from tempo_analysis.studies.concepts.effect import ConceptEffect
from tempo_analysis.studies.concepts.separation import LEVEL


@dataclass(frozen=True, slots=True)
class Endings:
    """Differences of the two texts of a pair other than the concept.

    Attributes:
        same_last_token: Share of pairs whose texts end with the same token.
        positive_tokens: Mean length of the texts with the concept.
        negative_tokens: Mean length of the texts without it.
    """

    same_last_token: float
    positive_tokens: float
    negative_tokens: float


@dataclass(frozen=True, slots=True)
class Carried:
    """The result of the causal check: the intervals in words, and the verdict."""

    value: str
    verdict: str


def carried(effect: ConceptEffect) -> Carried:
    """Describe the causal check from its intervals.

    There is no verdict where the unchanged model does not separate the measured pairs: a share of a
    margin around 0 means nothing.
    """
    value = (
        f"they take away {limits(effect.lost_top)} of the margin between the sides, "
        f"{effect.n_draws} draws of random heads of the same layers "
        f"{limits(effect.lost_random)}; difference {limits(effect.difference)}"
    )
    return Carried(value, _verdict(effect))


def _verdict(effect: ConceptEffect) -> str:
    """The first condition that holds decides; positive means that the heads carry the concept."""
    base, top, difference = effect.base, effect.lost_top, effect.difference
    # The order matters: without limits, or a base margin, the later tests have no meaning.
    if np.isnan(difference.low) or np.isnan(difference.high) or np.isnan(base.low):
        return f"no verdict: {difference.method}"
    if base.low <= 0:
        return "no verdict: the untouched model does not separate these pairs"
    if difference.low <= 0 <= difference.high:
        return "indistinguishable from random heads"
    # The difference is chosen minus random, both as shares that are lost.
    if difference.high < 0:
        return "they carry less of the concept than random heads"
    # Random heads may also increase the margin: a difference alone is then no loss.
    if top.low <= 0:
        return "they differ from random heads, but that the margin needs them is not shown"
    return "they carry more of the concept than random heads"


def ending_sentence(endings: Endings, n_pairs: int, pooling: str) -> str:
    """Whether the two texts of a pair end with different tokens, and their lengths."""
    lengths = (
        f"{number(endings.positive_tokens)} tokens with the concept and "
        f"{number(endings.negative_tokens)} without, on average"
    )
    differing = round((1 - endings.same_last_token) * n_pairs)
    if not differing:
        return f"the two texts of every pair end with the same token; {lengths}"
    warning = (
        "there a head that only copies its token tells the sides apart"
        if pooling == "last"
        else "the mean over tokens includes them"
    )
    return f"{differing} of {n_pairs} pairs end with different tokens: {warning}; {lengths}"


def reach_sentence(n_heads: int, permutations: int, n_pairs: int) -> list[str]:
    """A warning where no head alone can reach q < 0.05; empty otherwise."""
    # the smallest p-value: one draw in all, and no less than 2 of the 2^n different swaps
    smallest = max(1 / (permutations + 1), 2.0 ** (1 - n_pairs))
    # Benjamini-Hochberg: k heads of equal p get q = p * n_heads / k
    needed = int(np.floor(smallest * n_heads / LEVEL)) + 1
    if needed == 1:
        return []
    return [
        f"with {permutations} swaps of {n_pairs} pairs no head can be assigned unless {needed} "
        f"of {n_heads} are equally sure; more permutations or pairs reach further"
    ]


def counted_sentence(counted: int, n_heads: int) -> str:
    """How many heads the concentration counts, with a warning where that is all of them."""
    if counted == n_heads:
        return (
            f"their share counts the {counted} longest of {n_heads} heads of a layer, so it is 1 "
            "whatever they do: read the effective heads"
        )
    return f"their share counts the {counted} longest of {n_heads} heads of a layer"


def skipped_sentences(skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which layers were skipped and why, a sentence for each kind of layer and reason."""

    def kind_and_reason(each: Mapping[str, Any]) -> tuple[str, str]:
        return str(each["kind"]), str(each["reason"])

    found = sorted(skipped, key=lambda each: (kind_and_reason(each), each["layer"]))
    return [
        f"skipped: {_layers([str(each['layer']) for each in group])} ({kind}): "
        f"expected one plain output projection of its heads, got {reason}"
        for (kind, reason), group in groupby(found, kind_and_reason)
    ]


def _layers(numbers: Sequence[str]) -> str:
    return f"layer{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
