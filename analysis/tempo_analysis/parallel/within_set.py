"""Attention between the members of a set, by rank of query and key."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from tempo.errors import NoParallelSetsError
from tempo_analysis.parallel.distance import outside_sink
from tempo_analysis.parallel.observation import Observation, ObservedTrace
from tempo_analysis.parallel.ratio import Sink
from tempo_analysis.stats.averages import mean_over_prompts, quotient
from tempo_analysis.stats.intervals import SEED, Curve, Interval, curve, estimate_with_interval


@dataclass(frozen=True, slots=True)
class RankSums:
    """Weights between members of the sets of width >= 2 of one prompt, summed over the sets.

    Attributes:
        weight: Sum of the weights of query rank and key rank.
        even: The same if each row were spread evenly over its visible slots.
        seen: How many of these keys were visible.
        rows: Rows of each query rank.
    """

    weight: Float64[np.ndarray, "layer head query_rank key_rank"]
    even: Float64[np.ndarray, "layer head query_rank key_rank"]
    seen: Int64[np.ndarray, "layer head query_rank key_rank"]
    rows: Int64[np.ndarray, "layer head query_rank"]


@dataclass(frozen=True, slots=True)
class PromptIntraStep:
    """One prompt; without the sink rows are rescaled to their mass outside slot 0."""

    with_sink: RankSums
    without_sink: RankSums


@dataclass(frozen=True, slots=True)
class AgainstChance:
    """Share of the row beside its value under even spreading over the visible slots.

    Attributes:
        excess: Share less chance, paired by prompt; exactly 0 for even rows.
        by_layer: Share in each layer.
        chance_by_layer: Its chance value.
    """

    share: Interval
    chance: Interval
    excess: Interval
    by_layer: Curve
    chance_by_layer: Curve


@dataclass(frozen=True, slots=True)
class IntraStep:
    """Attention inside sets of width >= 2, every query row of a set included.

    For each prompt averaged over its sets and all rows of a layer and head, then over heads and
    layers, then over prompts. A rank that only wider sets have is averaged over those. Without the
    sink rows are rescaled to their mass outside slot 0, which chance leaves out too, and rows with
    less than 1e-6 of mass there are left out. A row that sees no sibling counts with share and
    chance 0, as in an isolated set.

    Attributes:
        weight: Mean weight for each query rank and key rank; NaN where no key was visible.
        chance: Its value under even spreading.
        own: Share of the row on the query itself.
        siblings: Share of the row on the other members together.
        by_difference: Weight per visible member at each key rank - query rank; 0 is the query.
        chance_by_difference: Its chance value.
    """

    sink: Sink
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    weight: Float64[np.ndarray, "layer head query_rank key_rank"]
    chance: Float64[np.ndarray, "layer head query_rank key_rank"]
    own: AgainstChance
    siblings: AgainstChance
    by_difference: Curve
    chance_by_difference: Curve


def prompt_intra_step(observed: ObservedTrace) -> PromptIntraStep:
    """Sums of one prompt.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    return PromptIntraStep(_rank_sums(observed, "with"), _rank_sums(observed, "without"))


def intra_step(
    prompts: Sequence[PromptIntraStep],
    *,
    sink: Sink,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    seed: int = SEED,
) -> IntraStep:
    """Combine prompts.

    Raises:
        NoParallelSetsError: No prompt has a set of width >= 2.
    """
    sums = [getattr(prompt, f"{sink}_sink") for prompt in prompts]
    if not any(each.rows.any() for each in sums):
        raise NoParallelSetsError(
            "expected a set of width >= 2, got none; lower the threshold or decode more steps"
        )
    width = max(each.rows.shape[-1] for each in sums)
    sums = [_padded(each, width) for each in sums]
    # Key rank - query rank, from -(width - 1) to width - 1.
    differences = np.arange(1 - width, width)
    by_difference, chance_by_difference = (
        np.stack([_by_difference(getattr(each, name), each.seen) for each in sums])
        for name in ("weight", "even")
    )
    weight, chance = (
        mean_over_prompts(np.stack([quotient(getattr(each, name), each.seen) for each in sums]))
        for name in ("weight", "even")
    )
    own = np.eye(width, dtype=bool)
    return IntraStep(
        sink,
        layers,
        heads,
        weight,
        chance,
        own=_against_chance(sums, own, layers, seed),
        siblings=_against_chance(sums, ~own, layers, seed),
        by_difference=curve(differences, by_difference, seed=seed),
        chance_by_difference=curve(differences, chance_by_difference, seed=seed),
    )


