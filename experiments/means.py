"""Rows of `result.json` that are means over prompts, beside chance and a null."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from tempo_analysis.parallel.metrics import NONE, Metric
from tempo_analysis.stats.bands import band
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import ROUNDING_NATS, comparison, divergence_verdict, verdict

NOT_COMPARED = "nothing to compare with"
Values = Float[np.ndarray, " prompt"]


def mean_of(
    name: str,
    arm: str,
    values: Values,
    *,
    unit: str = "",
    chance: float = NONE,
    null: Values | None = None,
) -> Metric:
    """A mean over prompts; NaN is a prompt without data.

    Args:
        chance: What it would be if there were nothing to find.
        null: The same quantity where nothing was changed, by prompt.
    """
    against_null = None
    if null is not None:
        null = np.where(np.isnan(values), np.nan, null)
        against_null = estimate_with_interval(values - null)
    text = verdict(
        None if np.isnan(chance) else estimate_with_interval(values - chance),
        against_null,
        scale="difference",
        no_null="" if not np.isnan(chance) else NOT_COMPARED,
    )
    found = estimate_with_interval(values)
    known = np.empty(0) if null is None else null[~np.isnan(null)]
    return Metric(name, arm, unit, found, chance, float(known.mean()) if len(known) else NONE, text)


def divergence_of(name: str, arm: str, nats: Values) -> Metric:
    """A mean Kullback-Leibler divergence; the null is rounding."""
    found = estimate_with_interval(nats)
    return Metric(name, arm, "nats", found, 0.0, ROUNDING_NATS, divergence_verdict(found))


def factor_of(name: str, arm: str, log_ratio: Values, *, other: str) -> Metric:
    """A ratio to something else, 1 if equal: the geometric mean over prompts."""
    logs = estimate_with_interval(log_ratio)
    text = comparison(logs, "the reference", scale="ratio").replace("the reference", other)
    return Metric(name, arm, "ratio", logs.exponentiated(), 1.0, NONE, text)


def curve_of(by_prompt: Float64[np.ndarray, "prompt point"]) -> Mapping[str, Any]:
    """Means at every point with limits that hold at all points at once."""
    found = band(np.arange(by_prompt.shape[1]), by_prompt)
    return {
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "n": int(found.n.max()),
    }


def mean_known(values: np.ndarray) -> float:
    """Mean of what is known; NaN of nothing."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else NONE
