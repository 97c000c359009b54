"""Averages over query rows: computed per layer, head and query first, averaged last."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

ByHead = Float64[np.ndarray, "layer head"]
"""One number for each head; NaN where a head has none."""


@dataclass(frozen=True, slots=True)
class RowAverage:
    """Sum and number of the query rows that have a value, for one prompt.

    Keeping both lets one pass over a trace be averaged by step, by layer, by head or over all, each
    row counting once. An average over no row is NaN.

    Attributes:
        total: Sum over the queries of a step; the first entry is step 1.
        count: How many queries had a value.
    """

    # Queries are summed already: every further average only adds cells of this table.
    total: Float64[np.ndarray, "step layer head"]
    count: Int64[np.ndarray, "step layer head"]

    def overall(self) -> float:
        """Average over every row."""
        return float(quotient(self.total.sum(), self.count.sum()))

    def by_step(self) -> Float64[np.ndarray, " step"]:
        """Average over layers, heads and queries at each step."""
        return quotient(self.total.sum((1, 2)), self.count.sum((1, 2)))

    def by_layer(self) -> Float64[np.ndarray, " layer"]:
        """Average over steps, heads and queries in each layer."""
        return quotient(self.total.sum((0, 2)), self.count.sum((0, 2)))

    def by_head(self) -> Float64[np.ndarray, "layer head"]:
        """Average over steps and queries for each head."""
        return quotient(self.total.sum(0), self.count.sum(0))

    def weighted(self, weights: Int64[np.ndarray, " step"]) -> "RowAverage":
        """The same with the rows of each step counted several times."""
        # Total and count alike: rows repeat, their mean within a step stays the same.
        each = weights[:, None, None]
        return RowAverage(self.total * each, self.count * each)

    def merged(self) -> "RowAverage":
        """The same with all steps in one, where the step no longer matters."""
        return RowAverage(self.total.sum(0, keepdims=True), self.count.sum(0, keepdims=True))


def average_rows(
    steps: Sequence[Float[np.ndarray, "layer head _"]], *, n_layers: int, n_heads: int
) -> RowAverage:
    """Collect the values of every row of each step; NaN is a row without a value."""
    total = np.zeros((len(steps), n_layers, n_heads))
    count = np.zeros((len(steps), n_layers, n_heads), np.int64)
    for number, values in enumerate(steps):
        known = ~np.isnan(values)
        # float64 sums: thousands of float32 rows would lose digits in the order of summing.
        total[number] = np.where(known, values, 0.0).sum(-1, dtype=np.float64)
        count[number] = known.sum(-1)
    return RowAverage(total, count)


def quotient(
    total: Float[np.ndarray, "*cell"] | np.floating, count: Int64[np.ndarray, "*cell"] | np.integer
) -> Float64[np.ndarray, "*cell"]:
    """Total over count; NaN where the count is 0."""
    # np.where evaluates both branches, and 0 / 0 would warn, which is an error in the tests.
    safe = np.where(count > 0, count, 1)
    return np.where(count > 0, total / safe, np.nan)


def mean_over_prompts(values: Float[np.ndarray, "prompt *cell"]) -> Float64[np.ndarray, "*cell"]:
    """Mean over the prompts that have a value; NaN where none has."""
    # Not np.nanmean, which warns where no prompt has a value.
    known = ~np.isnan(values)
    return quotient(np.where(known, values, 0.0).sum(0), known.sum(0))


def aligned_steps(
    rows: Sequence[Float64[np.ndarray, " _"]],
) -> Float64[np.ndarray, "prompt step"]:
    """Per-step values of several prompts in one table; NaN after a prompt's last step."""
    # NaN, not 0: a prompt that ended early has no data there and leaves n, not the mean, smaller.
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), np.nan)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table
