"""Does attention narrow with depth, and does it still without the sink?

Change is the mean normalised entropy of the last third of the layers less that of the first third,
within each text; below 0 is narrowing. Rows average over heads first, layers last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.roles.rows import Stacked, scores_of
from analysis.roles.spectrum import Spectrum
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval


@dataclass(frozen=True, slots=True)
class Funnel:
    """One kind of entropy along the layers, over texts.

    Attributes:
        by_layer: Mean over heads and texts, H / ln n; even rows have 1.
        first: Mean over texts of the first third of the layers.
        last: Mean over texts of the last third.
        change: Last less first, paired within each text.
    """

    by_layer: Float64[np.ndarray, " layer"]
    first: Interval
    last: Interval
    change: Interval


def funnels(texts: Sequence[Spectrum], *, seed: int = SEED) -> dict[str, Funnel]:
    """The funnel of whole rows ("with") and of rows without slot 0 ("without")."""
    whole = scores_of([text.normalised for text in texts])
    rest = scores_of([text.normalised_without_sink for text in texts])
    return {"with": _funnel(whole, seed), "without": _funnel(rest, seed)}


def _funnel(values: Stacked, seed: int) -> Funnel:
    by_layer = np.nanmean(values, axis=2)
    third = max(by_layer.shape[1] // 3, 1)
    first, last = by_layer[:, :third].mean(1), by_layer[:, -third:].mean(1)
    return Funnel(
        by_layer=mean_over_prompts(by_layer),
        first=estimate_with_interval(first, seed=seed),
        last=estimate_with_interval(last, seed=seed),
        change=estimate_with_interval(last - first, seed=seed),
    )
