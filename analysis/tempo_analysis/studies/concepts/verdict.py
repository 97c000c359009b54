"""What the numbers of a concept mean, in sentences generated from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from tempo_analysis.report.numbers import limits, number
from tempo_analysis.studies.concepts.effect import ConceptEffect
from tempo_analysis.studies.concepts.separation import LEVEL


@dataclass(frozen=True, slots=True)
class Endings:
    """What sets the two texts of a pair apart besides the concept.

    Attributes:
        same_last_token: Share of pairs whose texts end with the same token.
        positive_tokens: Mean length of the texts with the concept.
        negative_tokens: Mean length of the others.
    """

    same_last_token: float
    positive_tokens: float
    negative_tokens: float


@dataclass(frozen=True, slots=True)
class Carried:
    """How much of the difference goes with the heads, and what that means."""

    value: str
    verdict: str


def carried(effect: ConceptEffect) -> Carried:
    """The causal check in words, from its intervals alone.

    No share is a share of nothing: where the untouched model does not separate the pairs that were
    measured, there is no verdict.
    """
    value = (
        f"they take away {limits(effect.lost_top)} of the margin between the sides, "
        f"{effect.n_draws} draws of random heads of the same layers "
        f"{limits(effect.lost_random)}; difference {limits(effect.difference)}"
    )
    return Carried(value, _verdict(effect))


def _verdict(effect: ConceptEffect) -> str:
    base, top, difference = effect.base, effect.lost_top, effect.difference
    if np.isnan(difference.low) or np.isnan(difference.high) or np.isnan(base.low):
        return f"no verdict: {difference.method}"
    if base.low <= 0:
        return "no verdict: the untouched model does not separate these pairs"
    if difference.low <= 0 <= difference.high:
        return "indistinguishable from random heads"
    if difference.high < 0:
        return "they carry less of the concept than random heads"
    if top.low <= 0:
        return "they differ from random heads, but that the margin needs them is not shown"
    return "they carry more of the concept than random heads"


def ending_sentence(endings: Endings, n_pairs: int, pooling: str) -> str:
    """Whether the tokens that are read differ by themselves."""
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
    """Whether one head alone could be assigned; if not, how many must be equally sure."""
    smallest = max(1 / (permutations + 1), 2.0 ** (1 - n_pairs))
    needed = int(np.floor(smallest * n_heads / LEVEL)) + 1
    if needed == 1:
        return []
    return [
        f"with {permutations} swaps of {n_pairs} pairs no head can be assigned unless {needed} "
        f"of {n_heads} are equally sure; more permutations or pairs reach further"
    ]


def counted_sentence(counted: int, n_heads: int) -> str:
    """What the share of the longest heads counts, and whether it can say anything."""
    if counted == n_heads:
        return (
            f"their share counts the {counted} longest of {n_heads} heads of a layer, so it is 1 "
            "whatever they do: read the effective heads"
        )
    return f"their share counts the {counted} longest of {n_heads} heads of a layer"


def skipped_sentences(skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which layers were skipped and why, a line for each kind."""

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
