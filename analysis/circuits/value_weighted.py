"""How much of what a head writes comes from each slot, by size instead of by weight.

An attention weight says nothing of the size of the value behind it. The share of slot k is
`a_k |v_k W_h|` over its sum (Kobayashi et al. 2020, arXiv 2004.10102); a sink with a small value
loses its share. Norms are per head: heads that cancel one another do not show.
"""

import numpy as np
from jaxtyping import Float, Float64

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
