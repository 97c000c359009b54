"""One index of all prompts from two parts of each: 1 less the quotient of their means.

From 30 prompts on the limits are a paired BCa bootstrap of the quotient (whole prompts are drawn,
9,999 resamples), from 8 to 29 Student's t on its linearised residuals (Cochran 1977, section 6.3);
below 8 prompts there are none. A quotient whose lower part may be 0 is no number: NaN.
"""

import warnings

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from tempo_analysis.stats.intervals import (
    BOOTSTRAP_FROM,
    LEVEL,
    RESAMPLES,
    SEED,
    SMALLEST_SAMPLE,
    Curve,
    Interval,
    estimate_with_interval,
    too_few,
)

TOLERANCE = 1e-4
"""A lower part within this of 0 is 0."""

PAIRED = "paired BCa bootstrap of the quotient over prompts"
LINEARISED = "Student t of the linearised quotient over prompts"
SAME_QUOTIENT = "every prompt has the same quotient"
UNDEFINED = "undefined: the lower part of the quotient may be 0"
UNSTABLE = "no interval: some resamples have no quotient"

_NO_SPREAD = 1e-12
_BATCH = 1000


def pooled_index(
    upper: Float64[np.ndarray, " prompt"],
    lower: Float64[np.ndarray, " prompt"],
    *,
    seed: int = SEED,
) -> Interval:
    """`1 - mean(upper) / mean(lower)` over the prompts that have both.

    NaN where the interval of the lower part includes 0 (within `TOLERANCE`), or with fewer than 8
    prompts where its mean is 0.
    """
    known = ~np.isnan(upper + lower)
    upper, lower = upper[known], lower[known]
    n, dropped = len(upper), int((~known).sum())
    if not n or _may_be_zero(lower, seed):
        return Interval(np.nan, np.nan, np.nan, n, UNDEFINED, n_dropped=dropped)
    low, high, method = _limits(upper, lower, seed)
    return Interval(_index(upper, lower), low, high, n, method, n_dropped=dropped)


def pooled_curve(
    x: Int64[np.ndarray, " point"],
    upper: Float64[np.ndarray, "prompt point"],
    lower: Float64[np.ndarray, "prompt point"],
    *,
    seed: int = SEED,
) -> Curve:
    """`pooled_index` at each of several points; the limits hold for each point by itself."""
    found = [pooled_index(up, low, seed=seed) for up, low in zip(upper.T, lower.T, strict=True)]
    estimate, low, high = np.array([[one.estimate, one.low, one.high] for one in found]).T
    n = np.array([one.n for one in found])
    return Curve(x, estimate, low, high, n, tuple(one.method for one in found))


def _index(upper: Float64[np.ndarray, " prompt"], lower: Float64[np.ndarray, " prompt"]) -> float:
    return float(1 - upper.mean() / lower.mean())


def _may_be_zero(lower: Float64[np.ndarray, " prompt"], seed: int) -> bool:
    found = estimate_with_interval(lower, seed=seed)
    low, high = found.low, found.high
    if np.isnan(low):
        low = high = found.estimate
    return bool(low <= TOLERANCE and high >= -TOLERANCE)


def _limits(
    upper: Float64[np.ndarray, " prompt"], lower: Float64[np.ndarray, " prompt"], seed: int
) -> tuple[float, float, str]:
    n = len(upper)
    if n < SMALLEST_SAMPLE:
        return np.nan, np.nan, too_few(n)
    estimate = _index(upper, lower)
    # what is left of each prompt when the quotient is taken as known
    residuals = (upper - (1 - estimate) * lower) / lower.mean()
    if np.ptp(residuals) <= _NO_SPREAD * max(float(np.abs(residuals).max()), 1.0):
        return estimate, estimate, SAME_QUOTIENT
    if n < BOOTSTRAP_FROM:
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * residuals.std(ddof=1) / np.sqrt(n))
        return estimate - half, estimate + half, LINEARISED
    return _bootstrapped(upper, lower, seed)


def _bootstrapped(
    upper: Float64[np.ndarray, " prompt"], lower: Float64[np.ndarray, " prompt"], seed: int
) -> tuple[float, float, str]:
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # its NaN is told below
        found = stats.bootstrap(
            (upper, lower),
            lambda up, low, axis: 1 - up.mean(axis) / low.mean(axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="BCa",
            batch=_BATCH,
            rng=np.random.default_rng(seed),
        )
    low, high = map(float, found.confidence_interval)
    if not (np.isfinite(low) and np.isfinite(high)):
        return np.nan, np.nan, UNSTABLE
    return low, high, PAIRED
