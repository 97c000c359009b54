"""Attention weighted by the norm of the values: what members of sets add to the output."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Float64

from tempo.policy.slots import group_of
from tempo.trace.attention import Weights, group_onehot
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.observation import GROUP, Observation, ObservedTrace, mass_on, observe
from tempo_analysis.parallel.ratio import (
    AttentionRatio,
    PairedRatio,
    Sink,
    attention_ratio,
    paired_ratio,
)
from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval

VALUE_NORM = "value_norm"
"""Tensor of a step, [layer head slot]: the norm of the value of each slot the step wrote, through
the slice of the output projection that belongs to the query head."""


@dataclass(frozen=True, slots=True)
class PromptRelevance:
    """One prompt with value-weighted rows.

    Attributes:
        ratio: The ratio of `tempo_analysis.parallel.ratio` on these rows, beside its null.
        sink_share: Mean over rows of the value-weighted share of slot 0.
        sink_mass: Mean over the same rows of the plain weight on slot 0.
    """

    ratio: PairedRatio
    sink_share: float
    sink_mass: float


@dataclass(frozen=True, slots=True)
class Relevance:
    """Attention weighted by what it moves: a_i |v_i W_O| / sum_j a_j |v_j W_O| in each row.

    Norms are those of one query head's part of the output (Kobayashi et al. 2020); they do not add
    up to the norm of the sum, as vectors may cancel. Rows whose slots all have norm 0 are left out.

    Attributes:
        ratio: `parallel.ratio` on the value-weighted rows; 1 for even rows of equal norms.
        sink_share: Value-weighted share of slot 0; its values are often small.
        sink_mass: Plain weight on slot 0 in the same rows.
        sink_change: Share less mass, paired by prompt.
    """

    ratio: AttentionRatio
    sink_share: Interval
    sink_mass: Interval
    sink_change: Interval


def value_weighted(
    weights: Float[np.ndarray, "layer head query slot"],
    norms: Float[np.ndarray, "layer head slot"],
) -> Float64[np.ndarray, "layer head query slot"]:
    """Rows weighted by the norms of their slots, each summing to 1; NaN where nothing is left."""
    # A norm belongs to (layer, head, slot) and is the same for every query.
    moved = weights.astype(np.float64) * norms[:, :, None]
    total = moved.sum(-1, keepdims=True)
    # Rows are rescaled to 1 so that the ratio and its chance value mean the same as for plain rows.
    return moved / np.where(total > 0, total, np.nan)


def recorded_value_norms(trace: Trace, step: int) -> Float32[np.ndarray, "layer head slot"]:
    """Norms of every slot written up to and including a step.

    Raises:
        LevelError: The trace holds no norms of values.
    """
    # Each step stored the norms of the slots it wrote, step 0 those of the prompt.
    steps = range(step + 1)
    return np.concatenate([trace.tensor(earlier, VALUE_NORM) for earlier in steps], axis=-1)


def observe_values(trace: Trace) -> ObservedTrace:
    """As `parallel.observation.observe`, with value-weighted rows, for any question about rows.

    Raises:
        LevelError: The trace holds no norms of values, or was reduced to group masses.
    """
    return _with_values(trace, observe(trace))


def prompt_relevance(trace: Trace, greedy: Trace | None = None) -> PromptRelevance:
    """One prompt under a parallel arm, with its greedy run, if there is one, as the null.

    Raises:
        LevelError: A trace holds no norms of values, or was reduced to group masses.
        InputError: The null holds a set of width >= 2.
    """
    plain = observe(trace)
    seen = _with_values(trace, plain)
    if greedy is None:
        ratio = paired_ratio(seen)
    else:
        labels = inherited_labels(trace.slots, greedy.slots)
        ratio = paired_ratio(seen, observe_values(greedy), labels)
    shares = [step.mass[..., GROUP["sink"]] for step in seen.steps]
    masses = [
        # The plain mass over the same rows, or the difference would compare two samples of rows.
        np.where(np.isnan(share), np.nan, step.mass[..., GROUP["sink"]])
        for step, share in zip(plain.steps, shares, strict=True)
    ]
    return PromptRelevance(ratio, seen.average(shares).overall(), plain.average(masses).overall())


def relevance(
    prompts: Sequence[PromptRelevance],
    *,
    sink: Sink,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    seed: int = SEED,
) -> Relevance:
    """Combine prompts.

    Raises:
        NoParallelSetsError: No row of any prompt sees a slot of a set and another earlier slot.
    """
    ratios = [prompt.ratio for prompt in prompts]
    share = np.array([prompt.sink_share for prompt in prompts], np.float64)
    mass = np.array([prompt.sink_mass for prompt in prompts], np.float64)
    return Relevance(
        ratio=attention_ratio(ratios, sink=sink, layers=layers, heads=heads, seed=seed),
        sink_share=estimate_with_interval(share, seed=seed),
        sink_mass=estimate_with_interval(mass, seed=seed),
        # Paired: both are over the same rows of the same prompt.
        sink_change=estimate_with_interval(share - mass, seed=seed),
    )


def _with_values(trace: Trace, observed: ObservedTrace) -> ObservedTrace:
    steps = tuple(
        _weighted_step(rows, recorded_value_norms(trace, rows.step)) for rows in observed.steps
    )
    return replace(observed, steps=steps)


def _weighted_step(rows: Observation, norms: Float32[np.ndarray, "layer head slot"]) -> Observation:
    # float32 as stored rows are; sums over it are in float64 again.
    weights: Weights = value_weighted(rows.rows(), norms).astype(np.float32)
    groups = group_onehot(group_of(rows.table, rows.queries)).astype(bool)
    return replace(rows, weights=weights, mass=mass_on(weights, groups))
