"""A paired ratio as a row of a result."""

import numpy as np
from jaxtyping import Float64

from tempo_analysis.parallel.metrics import NONE, Metric
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import comparison


def ratio_metric(
    name: str, arm: str, log_ratio: Float64[np.ndarray, " prompt"], other: str
) -> Metric:
    """Geometric mean over prompts of the ratio to another arm; 1 is "no difference"."""
    logs = estimate_with_interval(log_ratio)
    text = comparison(logs, "the null", scale="ratio").replace("the null", other)
    return Metric(name, arm, "ratio", logs.exponentiated(), NONE, 1.0, text)
