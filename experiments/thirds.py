"""Early, middle and late: three equal parts of the layers, compared prompt by prompt."""

from itertools import pairwise

import numpy as np
from jaxtyping import Float64

from experiments.limits import Row, above, below, difference_metric, factor_metric, point
from tempo_analysis.parallel.entropy import CHANCE
from tempo_analysis.parallel.metrics import NONE, Metric
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.bands import band
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import comparison

THIRDS = ("early", "middle", "late")
PAIRS = (("middle", "early"), ("late", "early"), ("late", "middle"))

Table = Float64[np.ndarray, "prompt layer"]


def by_third(values: Table) -> Float64[np.ndarray, "prompt third"]:
    """Mean over the layers of each third; the middle one takes what three does not divide."""
    n = values.shape[1]
    third = n // 3
    edges = (0, third, n - third, n)
    parts = [values[:, a:b] for a, b in pairwise(edges)]
    return np.stack([mean_over_prompts(part.T) for part in parts], -1)


def third_metrics(name: str, arm: str, values: Table, *, logarithms: bool) -> list[Metric]:
    """The thirds, and their differences with limits that hold for all three at once.

    Args:
        name: Of what `values` is.
        values: For each prompt, means within each layer.
        logarithms: Whether they are log-ratios, shown as factors, or normalised entropies.
    """
    thirds = by_third(values)
    apart = np.stack([thirds[:, _at(a)] - thirds[:, _at(b)] for a, b in PAIRS], -1)
    limits = band(np.arange(len(PAIRS)), apart)
    made = []
    for place, third in enumerate(THIRDS):
        found = estimate_with_interval(thirds[:, place])
        if logarithms:
            made.append(factor_metric(f"{name}_{third}", arm, found, "a token alone"))
        else:
            below = estimate_with_interval(thirds[:, place] - CHANCE)
            text = comparison(below, "chance", scale="difference")
            made.append(Metric(f"{name}_{third}", arm, "", found, CHANCE, NONE, text))
    for place, (first, second) in enumerate(PAIRS):
        found, against = point(limits, place), f"the {second} third"
        if logarithms:
            made.append(factor_metric(f"{name}_{first}_over_{second}", arm, found, against))
        else:
            made.append(
                difference_metric(f"{name}_{first}_minus_{second}", arm, "", found, against)
            )
    return made


def order(rows: dict[tuple[str, str], Row], first: str, second: str, zero: float) -> int:
    """-1, 0 or 1: the first third lies below the second, is not told apart from it, lies above.

    Args:
        rows: The difference of each of `PAIRS`.
        zero: Its value where both are equal.
    """
    turned = (first, second) not in rows
    row = rows[second, first] if turned else rows[first, second]
    found = int(above(row, zero)) - int(below(row, zero))
    return -found if turned else found


def _at(third: str) -> int:
    return THIRDS.index(third)
