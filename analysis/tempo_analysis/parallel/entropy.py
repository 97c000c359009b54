"""Entropy of attention in each layer, with and without the sink."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Float64
from scipy.special import xlogy

from tempo.vocabulary import SINK_SLOT
from tempo_analysis.parallel.observation import GROUP, Observation, ObservedTrace
from tempo_analysis.stats.averages import RowAverage
from tempo_analysis.stats.intervals import SEED, Curve, curve

CHANCE = 1.0
"""Normalised entropy of an even row."""

SMALLEST_REST = 1e-6
"""A row with less mass than this outside slot 0 has no sink-free entropy."""

SMALLEST_REST_REDUCED = 1e-4
"""The same where H' comes from a stored float32 entropy, whose rounding is divided by the rest."""


@dataclass(frozen=True, slots=True)
class PromptEntropy:
    """Row averages of one prompt, all steps together; the fields are those of `EntropyFunnel`."""

    entropy_nats: RowAverage
    normalised: RowAverage
    even_nats: RowAverage
    entropy_without_sink_nats: RowAverage
    normalised_without_sink: RowAverage
    even_without_sink_nats: RowAverage
    sink_mass: RowAverage
    sink_chance: RowAverage
    kept_without_sink: RowAverage


@dataclass(frozen=True, slots=True)
class EntropyFunnel:
    """Entropy of attention by layer, over the queries of generated steps.

    H is in nats; `normalised` is H / ln n, in [0, 1], n counting the slots the query may see; an
    even row has 1 (`CHANCE`). Without the sink, the row is rescaled over the other slots. Computed
    per (layer, head, query), averaged over heads and queries for each prompt, then over prompts.
    Left out: prompt rows; rows that see one slot; without the sink also rows that see one other
    slot, and rows with less than 1e-6 of their mass (1e-4 at level reduced) outside it. Rows that
    do not sum to 1 (learned sinks) are first divided by their sum.

    Attributes:
        even_nats: ln n, the chance value of `entropy_nats`.
        sink_mass: Share of the row on slot 0, in [0, 1].
        sink_chance: 1 / n where slot 0 is visible, the chance value of `sink_mass`.
        kept_without_sink: Share of all rows that have a sink-free entropy.
    """

    layers: tuple[int, ...]
    entropy_nats: Curve
    normalised: Curve
    even_nats: Curve
    entropy_without_sink_nats: Curve
    normalised_without_sink: Curve
    even_without_sink_nats: Curve
    sink_mass: Curve
    sink_chance: Curve
    kept_without_sink: Curve


def binary_entropy_nats(share: Float[np.ndarray, "*row"]) -> Float[np.ndarray, "*row"]:
    """Entropy of a choice between two outcomes."""
    # xlogy is 0 at 0; share * log(share) would be NaN there.
    return -xlogy(share, share) - xlogy(1 - share, 1 - share)


def entropy_with_sink(
    rest_entropy: Float[np.ndarray, "*row"], sink_mass: Float[np.ndarray, "*row"]
) -> Float[np.ndarray, "*row"]:
    """H from H' and the mass s of one sink slot: H = h_b(s) + (1 - s) H' (exact chain rule)."""
    return binary_entropy_nats(sink_mass) + (1 - sink_mass) * rest_entropy


