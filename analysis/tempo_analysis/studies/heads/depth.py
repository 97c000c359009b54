"""How deep in a model does a role live, and is it the same depth in another model?

The depth of a layer is its number over that of the last layer: 0 is the first layer, 1 the last.
The centroid weighs every layer by what its heads score above chance on average; the median is that
of the layers of the highest heads. Intervals resample the sequences and average again: within one
sequence the noise of all heads that hold nothing is cut off at chance too, and pulls to the middle.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tempo.errors import TooFewPromptsError
from tempo_analysis.stats.intervals import LEVEL, SEED, SMALLEST_SAMPLE, Interval
from tempo_analysis.studies.heads.assignment import RoleScores
from tempo_analysis.studies.heads.detectors.rows import ByHead, Stacked

TOP = 5
RESAMPLES = 1000

RESAMPLED = "percentile bootstrap over sequences"
BY_WEIGHTS = "no interval: decided by weights, not sequences"

Draws = Float64[np.ndarray, " draw"]


@dataclass(frozen=True, slots=True)
class Depth:
    """Where a role lives.

    Attributes:
        draws: The centroid in each resample of the sequences, in an order that the seed fixes: two
            models that read the same sequences are resampled alike. Empty where weights decide.
        centroid: Of the mean scores.
        median: Median depth of the `TOP` heads by mean score.
        heads: Those heads, as layer and head index, best first.
        n_assigned: Heads that hold the role.
    """

    draws: Draws
    centroid: Interval
    median: Interval
    heads: tuple[tuple[int, int], ...]
    n_assigned: int


def depth_of(role: RoleScores, *, seed: int = SEED) -> Depth:
    """Depth of one role in one model; the same criterion for every model."""
    means = _resampled(role.per_sequence, seed)
    n = int(role.n.max(initial=0))
    enough = n >= SMALLEST_SAMPLE
    draws = np.array([_centroid(one, role.chance) for one in means]) if enough else np.empty(0)
    medians = np.array([_median(one) for one in means]) if enough else np.empty(0)
    return Depth(
        draws=draws,
        centroid=_interval(_centroid(role.score, role.chance), draws, n),
        median=_interval(_median(role.score), medians, n),
        heads=tuple(place for place in role.best_first()[:TOP] if not np.isnan(role.score[place])),
        n_assigned=int(role.assigned.sum()),
    )


def depth_difference(first: Depth, second: Depth, *, same_sequences: bool) -> Interval:
    """Centroid of the first model less that of the second.

    Args:
        same_sequences: Whether both models read the same token ids, so that they were resampled
            alike; otherwise the resamples of the second are taken in another order.

    Raises:
        TooFewPromptsError: One of them has no resamples.
    """
    ours, theirs = first.draws, second.draws
    if not len(ours) or not len(theirs):
        raise TooFewPromptsError(
            f"expected sequences with data on both sides, got {first.centroid.n} and "
            f"{second.centroid.n}; take more sequences"
        )
    other = theirs if same_sequences else np.roll(theirs, len(theirs) // 2)
    estimate = first.centroid.estimate - second.centroid.estimate
    return _interval(estimate, ours - other, min(first.centroid.n, second.centroid.n))


def _centroid(score: ByHead, chance: ByHead) -> float:
    """Sum over layers of depth times score above chance, over the sum of the latter."""
    above = np.nansum(np.maximum(score - chance, 0.0), axis=1)
    depth = np.arange(len(above)) / max(len(above) - 1, 1)
    return float((depth * above).sum() / above.sum()) if above.sum() > 0 else float("nan")


def _median(score: ByHead) -> float:
    if np.isnan(score).all():
        return float("nan")
    best = np.argsort(-np.where(np.isnan(score), -np.inf, score), axis=None, kind="stable")[:TOP]
    return float(np.median(best // score.shape[1])) / max(len(score) - 1, 1)


def _resampled(values: Stacked, seed: int) -> Float64[np.ndarray, "draw layer head"]:
    """Mean scores over sequences drawn with replacement; a NaN is left out of its mean."""
    n = len(values)
    if not n:
        return np.empty((0, *values.shape[1:]))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)
    known = ~np.isnan(values)
    total = np.einsum("rs,slh->rlh", counts, np.where(known, values, 0.0))
    weight = np.einsum("rs,slh->rlh", counts, known.astype(np.float64))
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def _interval(estimate: float, draws: Draws, n: int) -> Interval:
    known = draws[~np.isnan(draws)]
    if np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan, 0, "no data")
    if not len(known):
        return Interval(estimate, np.nan, np.nan, n, BY_WEIGHTS if not n else "too few sequences")
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(known, [tail, 100 - tail]).tolist()
    return Interval(estimate, low, high, n, RESAMPLED)
