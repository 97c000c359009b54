"""Are the members of a set down-weighted, or only diluted? The exact split over prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float64

from analysis.averages import RowAverage, average_rows, mean_over_prompts
from analysis.companions import SMALLEST_SET
from analysis.ratio import Sink
from analysis.split import Cells, MemberCells, SetSplit, split_set
from analysis.statistics import (
    SEED,
    Interval,
    benjamini_hochberg,
    estimate_with_interval,
    p_values,
)
from tempo.errors import InputError, NoParallelSetsError, TwinError
from tempo.trace.trace import Trace

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Terms(Generic[T]):
    """One of something for each part of the split, all in nats.

    total = drift + competition, competition = predicted + elsewhere; see `analysis.split.SetSplit`.
    """

    total: T
    drift: T
    competition: T
    predicted: T
    elsewhere: T
    sink_gain: T
    set_gain: T

    def map(self, function: Callable[[T], U]) -> "Terms[U]":
        """The same function of each."""
        return Terms(**{name: function(getattr(self, name)) for name in TERMS})


TERMS = tuple(field.name for field in fields(Terms))


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """One prompt; every (member, query) of every set counts once, heads and layers apart.

    Attributes:
        first: Means over its first set of width >= 2 only, where *alone* is a plain sequential run
            up to the set; no data where that set could not be split.
        all_sets: Means over every set that could be split.
        n_sets: How many these were.
        n_members: Their members.
        n_left_out: Sets of width >= 2 with a step after them that lack the twin of a member. The
            last set of a run is read by no query and counts nowhere.
    """

    reference: Sink
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    first: Terms[RowAverage]
    all_sets: Terms[RowAverage]
    n_sets: int
    n_members: int
    n_left_out: int


@dataclass(frozen=True, slots=True)
class Split:
    """The split over prompts.

    Attributes:
        interval: Mean over prompts of the prompt's mean over layers, heads, members and queries.
        by_prompt: The values behind it; NaN where a prompt has no data.
        by_layer: For each prompt, means within each layer.
        drift_by_head: Mean over prompts of each head's own drift.
        q_value_by_head: Is the head's drift 0? t over prompts; adjusted over layers x heads
            (Benjamini-Hochberg); NaN where not tested.
    """

    interval: Terms[Interval]
    by_prompt: Terms[Float64[np.ndarray, " prompt"]]
    by_layer: Terms[Float64[np.ndarray, "prompt layer"]]
    drift_by_head: Float64[np.ndarray, "layer head"]
    q_value_by_head: Float64[np.ndarray, "layer head"]


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Change of the attention to a token by its siblings, split into drift and competition.

    Everything is a log-ratio in nats: 0 is no change. Computed per layer, head and query, averaged
    within a prompt, means and intervals over prompts.

    Attributes:
        reference: The prompt "with" or "without" slot 0 is what scores are relative to.
        first: First sets of width >= 2 only.
        all_sets: All of them.
        n_sets: Sets split, over all prompts.
        n_members: Their members.
        n_left_out: Sets left out because a twin is missing.
    """

    reference: Sink
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    first: Split
    all_sets: Split
    n_sets: int
    n_members: int
    n_left_out: int


def prompt_split(
    in_set: Trace, alone: Mapping[tuple[int, int], Trace], *, reference: Sink
) -> PromptSplit:
    """Split every set of one prompt that has a twin for each member.

    Args:
        in_set: The run with its sets.
        alone: The twin of each member, by (step, rank).
        reference: The prompt "with" or "without" slot 0.

    Raises:
        TwinError: A twin is of no member of a set of width >= 2, or differs by more than siblings.
        LevelError: A trace was reduced to group masses.
    """
    ranks = {step: range(len(in_set.members(step))) for step in range(1, in_set.n_steps + 1)}
    wide = [step for step, members in ranks.items() if len(members) >= SMALLEST_SET]
    keys = {step: [(step, rank) for rank in ranks[step]] for step in wide}
    unknown = sorted(set(alone) - {key for step in wide for key in keys[step]})
    if unknown:
        raise TwinError(f"expected twins of members of parallel sets, got (step, rank) {unknown}")
    read = [step for step in wide if step < in_set.n_steps]
    whole = [step for step in read if all(key in alone for key in keys[step])]
    sets = [
        split_set(in_set, [alone[key] for key in keys[step]], step=step, reference=reference)
        for step in whole
    ]
    return PromptSplit(
        reference=reference,
        layers=in_set.layers,
        heads=in_set.heads,
        first=_averages(in_set, sets[: int(whole[:1] == wide[:1])]),
        all_sets=_averages(in_set, sets),
        n_sets=len(sets),
        n_members=sum(len(ranks[step]) for step in whole),
        n_left_out=len(read) - len(whole),
    )


def decomposition(prompts: Sequence[PromptSplit], *, seed: int = SEED) -> Decomposition:
    """Combine prompts.

    Raises:
        NoParallelSetsError: No prompt has a set that could be split.
        InputError: The prompts differ in reference, layers or heads.
    """
    n_sets = sum(prompt.n_sets for prompt in prompts)
    if n_sets == 0:
        raise NoParallelSetsError(
            "expected a set of width 2 or more, with a step after it and a twin for each member, "
            "got none; lower the threshold or decode more steps"
        )
    kinds = {(prompt.reference, prompt.layers, prompt.heads) for prompt in prompts}
    if len(kinds) > 1:
        raise InputError(
            "expected prompts split by the same reference, layers and heads, got "
            f"{len(kinds)} kinds; split all of them alike"
        )
    return Decomposition(
        reference=prompts[0].reference,
        layers=prompts[0].layers,
        heads=prompts[0].heads,
        first=_over_prompts([prompt.first for prompt in prompts], seed),
        all_sets=_over_prompts([prompt.all_sets for prompt in prompts], seed),
        n_sets=n_sets,
        n_members=sum(prompt.n_members for prompt in prompts),
        n_left_out=sum(prompt.n_left_out for prompt in prompts),
    )


def _averages(trace: Trace, sets: Sequence[SetSplit]) -> Terms[RowAverage]:
    shape = {"n_layers": len(trace.layers), "n_heads": len(trace.heads)}

    def average(name: str) -> RowAverage:
        return average_rows([_flat(getattr(one, name)) for one in sets], **shape).merged()

    return Terms(**{name: average(name) for name in TERMS})


def _flat(values: MemberCells | Cells) -> Float64[np.ndarray, "layer head _"]:
    """All members and queries on one axis."""
    if values.ndim == 3:
        return values
    by_head = np.moveaxis(values, 0, -2)
    return by_head.reshape(*by_head.shape[:2], -1)


def _over_prompts(prompts: Sequence[Terms[RowAverage]], seed: int) -> Split:
    table = Terms(**{name: [getattr(one, name) for one in prompts] for name in TERMS})
    by_prompt = table.map(lambda rows: np.array([row.overall() for row in rows]))
    drift = np.stack([row.by_head() for row in table.drift])
    return Split(
        interval=by_prompt.map(lambda values: estimate_with_interval(values, seed=seed)),
        by_prompt=by_prompt,
        by_layer=table.map(lambda rows: np.stack([row.by_layer() for row in rows])),
        drift_by_head=mean_over_prompts(drift),
        q_value_by_head=benjamini_hochberg(p_values(drift)),
    )
