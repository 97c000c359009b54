"""Intervals over prompts: the prompt is the unit, layers, heads and steps are not replicates."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy import stats

from tempo.errors import TooFewPromptsError

LEVEL = 0.95
# Below 8 prompts the t interval leans on normality that cannot be seen in so few; below 30 the BCa
# bootstrap covers less than it claims.
SMALLEST_SAMPLE = 8
BOOTSTRAP_FROM = 30
# 9,999 and not 10,000: 0.025 (n + 1) is a whole number, so a percentile is an order statistic.
RESAMPLES = 9999
SEED = 0
"""Default seed of the bootstrap, for runs without a seed of their own."""
# On the logarithm, so that 1.1 and 1 / 1.1 are equally far from 1.
MARGIN = float(np.log(1.1))
"""Equivalence margin on log-ratios: within 10 %."""

# Relative; equal values may differ in their last digits by the order of summing.
_NO_SPREAD = 1e-12
# Resamples in memory at once: 200 x points x prompts numbers.
_BATCH = 200

BOOTSTRAP = "BCa bootstrap over prompts"
STUDENT = "Student t over prompts"
SAME = "every prompt has the same value"
INFINITE = "no interval: infinite values"
EXACT = "exact binomial over prompts"


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over prompts with its confidence interval.

    Attributes:
        estimate: Mean over prompts; NaN without data.
        low: Lower limit; NaN where there are too few prompts.
        high: Upper limit; NaN where there are too few prompts.
        n: Prompts with data.
        method: How the limits were found, or why there are none.
        level: Confidence level.
        n_dropped: Prompts left out because they have no data.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str
    level: float = LEVEL
    n_dropped: int = 0

    def exponentiated(self) -> "Interval":
        """The interval of a ratio (geometric mean over prompts), from that of its logarithm."""
        estimate, low, high = np.exp([self.estimate, self.low, self.high]).tolist()
        return replace(self, estimate=estimate, low=low, high=high)

    def logarithm(self) -> "Interval":
        """Undo `exponentiated`."""
        # A ratio of 0 is -inf in logarithms, which is what it was.
        with np.errstate(divide="ignore"):
            estimate, low, high = np.log([self.estimate, self.low, self.high]).tolist()
        return replace(self, estimate=estimate, low=low, high=high)


@dataclass(frozen=True, slots=True)
class Curve:
    """Means over prompts at several points (steps or layers), with limits at each.

    Limits from `curve` hold for each point by itself, those from `stats.bands` at all at once.

    Attributes:
        x: Step or layer number of each point.
        n: Prompts with data at each point.
        methods: How the limits of each point were found.
        simultaneous: Whether the limits hold at all points at once (a band), not at each alone.
    """

    x: Int64[np.ndarray, " point"]
    estimate: Float64[np.ndarray, " point"]
    low: Float64[np.ndarray, " point"]
    high: Float64[np.ndarray, " point"]
    n: Int64[np.ndarray, " point"]
    methods: tuple[str, ...]
    simultaneous: bool = False

    def exponentiated(self) -> "Curve":
        """The curve of a ratio, from that of its logarithm."""
        return replace(
            self, estimate=np.exp(self.estimate), low=np.exp(self.low), high=np.exp(self.high)
        )


def too_few(n: int) -> str:
    """Why `n` prompts get no interval."""
    return f"too few prompts for an interval ({n} of {SMALLEST_SAMPLE})"


def interval(values: Float[np.ndarray, " prompt"], *, seed: int = SEED) -> Interval:
    """Mean over prompts with its 95 % interval; prompts with NaN are dropped and counted.

    Raises:
        TooFewPromptsError: Fewer than 8 prompts have data.
    """
    n = int(np.sum(~np.isnan(values)))
    if n < SMALLEST_SAMPLE:
        raise TooFewPromptsError(
            f"expected at least {SMALLEST_SAMPLE} prompts with data for an interval, got {n}; "
            "add prompts"
        )
    return estimate_with_interval(values, seed=seed)


def estimate_with_interval(values: Float[np.ndarray, " prompt"], *, seed: int = SEED) -> Interval:
    """As `interval`, but fewer than 8 prompts give an estimate with NaN limits and the reason."""
    # Through `curve`, so that a single number and a point of a curve agree to the last digit.
    points = curve(np.zeros(1, np.int64), values[:, None], seed=seed)
    return Interval(
        estimate=float(points.estimate[0]),
        low=float(points.low[0]),
        high=float(points.high[0]),
        n=int(points.n[0]),
        method=points.methods[0],
        n_dropped=len(values) - int(points.n[0]),
    )


def share_with_interval(values: Float[np.ndarray, " prompt"]) -> Interval:
    """Share of prompts whose value is 1 (the others have 0), with exact limits.

    The limits are those of Clopper and Pearson 1934. NaN is no data; there are no limits for fewer
    than 8 prompts.
    """
    known = values[~np.isnan(values)]
    n, dropped = len(known), len(values) - len(known)
    if n < SMALLEST_SAMPLE:
        mean = float(known.mean()) if n else np.nan
        return Interval(mean, np.nan, np.nan, n, too_few(n), n_dropped=dropped)
    # Exact: a bootstrap of a share of 0 or 1 has no spread and would give no interval.
    found = stats.binomtest(int(known.sum()), n)
    limits = found.proportion_ci(confidence_level=LEVEL, method="exact")
    share = float(found.statistic)
    return Interval(share, float(limits.low), float(limits.high), n, EXACT, n_dropped=dropped)


def paired_difference(
    first: Float[np.ndarray, " prompt"], second: Float[np.ndarray, " prompt"], *, seed: int = SEED
) -> Interval:
    """Mean of `first - second` over the prompts that have both; the same prompt at the same place.

    Raises:
        TooFewPromptsError: Fewer than 8 prompts have both.
    """
    # The difference within each prompt is one sample; NaN in either drops the pair.
    return interval(np.asarray(first - second, np.float64), seed=seed)


def curve(
    x: Int64[np.ndarray, " point"], values: Float[np.ndarray, "prompt point"], *, seed: int = SEED
) -> Curve:
    """Mean over prompts at each point, with limits where 8 prompts or more have data there."""
    # Points first: every row is then one sample over prompts.
    table = np.asarray(values, np.float64).T
    present = ~np.isnan(table)
    estimate, low, high = np.full((3, len(x)), np.nan)
    methods = [""] * len(x)
    # Points with data from the same prompts are resampled together in one vectorised call; in most
    # runs that is all of them.
    for pattern in np.unique(present, axis=0):
        points = np.flatnonzero((present == pattern).all(-1))
        sample = table[np.ix_(points, pattern)]
        estimate[points] = _mean(sample)
        low[points], high[points], names = _limits(sample, seed)
        for point, name in zip(points, names, strict=True):
            methods[point] = name
    return Curve(x, estimate, low, high, present.sum(-1), tuple(methods))


def equivalent(log_ratio: Interval, margin: float = MARGIN) -> bool:
    """Whether the whole interval lies strictly within +-margin; False without an interval."""
    # NaN limits compare as False: without an interval nothing is equivalent. The interval of 95 %
    # is stricter than the usual two one-sided tests at 5 % (90 %).
    return bool(-margin < log_ratio.low and log_ratio.high < margin)


def p_values(values: Float[np.ndarray, "prompt *series"]) -> Float64[np.ndarray, "*series"]:
    """Two-sided p of "the mean over prompts is 0" (one-sample t) for each series.

    NaN where fewer than 8 prompts have data, or where they do not differ.
    """
    # Infinite log-ratios have no t; they count as no data here.
    present = np.isfinite(values)
    n = present.sum(0)
    enough = n >= SMALLEST_SAMPLE
    filled = np.where(present, values, 0.0)
    mean = filled.sum(0) / np.maximum(n, 1)
    squares = np.where(present, (filled - mean) ** 2, 0.0).sum(0)
    # Sample variance (n - 1) over n; the maxima only keep 0 out of cells that are dropped below.
    error = np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1))
    # Without spread t is infinite and p 0: equal values of all prompts are no test.
    tested = enough & (error > _NO_SPREAD)
    t = np.divide(mean, error, out=np.zeros_like(mean), where=tested)
    # sf, not 1 - cdf, which is 0 from p < 1e-16 on.
    p = 2 * stats.t.sf(np.abs(t), np.maximum(n - 1, 1))
    return np.where(tested, p, np.nan)


def benjamini_hochberg(p: Float[np.ndarray, "*series"]) -> Float64[np.ndarray, "*series"]:
    """Adjusted p-values (false discovery rate, Benjamini and Hochberg 1995); NaN is not a test."""
    adjusted = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        # Only what was tested counts in the number of tests: NaN cells would make every q larger.
        adjusted[tested] = stats.false_discovery_control(p[tested], method="bh")
    return adjusted


def _mean(sample: Float64[np.ndarray, "point prompt"]) -> Float64[np.ndarray, " point"]:
    if sample.shape[1] == 0:
        return np.full(len(sample), np.nan)
    with np.errstate(invalid="ignore"):
        return sample.mean(-1)


def _limits(
    sample: Float64[np.ndarray, "point prompt"], seed: int
) -> tuple[Float64[np.ndarray, " point"], Float64[np.ndarray, " point"], list[str]]:
    """Limits of the mean of each row of complete data, and the method used."""
    points, n = sample.shape
    low, high = np.full((2, points), np.nan)
    if n < SMALLEST_SAMPLE:
        return low, high, [too_few(n)] * points
    # An infinite value makes mean and spread infinite or NaN, at any n.
    finite = np.isfinite(sample).all(-1)
    same = finite & _has_no_spread(sample)
    low[same] = high[same] = sample[same].mean(-1)
    spread = finite & ~same
    names = np.where(finite, SAME, INFINITE).astype(object)
    if n >= BOOTSTRAP_FROM and spread.any():
        low[spread], high[spread] = _bootstrap_limits(sample[spread], seed)
        names[spread] = BOOTSTRAP
    # From 8 to 29 prompts, and where BCa has no answer (its acceleration or bias is undefined, as
    # with nearly all values equal).
    unsolved = spread & ~np.isfinite(low + high)
    if unsolved.any():
        low[unsolved], high[unsolved] = _student_limits(sample[unsolved])
        names[unsolved] = STUDENT
    return low, high, names.tolist()


def _has_no_spread(sample: Float64[np.ndarray, "point prompt"]) -> Bool[np.ndarray, " point"]:
    """Whether the values of a row differ by rounding only."""
    with np.errstate(invalid="ignore"):
        scale = np.maximum(np.abs(sample).max(-1), 1.0)
        return np.ptp(sample, axis=-1) <= _NO_SPREAD * scale


def _bootstrap_limits(
    sample: Float64[np.ndarray, "point prompt"], seed: int
) -> tuple[Float64[np.ndarray, " point"], Float64[np.ndarray, " point"]]:
    """BCa limits; all rows share the draws, so the limits of one do not depend on the others."""
    result = stats.bootstrap(
        (sample,),
        np.mean,
        axis=-1,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="BCa",
        batch=_BATCH,
        vectorized=True,
        # A new generator for each call: limits do not depend on what was computed before.
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def _student_limits(
    sample: Float64[np.ndarray, "point prompt"],
) -> tuple[Float64[np.ndarray, " point"], Float64[np.ndarray, " point"]]:
    n = sample.shape[1]
    # Two-sided: 2.5 % in each tail, n - 1 degrees of freedom, ddof 1 to match.
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * sample.std(-1, ddof=1) / np.sqrt(n)
    return sample.mean(-1) - half, sample.mean(-1) + half


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question that the data cannot answer, and why."""

    question: str
    arm: str
    reason: str
