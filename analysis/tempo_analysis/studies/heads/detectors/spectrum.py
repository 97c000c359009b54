"""How each head spreads its attention (entropy, distance), and whether it narrows with depth."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from tempo.vocabulary import SINK_SLOT
from tempo_analysis.parallel.entropy import SMALLEST_REST
from tempo_analysis.stats.averages import mean_over_prompts, quotient
from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows, Stacked, scores_of

RowValues = Float64[np.ndarray, "layer head query"]
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Averages over rows of one sequence; chance is the same average for uniform attention.

    Each number is computed for every row and then averaged, because the entropy of an averaged row
    is larger than the average entropy. Rows that do not sum to 1 (learned sinks) are divided by
    their sum. "Without sink" means that slot 0 is left out and the row is rescaled over the other
    slots; rows with a weight below 1e-6 there are left out.

    Attributes:
        entropy_nats: Entropy H of the row, in [0, ln n] for n visible slots.
        normalised: H / ln n, in [0, 1]; rows that see one slot only are left out.
        entropy_without_sink_nats: H of the row without sink; rows that see one slot are left out.
        normalised_without_sink: The same over ln n.
        effective_keys: exp H: the number of slots of a uniform row of that entropy.
        max_weight: Largest weight.
        participation: 1 / sum of squared weights, in [1, n].
        distance: Mean of the offset q - k, weighted by attention, in slots.
        distance_without_sink: The same of the row without sink.
    """

    entropy_nats: HeadScore
    normalised: HeadScore
    entropy_without_sink_nats: HeadScore
    normalised_without_sink: HeadScore
    effective_keys: HeadScore
    max_weight: HeadScore
    participation: HeadScore
    distance: HeadScore
    distance_without_sink: HeadScore


def spectrum(rows: SequenceRows) -> Spectrum:
    """Measure how every head spreads its attention in one sequence."""
    visible = rows.visibility()
    n = visible.sum(-1)
    found = _columns(rows.weights, n, visible[..., SINK_SLOT])
    # one uniform head for each layer stands for all of its heads
    spread = (visible / np.maximum(n, 1)[..., None]).astype(np.float64)
    even = _columns(spread[:, None], n, visible[..., SINK_SLOT])
    return Spectrum(*(_averaged(*pair) for pair in zip(found, even, strict=True)))


def row_entropies(
    weights: Float[np.ndarray, "layer head query slot"],
) -> tuple[RowValues, RowValues, RowValues, RowValues]:
    """Entropy, entropy without slot 0, weight on slot 0, and the rest, of each row over its sum.

    In nats. For weight s on slot 0 they satisfy the chain rule H = h(s) + (1 - s) H', where h is
    the entropy of a choice between two.
    """
    # with unnormalised weights w of sum W: H = ln W - sum(w ln w) / W, so no row is divided first.
    # 0 ln 0 is 0 here, because the logarithm of the smallest float32 is finite.
    products = weights * np.log(np.maximum(weights, _TINY))
    sink = weights[..., SINK_SLOT].astype(np.float64)
    rest = weights[..., 1:].sum(-1, dtype=np.float64)
    rest_sum = products[..., 1:].sum(-1, dtype=np.float64)
    total = _positive(sink + rest)
    entropy = np.log(total) - (rest_sum + products[..., SINK_SLOT]) / total
    rest_total = _positive(rest)
    return entropy, np.log(rest_total) - rest_sum / rest_total, sink / total, rest / total


def _columns(
    weights: Float[np.ndarray, "layer head query slot"],
    n_visible: Int64[np.ndarray, "layer query"],
    sees_sink: Bool[np.ndarray, "layer query"],
) -> list[RowValues]:
    """The fields of `Spectrum` for each row, in their order; NaN where a row is left out."""
    entropy, free, _, rest = row_entropies(weights)
    # the zeros repeat the counts of each layer over its heads
    n = n_visible[:, None] + np.zeros(entropy.shape, np.int64)
    n_rest = n - sees_sink[:, None]
    kept_rest = rest >= SMALLEST_REST
    free = np.where(kept_rest & (n_rest > 1), free, np.nan)
    total = _positive(weights.sum(-1, dtype=np.float64))
    # slot 0 of query q is q slots back; `far` is the sum over all other slots
    far = _behind(weights)
    from_sink = weights[..., SINK_SLOT] * np.arange(weights.shape[2], dtype=np.float64)
    return [
        entropy,
        entropy / _log_above_one(n),
        free,
        free / _log_above_one(n_rest),
        np.exp(entropy),
        weights.max(-1) / total,
        total**2 / _positive(np.einsum("lhqs,lhqs->lhq", weights, weights).astype(np.float64)),
        (far + from_sink) / total,
        np.where(kept_rest, far / total, np.nan) / np.where(kept_rest, rest, 1),
    ]


def _behind(weights: Float[np.ndarray, "layer head query slot"]) -> RowValues:
    """Sum of weight times offset q - k over all slots but slot 0."""
    query, slot = np.ogrid[: weights.shape[2], : weights.shape[3]]
    behind = np.where(slot == SINK_SLOT, 0, query - slot).astype(weights.dtype)
    return np.einsum("lhqs,qs->lhq", weights, behind).astype(np.float64)


def _averaged(values: RowValues, even: Float64[np.ndarray, "layer 1 query"]) -> HeadScore:
    """Mean over the rows that have a value; chance over the same rows."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    chance = np.where(known, np.nan_to_num(even), 0.0).sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    # rows of a layer may differ between heads (left out without the sink): the fewest are reported
    return HeadScore(quotient(total, count), quotient(chance, count), count.min(-1))


def _positive(values: RowValues) -> RowValues:
    """NaN in place of 0, so that a division by it is NaN and no warning."""
    return np.where(values > 0, values, np.nan)


def _log_above_one(n: Int64[np.ndarray, "layer head query"]) -> RowValues:
    """Logarithm of n; NaN for n = 1, where the normalised entropy is 0 / 0."""
    return np.where(n > 1, np.log(np.maximum(n, 2)), np.nan)


COLUMNS = tuple(column.name for column in fields(Spectrum))


@dataclass(frozen=True, slots=True)
class Funnel:
    """Normalised entropy by layer; it falls with depth where attention narrows.

    Attributes:
        by_layer: Mean over heads and texts of H / ln n; uniform attention has 1.
        first: Mean over texts of the first third of the layers.
        last: The same of the last third.
        change: Last minus first, paired within each text.
    """

    by_layer: Float64[np.ndarray, " layer"]
    first: Interval
    last: Interval
    change: Interval


def funnels(texts: Sequence[Spectrum], *, seed: int = SEED) -> dict[str, Funnel]:
    """Entropy by layer, with slot 0 ("with") and without it ("without").

    PyramidKV (arXiv 2406.02069) reports narrowing with depth; part of that is the attention sink.
    """
    with_sink = scores_of([text.normalised for text in texts])
    rest = scores_of([text.normalised_without_sink for text in texts])
    return {"with": _funnel(with_sink, seed), "without": _funnel(rest, seed)}


def _funnel(values: Stacked, seed: int) -> Funnel:
    by_layer = np.nanmean(values, axis=2)  # over heads, for each text
    third = max(by_layer.shape[1] // 3, 1)
    first, last = by_layer[:, :third].mean(1), by_layer[:, -third:].mean(1)
    return Funnel(
        by_layer=mean_over_prompts(by_layer),
        first=estimate_with_interval(first, seed=seed),
        last=estimate_with_interval(last, seed=seed),
        change=estimate_with_interval(last - first, seed=seed),
    )
