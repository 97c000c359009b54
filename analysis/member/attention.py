"""What a slot gets from the queries that see it, beside chance and beside independent odds."""

import numpy as np
from jaxtyping import Bool, Float, Float64

_LEAST = 2.0**-25
"""Half a step of float32 below 1: what may be left of a row that a weight of 1 rounds away."""

Sees = Bool[np.ndarray, "layer query"]


def mean_where_seen(
    weights: Float[np.ndarray, "layer head query"], sees: Sees
) -> Float64[np.ndarray, "layer head"]:
    """Mean over the queries that may see the slot; NaN where none may."""
    total = np.where(sees[:, None], weights, 0.0).astype(np.float64).sum(-1)
    count = sees.sum(-1)[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def chance_where_seen(
    visible: Bool[np.ndarray, "layer query slot"], sees: Sees
) -> Float64[np.ndarray, " layer"]:
    """Mean of 1 / visible slots over the queries that may see the slot; NaN where none may."""
    even = 1.0 / np.maximum(visible.sum(-1), 1)
    return mean_where_seen(even[:, None], sees)[:, 0]


def odds_law(
    alone: Float[np.ndarray, "member layer head query"],
) -> Float64[np.ndarray, "member layer head query"]:
    """What each member of a set gets if its odds alone stay and the others join: o / (1 + sum o).

    With m the weight alone and o = m / (1 - m). Exact where keys and query are those of the member
    alone: in layer 0.
    """
    mass = alone.astype(np.float64)
    odds = mass / np.maximum(1.0 - mass, _LEAST)
    return odds / (1.0 + odds.sum(0))
