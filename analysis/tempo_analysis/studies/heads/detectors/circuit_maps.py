"""The linear maps of one head with the norms around it, and how much it writes from each slot."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Float64

from tempo.models.circuit_weights import CircuitWeights, Norm


def heads_of(weights: CircuitWeights) -> Iterator[tuple[int, int]]:
    """Every (layer, head)."""
    for layer in range(len(weights.layers)):
        for head in range(weights.n_heads):
            yield layer, head


def read_map(
    weights: CircuitWeights, layer: int, head: int, *, norm: bool = True
) -> Float32[np.ndarray, "channel hidden"]:
    """W_V as the head reads it, behind the input norm's gain where `norm`."""
    before = weights.layers[layer].input_norm if norm else None
    return _behind(before, weights.value_of(layer, head))


def write_map(
    weights: CircuitWeights, layer: int, head: int, *, norm: bool = True
) -> Float32[np.ndarray, "hidden channel"]:
    """W_O of the head, times the gain of the norm that its output passes, where there is one."""
    part = weights.layers[layer]
    out = part.out[head]
    after = part.branch_norm if norm else None
    return out if after is None else _centred(after, (out * after.gain[:, None]).T).T


def unembedded(
    weights: CircuitWeights, rows: Float32[np.ndarray, "token hidden"], *, norm: bool = True
) -> Float32[np.ndarray, "token hidden"]:
    """Rows of W_U as the stream meets them, times the final norm's gain where `norm`."""
    return _behind(weights.final_norm, rows) if norm else rows


def sized(
    norm: Norm | None, rows: Float[np.ndarray, "token hidden"]
) -> Float[np.ndarray, "token hidden"]:
    """Rows divided by the size that a norm divides them by, centred if it centres; no gain."""
    if norm is None:
        return rows
    plain = Norm(norm.kind, np.ones_like(norm.gain), None, norm.eps)
    return plain.applied(rows).astype(np.float32)


def _behind(
    norm: Norm | None, rows: Float32[np.ndarray, "row hidden"]
) -> Float32[np.ndarray, "row hidden"]:
    """Linear maps that act on normalised vectors, as maps of vectors of the right size."""
    return rows if norm is None else _centred(norm, rows * norm.gain)


def _centred(
    norm: Norm, rows: Float32[np.ndarray, "row hidden"]
) -> Float32[np.ndarray, "row hidden"]:
    return rows - rows.mean(-1, keepdims=True) if norm.kind == "layer" else rows


Rows = Float[np.ndarray, "layer head query slot"]


def value_weighted_share(
    weights: Rows, value_norm: Float[np.ndarray, "layer head slot"]
) -> Float64[np.ndarray, "layer head query slot"]:
    """Rows that sum to 1; NaN where a row writes nothing."""
    written = weights.astype(np.float64) * value_norm[:, :, None, :]
    total = written.sum(-1, keepdims=True)
    return np.divide(written, total, out=np.full_like(written, np.nan), where=total > 0)


def slot_share(
    weights: Rows, value_norm: Float[np.ndarray, "layer head slot"], *, slot: int = 0
) -> Float64[np.ndarray, "layer head"]:
    """Mean share of one slot over the rows behind it; the slot's own row is left out.

    Raises nothing: NaN where no row stands behind the slot or none writes.
    """
    share = value_weighted_share(weights, value_norm)[:, :, slot + 1 :, slot]
    present = ~np.isnan(share)
    total = np.where(present, share, 0.0).sum(-1)
    count = present.sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
