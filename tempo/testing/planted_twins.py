"""A planted run with its twins: for every member of a set, the same run without its siblings.

Weights must follow from tokens and steps, never from slot numbers, or the twins differ by more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from tempo.testing.planted import VOCABULARY, Pattern, Place, planted_trace, uniform
from tempo.trace.schema import tensor_name
from tempo.trace.trace import Trace
from tempo.vocabulary import PROMPT_STEP, SINK_SLOT

_ROWS = ("weights", "logsumexp", "q", "visible/full")


@dataclass(frozen=True, slots=True)
class Twins:
    """A run with its sets, and the twin of each member by (step, rank)."""

    in_set: Trace
    alone: Mapping[tuple[int, int], Trace]

    def of_set(self, step: int) -> list[Trace]:
        """The twins of one set, in rank order."""
        return [trace for (number, _), trace in sorted(self.alone.items()) if number == step]


def by_token(spread: float = 1.0, *, seed: int = 0) -> Pattern:
    """A score for each pair of tokens, a normal draw for each layer and head: independent odds."""

    @cache
    def weights(n_layers: int, n_heads: int) -> Float64[np.ndarray, "layer head token token"]:
        shape = (n_layers, n_heads, VOCABULARY, VOCABULARY)
        return np.exp(np.random.default_rng(seed).normal(0, spread, shape))

    def pattern(place: Place) -> Float64[np.ndarray, "layer head query slot"]:
        token = place.table.token
        drawn = weights(place.n_layers, place.n_heads)
        return drawn[:, :, token[place.queries][:, None], token[None, :]]

    return pattern


def both(first: Pattern, second: Pattern) -> Pattern:
    """Scores added up: the product of two patterns."""

    def product(place: Place) -> Float[np.ndarray, "..."]:
        return first(place) * second(place)

    return product


def pull_to_sink(factor: float) -> Pattern:
    """Slot 0 weighs `factor` times as much for the queries right after a set of width >= 2."""

    def pattern(place: Place) -> Float64[np.ndarray, "query slot"]:
        follows_set = len(place.table.members(place.step - 1)) >= 2 and place.step > 1
        sink = np.arange(len(place.table)) == SINK_SLOT
        return np.where(sink & follows_set, factor, 1.0) * np.ones(place.visible.shape)

    return pattern


def planted_twins(
    widths: Sequence[int] = (2, 1, 3, 1),
    *,
    prompt_length: int = 5,
    rows: Pattern = uniform,
    seed: int = 0,
    **plan: Any,
) -> Twins:
    """A run of shared positions and its twins, which hold rows at the step after the set only.

    All tokens of the run are distinct. The other keywords are fields of `planted.Plan`.
    """
    n_slots = prompt_length + sum(widths)
    tokens = np.random.default_rng(seed).permutation(VOCABULARY)[:n_slots].tolist()
    plan |= {"prompt_length": prompt_length, "rows": rows, "seed": seed}
    in_set = _marked(planted_trace(widths=widths, tokens=tokens, **plan))
    alone = {
        (step, rank): _alone(in_set, step, rank, plan)
        for step, width in enumerate(widths, 1)
        if width >= 2 and step < len(widths)
        for rank in range(width)
    }
    return Twins(in_set, alone)


def _alone(in_set: Trace, step: int, rank: int, plan: Mapping[str, Any]) -> Trace:
    table = in_set.slots
    siblings: Int64[np.ndarray, " sibling"] = np.delete(table.members(step), rank)
    widths = np.bincount(table.step)[1:].tolist()
    widths[step - 1] = 1
    tokens = np.delete(table.token, siblings).tolist()
    return _only_rows(_marked(planted_trace(widths=widths, tokens=tokens, **plan)), step + 1)


def _only_rows(trace: Trace, step: int) -> Trace:
    """The trace with attention at one step only; slots, keys and choices stay."""
    others = [other for other in range(PROMPT_STEP, trace.n_steps + 1) if other != step]
    dropped = {tensor_name(other, name) for other in others for name in _ROWS}
    return replace(trace, tensors={n: t for n, t in trace.tensors.items() if n not in dropped})


def _marked(trace: Trace) -> Trace:
    """The trace with the fingerprint that every planted model shares."""
    model = dict(trace.header.model) | {"fingerprint": "planted"}
    return replace(trace, header=replace(trace.header, model=model))
