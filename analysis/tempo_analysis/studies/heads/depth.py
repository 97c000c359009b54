"""Depth of a role in a model, and the difference in depth between two models.

The depth of a layer is its number over that of the last layer: 0 is the first layer, 1 the last.
The centroid weighs each layer by the sum over heads of the score above chance; the median is over
the layers of the highest heads. Intervals resample the sequences and average the scores again,
instead of averaging one centroid for each sequence: in a single sequence the noise of all heads
without the role, cut off at chance, would pull the centroid to the middle.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tempo.errors import TooFewPromptsError
from tempo.vocabulary import Head
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.stats.intervals import LEVEL, SEED, SMALLEST_SAMPLE, Interval
from tempo_analysis.studies.heads.assignment import RoleScores
from tempo_analysis.studies.heads.detectors.rows import Stacked

TOP = 5
"""Heads in the median."""
RESAMPLES = 1000

RESAMPLED = "percentile bootstrap over sequences"
BY_WEIGHTS = "no interval: decided by weights, not sequences"

Draws = Float64[np.ndarray, " draw"]


@dataclass(frozen=True, slots=True)
class RoleDepth:
    """Depth of one role in one model, from 0 (first layer) to 1 (last layer).

    Attributes:
        draws: The centroid in each resample of the sequences. The seed fixes the order, so two
            models that read the same sequences have the same resamples. Empty for roles that the
            weights decide.
        centroid: Of the mean scores.
        median: Median depth of the `TOP` heads by mean score.
        heads: These heads, best first.
        n_assigned: Number of heads with the role.
    """

    draws: Draws
    centroid: Interval
    median: Interval
    heads: tuple[Head, ...]
    n_assigned: int


def depth_of(role: RoleScores, *, seed: int = SEED) -> RoleDepth:
    """Depth of one role in one model."""
    means = _resampled(role.per_sequence, seed)
    n = int(role.n.max(initial=0))
    enough = n >= SMALLEST_SAMPLE  # of the head with most data; others are NaN in more resamples
    draws = np.array([_centroid(one, role.chance) for one in means]) if enough else np.empty(0)
    medians = np.array([_median(one) for one in means]) if enough else np.empty(0)
    return RoleDepth(
        draws=draws,
        centroid=_interval(_centroid(role.score, role.chance), draws, n),
        median=_interval(_median(role.score), medians, n),
        heads=tuple(head for head in role.best_first()[:TOP] if not np.isnan(role.score[head])),
        n_assigned=int(role.assigned.sum()),
    )


def depth_difference(first: RoleDepth, second: RoleDepth, *, same_sequences: bool) -> Interval:
    """Centroid of the first model minus that of the second, with a bootstrap interval.

    Args:
        first: In the first model.
        second: In the second model.
        same_sequences: Whether both models read the same token ids, so that their resamples pair.

    Raises:
        TooFewPromptsError: One of them has no resamples.
    """
    ours, theirs = first.draws, second.draws
    if not len(ours) or not len(theirs):
        raise TooFewPromptsError(
            f"expected sequences with data on both sides, got {first.centroid.n} and "
            f"{second.centroid.n}; take more sequences"
        )
    # equal seeds give equal resamples, which would pair sequences that are not the same: shift the
    # order by half so that the draws are independent
    other = theirs if same_sequences else np.roll(theirs, len(theirs) // 2)
    estimate = first.centroid.estimate - second.centroid.estimate
    return _interval(estimate, ours - other, min(first.centroid.n, second.centroid.n))


def _centroid(score: ByHead, chance: ByHead) -> float:
    """Mean depth of the layers, weighted by the sum over heads of the score above chance."""
    above = np.nansum(np.maximum(score - chance, 0.0), axis=1)
    depth = np.arange(len(above)) / max(len(above) - 1, 1)
    return float((depth * above).sum() / above.sum()) if above.sum() > 0 else float("nan")


def _median(score: ByHead) -> float:
    """Median depth of the `TOP` heads of highest score."""
    if np.isnan(score).all():
        return float("nan")
    best = np.argsort(-np.where(np.isnan(score), -np.inf, score), axis=None, kind="stable")[:TOP]
    return float(np.median(best // score.shape[1])) / max(len(score) - 1, 1)


def _resampled(values: Stacked, seed: int) -> Float64[np.ndarray, "draw layer head"]:
    """Mean scores over sequences drawn with replacement; NaN is left out of the mean.

    A resample is given by how often it has each sequence, so a mean is a product of matrices.
    """
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
    """Percentile interval of the draws; the reason in `method` where there is none."""
    known = draws[~np.isnan(draws)]  # a resample without any score above chance has no centroid
    if np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan, 0, "no data")
    if not len(known):
        return Interval(estimate, np.nan, np.nan, n, BY_WEIGHTS if not n else "too few sequences")
    tail = 50 * (1 - LEVEL)  # per cent on each side
    low, high = np.percentile(known, [tail, 100 - tail]).tolist()
    return Interval(estimate, low, high, n, RESAMPLED)