def _rank_sums(observed: ObservedTrace, sink: Sink) -> RankSums:
    steps = [rows for rows in observed.steps if len(rows.queries) >= 2]
    # 1 where there is no set, so that the arrays have their axes and sum to nothing.
    width = max((len(rows.queries) for rows in steps), default=1)
    shape = (len(observed.layers), len(observed.heads), width, width)
    weight, even = np.zeros((2, *shape))
    seen, n_rows = np.zeros(shape, np.int64), np.zeros(shape[:-1], np.int64)
    for rows in steps:
        mass, n_slots = _row_sums(rows, sink)
        usable = ~np.isnan(mass)
        here = np.s_[..., : len(rows.queries), : len(rows.queries)]
        # Rows without mass outside the sink leave numerator, chance and counts together.
        shown = rows.visible[:, None][..., rows.queries] & usable[..., None]
        # Rescaled row by row, before summing: a sum of rows would weigh them by their sink-free
        # mass.
        scaled = rows.rows()[..., rows.queries] / mass[..., None]
        weight[here] += np.where(usable[..., None], scaled, 0.0)
        # The row spread evenly over what it may see: the slots of the set are a part of these, not
        # all.
        even[here] += shown / np.maximum(n_slots, 1)[:, None, :, None]
        seen[here] += shown
        n_rows[here[:-1]] += usable
    return RankSums(weight, even, seen, n_rows)


def _row_sums(
    rows: Observation, sink: Sink
) -> tuple[Float64[np.ndarray, "layer head query"], Int64[np.ndarray, "layer query"]]:
    """The divisor of each row (NaN where it is left out), and its number of visible slots."""
    if sink == "without":
        return outside_sink(rows)
    # Divided by 1: with the sink rows stay as they are, also where a learned sink takes a part.
    return np.ones(rows.mass.shape[:-1]), rows.count.sum(-1)


def _padded(sums: RankSums, width: int) -> RankSums:
    more = (0, width - sums.rows.shape[-1])
    square = [(0, 0), (0, 0), more, more]
    return RankSums(
        np.pad(sums.weight, square),
        np.pad(sums.even, square),
        np.pad(sums.seen, square),
        np.pad(sums.rows, square[:-1]),
    )


def _against_chance(
    sums: Sequence[RankSums],
    keys: np.ndarray,
    layers: tuple[int, ...],
    seed: int,
) -> AgainstChance:
    """Share of the row on the chosen keys, averaged over the rows of each head first."""
    by_layer, chance_by_layer = (
        np.stack([_share(getattr(each, name), keys, each.rows) for each in sums])
        for name in ("weight", "even")
    )
    share, chance = (mean_over_prompts(table.T) for table in (by_layer, chance_by_layer))
    x = np.array(layers, np.int64)
    return AgainstChance(
        share=estimate_with_interval(share, seed=seed),
        chance=estimate_with_interval(chance, seed=seed),
        excess=estimate_with_interval(share - chance, seed=seed),
        by_layer=curve(x, by_layer, seed=seed),
        chance_by_layer=curve(x, chance_by_layer, seed=seed),
    )


def _share(
    values: Float64[np.ndarray, "layer head query_rank key_rank"],
    keys: np.ndarray,
    rows: Int64[np.ndarray, "layer head query_rank"],
) -> Float64[np.ndarray, " layer"]:
    # Over the rows of a head first, then over heads: each head counts once (averages last).
    by_head = quotient(np.where(keys, values, 0.0).sum((-2, -1)), rows.sum(-1))
    return mean_over_prompts(by_head.T)


def _by_difference(
    values: Float64[np.ndarray, "layer head query_rank key_rank"],
    seen: Int64[np.ndarray, "layer head query_rank key_rank"],
) -> Float64[np.ndarray, " difference"]:
    """Mean per visible key at each difference of ranks, over every layer and head."""
    width = values.shape[-1]
    offsets = range(1 - width, width)
    by_head, counts = (
        # The diagonal at offset d has key rank - query rank = d; axes 2 and 3 are these ranks.
        np.stack([table.diagonal(offset, 2, 3).sum(-1) for offset in offsets])
        for table in (values, seen)
    )
    return mean_over_prompts(quotient(by_head, counts).reshape(2 * width - 1, -1).T)
