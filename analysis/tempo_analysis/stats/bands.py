"""Limits over prompts at every layer or step: pointwise, and simultaneous bands."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy import stats

from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.intervals import (
    BOOTSTRAP_FROM,
    INFINITE,
    LEVEL,
    RESAMPLES,
    SAME,
    SEED,
    SMALLEST_SAMPLE,
    Curve,
    Interval,
    curve,
    too_few,
)

MAX_T = "simultaneous: max-|t| bootstrap over prompts"
BONFERRONI = "simultaneous: Bonferroni t over prompts"

# Relative, and far above float64's 1e-16: values that differ by less are equal up to summing order.
_NO_SPREAD = 1e-12


def band(
    x: Int64[np.ndarray, " point"], values: Float[np.ndarray, "prompt point"], *, seed: int = SEED
) -> Curve:
    """Mean over prompts at each point, with limits that hold at all points at once.

    NaN is a prompt without data at that point; the other points of the prompt still count. Points
    without limits (fewer than 8 prompts, infinite values) are no part of the band, and neither are
    those where every prompt has the same value. Points with 8 to 29 prompts, and those where
    some resample has no spread, have Bonferroni's limits.
    """
    table = np.asarray(values, np.float64)
    n = np.sum(~np.isnan(table), axis=0)
    with np.errstate(invalid="ignore"):
        estimate = mean_over_prompts(table)
    methods = _settled(table, n)
    low, high = np.full((2, len(x)), np.nan)
    same = methods == SAME
    # No spread, no resampling: the limits are the value, and t would be 0 / 0.
    low[same] = high[same] = estimate[same]
    unsettled = np.flatnonzero(methods == "")
    if unsettled.size:
        half, methods[unsettled] = _half_widths(table[:, unsettled], seed)
        low[unsettled], high[unsettled] = estimate[unsettled] - half, estimate[unsettled] + half
    return Curve(x, estimate, low, high, n, tuple(methods.tolist()), simultaneous=True)


def _settled(
    table: Float64[np.ndarray, "prompt point"], n: Int64[np.ndarray, " point"]
) -> np.ndarray:
    """Method of each point that needs no resampling; an empty text for the other points."""
    methods = np.full(len(n), "", object)
    for point, count in enumerate(n.tolist()):
        known = table[~np.isnan(table[:, point]), point]
        if count < SMALLEST_SAMPLE:
            methods[point] = too_few(count)
        elif not np.isfinite(known).all():
            methods[point] = INFINITE
        elif np.ptp(known) <= _NO_SPREAD * max(float(np.abs(known).max()), 1.0):
            methods[point] = SAME
    return methods


def _half_widths(
    sample: Float64[np.ndarray, "prompt point"], seed: int
) -> tuple[Float64[np.ndarray, " point"], np.ndarray]:
    """Half-width and method of each point; every point has 8 prompts or more, and spread."""
    # Prompts without data at any of these points are no part of what is resampled.
    sample = sample[~np.isnan(sample).all(-1)]
    n = np.sum(~np.isnan(sample), axis=0)
    # ddof 1: prompts are a sample of those that could have been asked.
    spread = np.nanstd(sample, axis=0, ddof=1)
    # One share of the 5 % for each point. Points solved by the bootstrap pool their shares in one
    # max-|t| quantile, the others keep theirs (Bonferroni), so all together miss at most 5 %.
    part = (1 - LEVEL) / len(n)
    critical = stats.t.ppf(1 - part / 2, n - 1)
    methods = np.full(len(n), BONFERRONI, object)
    many = np.flatnonzero(n >= BOOTSTRAP_FROM)
    # Studentised by the spread at each point: a maximum of raw deviations would be set by the
    # noisiest layer and be too wide everywhere else. Centred, so that it is 0 on average.
    t = _resampled_t((sample[:, many] - np.nanmean(sample[:, many], 0)) / spread[many], seed)
    solved = np.isfinite(t).all(0)
    if solved.any():
        largest = np.abs(t[:, solved]).max(-1)
        # "weibull" at 95 % of 9,999 resamples is the 9,500th of them.
        level = 1 - part * np.sum(solved)
        critical[many[solved]] = np.quantile(largest, level, method="weibull")
        methods[many[solved]] = MAX_T
    return critical * spread / np.sqrt(n), methods


def _resampled_t(
    centred: Float64[np.ndarray, "prompt point"], seed: int
) -> Float64[np.ndarray, "resample point"]:
    """The t of each point in each resample of whole prompts; NaN where it has no spread."""
    known = ~np.isnan(centred)
    filled = np.where(known, centred, 0.0)
    # Whole prompts are drawn for all points at once, which keeps the correlation between layers:
    # that is why the band is narrower than Bonferroni's.
    draws = _draws(len(centred), seed)
    # Counts times values: sums over a resample without building it (9,999 x prompts x points).
    n = draws @ known.astype(np.float64)
    mean = draws @ filled / np.maximum(n, 1)
    # Values are centred and scaled to 1, so this one-pass variance loses few digits.
    squares = draws @ filled**2 - n * mean**2
    tested = (n > 1) & (squares > _NO_SPREAD * n)
    error = np.sqrt(np.where(tested, squares, 1.0) / np.maximum(n - 1, 1) / np.maximum(n, 1))
    # NaN where a resample drew the same value again and again: its t is infinite or 0 / 0, and the
    # point falls back to Bonferroni's t instead of an infinite band.
    return np.where(tested, mean / error, np.nan)


@lru_cache(maxsize=1)
def _draws(n: int, seed: int) -> Float64[np.ndarray, "resample prompt"]:
    """How often each resample draws each prompt; the bands of one report share it."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    counts = draws.astype(np.float64)
    # The cached array is handed out to every caller.
    counts.flags.writeable = False
    return counts


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """One measure at several points.

    Attributes:
        curve: Mean over prompts, with pointwise limits or a band (`Curve.simultaneous`).
        sd: Standard deviation over prompts (of a sample); NaN below 2 prompts.
    """

    curve: Curve
    sd: Float64[np.ndarray, " point"]

    def at(self, x: int) -> Interval:
        """The mean at one point, with its limits.

        Raises:
            ValueError: There is no such point.
        """
        return point_of(self.curve, x)


