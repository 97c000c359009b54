"""Simultaneous bands: limits over prompts that hold at every layer or step at once.

From 30 prompts on the half-width is c standard errors, where c is the 95 % quantile of the largest
|t| over the points when prompts are resampled with all their points (studentised bootstrap, Davison
and Hinkley 1997, section 4.2.4; 9,999 resamples). From 8 to 29 prompts it is Student's t with
Bonferroni's correction. Where both kinds of points meet, each point has the same part of the 5 %.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy import stats

from analysis.averages import mean_over_prompts
from analysis.statistics import (
    BOOTSTRAP_FROM,
    INFINITE,
    LEVEL,
    RESAMPLES,
    SAME,
    SEED,
    SMALLEST_SAMPLE,
    Curve,
    too_few,
)

MAX_T = "simultaneous: max-|t| bootstrap over prompts"
BONFERRONI = "simultaneous: Bonferroni t over prompts"

_NO_SPREAD = 1e-12


def band(
    x: Int64[np.ndarray, " point"], values: Float[np.ndarray, "prompt point"], *, seed: int = SEED
) -> Curve:
    """Mean over prompts at each point, with limits that hold at all points at once.

    NaN is a prompt without data at that point; the other points of the prompt still count. Points
    without limits (fewer than 8 prompts, infinite values) are no part of the band, and neither are
    those where every prompt has the same value. A point from 30 prompts on of which some resample
    has no spread has Bonferroni's limits.
    """
    table = np.asarray(values, np.float64)
    n = np.sum(~np.isnan(table), axis=0)
    with np.errstate(invalid="ignore"):
        estimate = mean_over_prompts(table)
    methods = _settled(table, n)
    low, high = np.full((2, len(x)), np.nan)
    same = methods == SAME
    low[same] = high[same] = estimate[same]
    unsettled = np.flatnonzero(methods == "")
    if unsettled.size:
        half, methods[unsettled] = _half_widths(table[:, unsettled], seed)
        low[unsettled], high[unsettled] = estimate[unsettled] - half, estimate[unsettled] + half
    return Curve(x, estimate, low, high, n, tuple(methods.tolist()), simultaneous=True)


def _settled(
    table: Float64[np.ndarray, "prompt point"], n: Int64[np.ndarray, " point"]
) -> np.ndarray:
    """The method of each point that needs no resampling; empty for the others."""
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
    sample = sample[~np.isnan(sample).all(-1)]
    n = np.sum(~np.isnan(sample), axis=0)
    spread = np.nanstd(sample, axis=0, ddof=1)
    part = (1 - LEVEL) / len(n)
    critical = stats.t.ppf(1 - part / 2, n - 1)
    methods = np.full(len(n), BONFERRONI, object)
    many = np.flatnonzero(n >= BOOTSTRAP_FROM)
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
    draws = _draws(len(centred), seed)
    n = draws @ known.astype(np.float64)
    mean = draws @ filled / np.maximum(n, 1)
    squares = draws @ filled**2 - n * mean**2
    tested = (n > 1) & (squares > _NO_SPREAD * n)
    error = np.sqrt(np.where(tested, squares, 1.0) / np.maximum(n - 1, 1) / np.maximum(n, 1))
    return np.where(tested, mean / error, np.nan)


@lru_cache(maxsize=1)
def _draws(n: int, seed: int) -> Float64[np.ndarray, "resample prompt"]:
    """How often each resample draws each prompt; the bands of one report share it."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    counts = draws.astype(np.float64)
    counts.flags.writeable = False
    return counts
