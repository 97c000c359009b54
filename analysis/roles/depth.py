"""How deep in a model does a role live, and is it the same depth in another model?

The depth of a layer is its number over that of the last layer: 0 is the first layer, 1 the last.
The centroid weighs every layer by what its heads score above chance; the median is that of the
layers of the highest heads. Both are computed within each sequence, so they have intervals.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import stats

from analysis.roles.assignment import RoleScores
from analysis.roles.rows import ByHead, Stacked
from analysis.statistics import LEVEL, SEED, Interval, estimate_with_interval, paired_difference
from tempo.errors import TooFewPromptsError

TOP = 5
RESAMPLES = 1000

_OWN_SEQUENCES = "Welch t over sequences"


@dataclass(frozen=True, slots=True)
class Depth:
    """Where a role lives.

    Attributes:
        by_sequence: Centroid within each sequence; empty for a role that weights decide.
        centroid: Mean over sequences, or, without any, that of the scores.
        median: Median depth of the `TOP` heads by mean score, with percentile limits from
            resampled sequences.
        heads: Those heads, as layer and head index, best first.
        n_assigned: Heads that hold the role.
    """

    by_sequence: Float64[np.ndarray, " sequence"]
    centroid: Interval
    median: Interval
    heads: tuple[tuple[int, int], ...]
    n_assigned: int


def depth_of(role: RoleScores, *, seed: int = SEED) -> Depth:
    """Depth of one role in one model; the same criterion for every model."""
    by_sequence = np.array([_centroid(one, role.chance) for one in role.per_sequence])
    alone = _centroid(role.score, role.chance)
    none = Interval(alone, np.nan, np.nan, 0, "no interval: decided by weights, not sequences")
    return Depth(
        by_sequence=by_sequence,
        centroid=estimate_with_interval(by_sequence, seed=seed) if len(by_sequence) else none,
        median=_median(role, seed),
        heads=tuple(place for place in role.best_first()[:TOP] if not np.isnan(role.score[place])),
        n_assigned=int(role.assigned.sum()),
    )


def depth_difference(
    first: Float64[np.ndarray, " sequence"],
    second: Float64[np.ndarray, " other"],
    *,
    same_sequences: bool,
    seed: int = SEED,
) -> Interval:
    """Centroid of the first model less that of the second, from those within sequences.

    Args:
        same_sequences: Whether both models read the same token ids, so that sequences pair.

    Raises:
        TooFewPromptsError: Fewer than 8 sequences have data.
    """
    if same_sequences and len(first) == len(second):
        return paired_difference(first, second, seed=seed)
    return _welch(first[~np.isnan(first)], second[~np.isnan(second)])


def _centroid(score: ByHead, chance: ByHead) -> float:
    """Sum over layers of depth times score above chance, over the sum of the latter."""
    above = np.nansum(np.maximum(score - chance, 0.0), axis=1)
    depth = np.arange(len(above)) / max(len(above) - 1, 1)
    return float((depth * above).sum() / above.sum()) if above.sum() > 0 else float("nan")


def _median(role: RoleScores, seed: int) -> Interval:
    estimate = _median_depth(role.score)
    n = int(role.n.max(initial=0))
    if np.isnan(estimate):
        return Interval(estimate, np.nan, np.nan, 0, "no data")
    if not n:
        return Interval(estimate, np.nan, np.nan, 0, "no interval: decided by weights")
    rng = np.random.default_rng(seed)
    known = np.nan_to_num(role.per_sequence, nan=0.0)
    size = len(known)
    counts = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64)
    means = np.einsum("rs,slh->rlh", counts, known) / size
    drawn = [_median_depth(one) for one in means]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Interval(estimate, low, high, n, "percentile bootstrap over sequences")


def _median_depth(score: ByHead | Stacked) -> float:
    if np.isnan(score).all():
        return float("nan")
    best = np.argsort(-np.where(np.isnan(score), -np.inf, score), axis=None, kind="stable")[:TOP]
    return float(np.median(best // score.shape[1])) / max(len(score) - 1, 1)


def _welch(
    first: Float64[np.ndarray, " sequence"], second: Float64[np.ndarray, " other"]
) -> Interval:
    if min(len(first), len(second)) < 2:
        raise TooFewPromptsError(
            f"expected sequences with data on both sides, got {len(first)} and {len(second)}; "
            "take more sequences"
        )
    estimate = float(first.mean() - second.mean())
    parts = np.array([one.var(ddof=1) / len(one) for one in (first, second)])
    freedom = np.array([len(one) - 1 for one in (first, second)])
    error = float(np.sqrt(parts.sum()))
    df = parts.sum() ** 2 / (parts**2 / freedom).sum() if error > 0 else 1.0
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    n = min(len(first), len(second))
    return Interval(estimate, estimate - half, estimate + half, n, _OWN_SEQUENCES)