def spread(
    x: Int64[np.ndarray, " point"], values: Float[np.ndarray, "prompt point"], *, seed: int = SEED
) -> Spread:
    """Summarise one measure of every prompt; NaN is a prompt without data at that point."""
    exact = np.asarray(values, np.float64)
    return Spread(band(x, exact, seed=seed), deviation(exact))


def pointwise_spread(
    x: Int64[np.ndarray, " point"], values: Float64[np.ndarray, "prompt point"], *, seed: int = SEED
) -> Spread:
    """As `spread`, with limits that hold for each point by itself."""
    return Spread(curve(x, values, seed=seed), deviation(values))


def sparse_spread(
    x: Int64[np.ndarray, " point"], values: Float64[np.ndarray, "prompt point"]
) -> Spread:
    """As `spread`, with Bonferroni's t at every point, for values that vary in few prompts."""
    n, sd = (~np.isnan(values)).sum(0), deviation(values)
    estimate = mean_over_prompts(values)
    enough = n >= SMALLEST_SAMPLE
    # Only points with spread share the 5 %: elsewhere nothing can be missed.
    spreads = enough & (sd > _NO_SPREAD)
    # Two-sided, hence / 2, and split over the points.
    level = 1 - (1 - LEVEL) / 2 / max(int(spreads.sum()), 1)
    error = np.where(spreads, sd, 0.0) / np.sqrt(np.maximum(n, 1))
    half = np.where(enough, stats.t.ppf(level, np.maximum(n - 1, 1)) * error, np.nan)
    methods = [
        too_few(count) if not many else (BONFERRONI if moves else SAME)
        for count, many, moves in zip(n.tolist(), enough, spreads, strict=True)
    ]
    low, high = estimate - half, estimate + half
    return Spread(Curve(x, estimate, low, high, n, tuple(methods), simultaneous=True), sd)


def deviation(values: Float64[np.ndarray, "prompt *cell"]) -> Float64[np.ndarray, "*cell"]:
    """Standard deviation over the prompts with data (of a sample); NaN below 2 of them."""
    known = ~np.isnan(values)
    n = known.sum(0)
    away = np.where(known, values - mean_over_prompts(values), 0.0)
    squares = (away**2).sum(0)
    # Over n - 1: the standard deviation of a sample, undefined for one prompt.
    return np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)


def point_of(points: Curve, x: int) -> Interval:
    """One point of a curve.

    Raises:
        ValueError: There is no such point.
    """
    place = points.x.tolist().index(x)
    return Interval(
        estimate=float(points.estimate[place]),
        low=float(points.low[place]),
        high=float(points.high[place]),
        n=int(points.n[place]),
        method=points.methods[place],
    )
