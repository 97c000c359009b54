"""The linear maps of one head with the norms around it, and the share it writes from each slot."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Float64

from tempo.models.circuit_weights import CircuitWeights, Norm


def every_head(weights: CircuitWeights) -> Iterator[tuple[int, int]]:
    """Every (layer, query head), by layer."""
    for layer in range(len(weights.layers)):
        for head in range(weights.n_heads):
            yield layer, head


def read_map(
    weights: CircuitWeights, layer: int, head: int, *, norm: bool = True
) -> Float32[np.ndarray, "channel hidden"]:
    """W_V of a query head, which reads the value weights of its KV head (`value_of`).

    Args:
        norm: Whether the gain of the input norm is folded in, so that the map takes vectors divided
            by their size (`sized`).
    """
    before = weights.layers[layer].input_norm if norm else None
    return _behind(before, weights.value_of(layer, head))


def write_map(
    weights: CircuitWeights, layer: int, head: int, *, norm: bool = True
) -> Float32[np.ndarray, "hidden channel"]:
    """W_O of a head; with `norm`, times the gain of a norm after attention (Gemma 2), if any."""
    part = weights.layers[layer]
    out = part.out[head]  # rows are channels of the stream, so the gain scales rows
    after = part.branch_norm if norm else None
    return out if after is None else _centred(after, (out * after.gain[:, None]).T).T


def unembedded(
    weights: CircuitWeights, rows: Float32[np.ndarray, "token hidden"], *, norm: bool = True
) -> Float32[np.ndarray, "token hidden"]:
    """Rows of W_U; with `norm`, times the gain of the final norm."""
    return _behind(weights.final_norm, rows) if norm else rows


def sized(
    norm: Norm | None, rows: Float[np.ndarray, "token hidden"]
) -> Float[np.ndarray, "token hidden"]:
    """Rows as a norm divides them (LayerNorm also centres them), without its gain and shift."""
    if norm is None:
        return rows
    # the same norm with gain 1 and no shift
    plain = Norm(norm.kind, np.ones_like(norm.gain), None, norm.eps)
    return plain.applied(rows).astype(np.float32)


def _behind(
    norm: Norm | None, rows: Float32[np.ndarray, "row hidden"]
) -> Float32[np.ndarray, "row hidden"]:
    """Fold the linear part of a norm into maps that read its output."""
    return rows if norm is None else _centred(norm, rows * norm.gain)


def _centred(
    norm: Norm, rows: Float32[np.ndarray, "row hidden"]
) -> Float32[np.ndarray, "row hidden"]:
    # LayerNorm subtracts the mean of its input; for a map this is the mean of each of its rows
    return rows - rows.mean(-1, keepdims=True) if norm.kind == "layer" else rows


WeightRows = Float[np.ndarray, "layer head query slot"]


def value_weighted_share(
    weights: WeightRows, value_norm: Float[np.ndarray, "layer head slot"]
) -> Float64[np.ndarray, "layer head query slot"]:
    """Weight times the norm of the value that the head writes from the slot, over the row's sum.

    Rows sum to 1; NaN for a row that writes nothing.

    Source: Kobayashi et al. 2020 (arXiv 2004.10102).

    Args:
        weights: Attention rows.
        value_norm: Norm of W_O v of each slot, as `eager_rows` keeps it.
    """
    written = weights.astype(np.float64) * value_norm[:, :, None, :]
    total = written.sum(-1, keepdims=True)
    return np.divide(written, total, out=np.full_like(written, np.nan), where=total > 0)


def slot_share(
    weights: WeightRows, value_norm: Float[np.ndarray, "layer head slot"], *, slot: int = 0
) -> Float64[np.ndarray, "layer head"]:
    """Mean value-weighted share of one slot over the queries after it; NaN if there are none."""
    # queries after the slot: its own query sees it at least as well and would add to every head
    share = value_weighted_share(weights, value_norm)[:, :, slot + 1 :, slot]
    present = ~np.isnan(share)
    total = np.where(present, share, 0.0).sum(-1)
    count = present.sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