def entropy_without_sink(
    entropy: Float[np.ndarray, "*row"], rest_mass: Float[np.ndarray, "*row"]
) -> Float[np.ndarray, "*row"]:
    """H' from H and the mass outside one sink slot, by the chain rule; NaN where that is 0.

    Takes the rest, not the sink mass, because 1 - s loses digits where the sink takes nearly all.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        free = (entropy - binary_entropy_nats(rest_mass)) / rest_mass
    return np.where(rest_mass > 0, free, np.nan)


def prompt_entropy(observed: ObservedTrace) -> PromptEntropy:
    """Entropies of one prompt, at any level."""
    steps = [_step_entropy(step) for step in observed.steps]
    columns = range(len(fields(PromptEntropy)))
    return PromptEntropy(
        *(observed.average([step[column] for step in steps]).merged() for column in columns)
    )


def entropy_funnel(
    prompts: Sequence[PromptEntropy], *, layers: tuple[int, ...], seed: int = SEED
) -> EntropyFunnel:
    """Curves over layers, with intervals over prompts."""
    x = np.array(layers, np.int64)
    names = [column.name for column in fields(PromptEntropy)]
    curves = {
        name: curve(
            x, np.stack([getattr(prompt, name).by_layer() for prompt in prompts]), seed=seed
        )
        for name in names
    }
    return EntropyFunnel(layers, **curves)


def _step_entropy(rows: Observation) -> tuple[Float64[np.ndarray, "layer head query"], ...]:
    """The columns of `PromptEntropy` for one step, NaN where a row is left out."""
    sink, rest, entropy, free = _masses_and_entropies(rows)
    # n is what the query may see, not the length of the table: a masked slot must not change the
    # normalised entropy. Adding zeros broadcasts over heads, which share the mask.
    n = rows.count.sum(-1)[:, None] + np.zeros_like(entropy)
    sees_sink = rows.count[..., GROUP["sink"]][:, None] + np.zeros_like(entropy)
    n_rest = n - sees_sink
    with np.errstate(divide="ignore"):
        even, even_rest = np.log(n), np.log(n_rest)
    # From rows the rest is summed directly; from stored float32 entropies H' is a difference
    # divided by the rest, which amplifies the rounding by 1 / rest.
    smallest = SMALLEST_REST if rows.weights is not None else SMALLEST_REST_REDUCED
    # With one visible slot ln n = 0: the row has no choice, and 0 / 0 is no entropy.
    kept = (n > 1) & ~np.isnan(entropy)
    kept_rest = (n_rest > 1) & (rest >= smallest)
    return (
        _where(kept, entropy),
        _ratio_where(kept, entropy, even),
        _where(kept, even),
        _where(kept_rest, free),
        _ratio_where(kept_rest, free, even_rest),
        _where(kept_rest, even_rest),
        _where(~np.isnan(entropy), sink),
        _where(~np.isnan(entropy), sees_sink / np.maximum(n, 1)),
        kept_rest.astype(np.float64),
    )


def _masses_and_entropies(
    rows: Observation,
) -> tuple[Float64[np.ndarray, "layer head query"], ...]:
    """Sink mass, rest, H and H' of rows divided by their sum; NaN where a row is empty."""
    total = rows.mass.sum(-1)
    # A learned sink takes part of the softmax and is no slot: the stored row sums to less than 1
    # and is rescaled over the slots.
    total = np.where(total > 0, total, np.nan)
    sink = rows.mass[..., GROUP["sink"]] / total
    # Summed over the other groups: 1 - sink loses all digits where the sink takes nearly 1.
    rest = np.delete(rows.mass, GROUP["sink"], axis=-1).sum(-1) / total
    if rows.weights is None:
        # With p = w / t: -sum p ln p = H_w / t + ln t, where H_w = -sum w ln w was stored.
        entropy = rows.entropy_nats / total + np.log(total)
        return sink, rest, entropy, entropy_without_sink(entropy, rest)
    others = np.delete(rows.weights, SINK_SLOT, axis=-1) / total[..., None]
    rest_sum = xlogy(others, others).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The same identity over the slots other than slot 0, in which r = rest: H' = ln r + H_r /
        # r.
        free = np.log(rest) - rest_sum / rest
    return sink, rest, -rest_sum - xlogy(sink, sink), free


def _where(
    kept: np.ndarray, values: Float64[np.ndarray, "layer head query"]
) -> Float64[np.ndarray, "layer head query"]:
    return np.where(kept, values, np.nan)


def _ratio_where(
    kept: np.ndarray,
    values: Float64[np.ndarray, "layer head query"],
    even: Float64[np.ndarray, "layer head query"],
) -> Float64[np.ndarray, "layer head query"]:
    # The inner where keeps ln 1 = 0 out of the division; the outer one drops those rows.
    return np.where(kept, values / np.where(kept, even, 1.0), np.nan)
