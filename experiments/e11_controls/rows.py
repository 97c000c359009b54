"""Rows of the result: a ratio, its null and the ratio over its null, from values per prompt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from experiments.limits import factor_metric
from tempo_analysis.parallel.distance import MatchedRatio
from tempo_analysis.parallel.metrics import NONE, Metric, metric_row
from tempo_analysis.parallel.ratio import AttentionRatio
from tempo_analysis.parallel.relevance import Relevance
from tempo_analysis.stats.intervals import Interval, estimate_with_interval
from tempo_analysis.stats.verdict import comparison

Values = Float64[np.ndarray, " prompt"]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Logs:
    """Log-ratios of every prompt: of the arm, of its null, and their difference."""

    ratio: Values
    null: Values
    over_null: Values

    @classmethod
    def of(cls, found: AttentionRatio | MatchedRatio) -> "Logs":
        """Those of a ratio over prompts."""
        return cls(found.log_ratio, found.log_null, found.log_over_null)

    def each(self, function: Callable[[Values], Values]) -> "Logs":
        """The same function of all three."""
        return Logs(function(self.ratio), function(self.null), function(self.over_null))


def control_rows(name: str, arm: str, logs: Logs) -> list[Row]:
    """Ratio and ratio over null; even attention has 1."""
    ratio, null, over = (
        estimate_with_interval(each) for each in (logs.ratio, logs.null, logs.over_null)
    )
    plain = ratio.exponentiated(), null.exponentiated().estimate
    texts = comparison(ratio, "chance", scale="ratio"), comparison(over, "the null", scale="ratio")
    made = [
        Metric(name, arm, "ratio", plain[0], 1.0, plain[1], texts[0]),
        Metric(f"{name}_over_null", arm, "ratio", over.exponentiated(), NONE, 1.0, texts[1]),
    ]
    return [metric_row(one) for one in made]


def distance_rows(found: MatchedRatio, arm: str) -> list[Row]:
    """The same at matched distances, where even attention has a value of its own."""
    name = "matched_distance"
    rows = [
        {**row, "chance": found.chance.estimate} if row["name"] == name else row
        for row in control_rows(name, arm, Logs.of(found))
    ]
    over_chance = estimate_with_interval(found.log_ratio - found.log_chance)
    text = comparison(over_chance, "chance", scale="ratio")
    over = Metric(f"{name}_over_chance", arm, "", over_chance.exponentiated(), 1.0, NONE, text)
    return [{**rows[0], "verdict": text}, *rows[1:], metric_row(over)]


def change_row(name: str, arm: str, log_ratio: Values, against: str) -> Row:
    """A factor, paired by prompt."""
    return metric_row(factor_metric(name, arm, estimate_with_interval(log_ratio), against))


def share_rows(found: Relevance, arm: str) -> list[Row]:
    """What the first token gets, by weight and by weight times value."""
    change = comparison(found.sink_change, "the reference", scale="difference")
    return [
        plain_row("sink_mass", arm, found.sink_mass),
        plain_row("sink_share_by_value", arm, found.sink_share),
        plain_row(
            "sink_share_less_mass", arm, found.sink_change, change.replace("reference", "weight")
        ),
    ]


def plain_row(name: str, arm: str, found: Interval, text: str = "") -> Row:
    """A number beside nothing."""
    return metric_row(Metric(name, arm, "", found, NONE, NONE, text))
