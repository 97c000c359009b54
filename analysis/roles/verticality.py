"""Does a head pay the same slot from everywhere? The largest column over the mean column.

Even causal attention has H_T = 1 + 1/2 + ... + 1/T, not 1; a perfect previous-token head has 2, a
pure sink T. A cut-off means nothing without the even value.
"""

import numpy as np
from jaxtyping import Float, Float64

from analysis.roles.rows import HeadScore, SequenceRows, by_layer


def verticality(rows: SequenceRows) -> HeadScore:
    """Largest mean weight of a column over the mean of all columns."""
    sight = rows.sight()
    even = sight / np.maximum(sight.sum(-1, keepdims=True), 1)
    n_queries = np.full(len(sight), rows.n_queries)
    chance = by_layer(_largest_over_mean(even), rows.weights.shape[1])
    return HeadScore(_largest_over_mean(rows.weights), chance, n_queries)


def _largest_over_mean(
    weights: Float[np.ndarray, "*head query slot"],
) -> Float64[np.ndarray, "*head"]:
    columns = weights[..., : weights.shape[-2]].mean(-2, dtype=np.float64)
    mean = columns.mean(-1)
    return columns.max(-1) / np.where(mean > 0, mean, np.nan)
