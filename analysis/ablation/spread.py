"""Mean, standard deviation and limits over prompts, at each layer or offset.

By layer the limits are the band of `analysis.bands`. Its resampled t has no use where nearly all
prompts have 0 and a few have much, as at the offset where the first token of one prompt happens to
stand: a resample without those prompts has next to no spread. By offset, therefore, the limits are
Student's t with Bonferroni's correction whatever the number of prompts. Indices have limits for
each point by itself.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy import stats

from analysis.averages import mean_over_prompts
from analysis.bands import BONFERRONI, band
from analysis.statistics import (
    LEVEL,
    SAME,
    SEED,
    SMALLEST_SAMPLE,
    Curve,
    Interval,
    curve,
    too_few,
)

_NO_SPREAD = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """One measure at several points.

    Attributes:
        curve: Mean over prompts; it says whether its limits hold at all points at once.
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
    """As `spread`, where few prompts may have all the spread: Bonferroni's t at every point."""
    n, sd = (~np.isnan(values)).sum(0), deviation(values)
    estimate = mean_over_prompts(values)
    enough = n >= SMALLEST_SAMPLE
    spreads = enough & (sd > _NO_SPREAD)
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
