"""Does a head pay the slots of sets less than other earlier slots?"""

import numpy as np
from jaxtyping import Float64, Int64

from analysis.roles.rows import HeadScore
from tempo_analysis.parallel.arms import Labels
from tempo_analysis.parallel.observation import GROUP, ObservedTrace
from tempo_analysis.parallel.ratio import paired_ratio
from tempo_analysis.stats.intervals import MARGIN

THRESHOLD = MARGIN
"""At least 10 % less, on the scale of logarithms."""

LARGEST = float(np.log(1e6))
"""A head that pays sets nothing has an infinite score, which no mean survives: it gets this."""

_OTHERS = ("recent_prompt", "other_prompt", "earlier_singletons")


def set_ignoring(
    observed: ObservedTrace, greedy: ObservedTrace, labels: Labels
) -> tuple[HeadScore, HeadScore]:
    """Minus the log-ratio of `tempo_analysis.parallel.ratio` without the sink, and its null, for one prompt.

    The ratio is the mean weight per slot of earlier sets over that per other earlier slot, both
    over the rows that see both kinds; 0 is chance. Sets are younger than the prompt, so a head
    that likes old slots ignores them too: the null is the greedy run of the same prompt, whose
    steps inherit the labels of the sets beside them (`tempo_analysis.parallel.arms`). Steps that both runs have
    count.

    Returns:
        The score and its null, each NaN without rows.
    """
    pair = paired_ratio(observed, greedy, labels)
    n_rows = _rows_with_both(observed.first(len(labels) - 1))
    score, null = (run.without_sink.by_head for run in (pair.common, pair.null))
    return _as_score(score, n_rows), _as_score(null, n_rows)


def _as_score(log_ratio: Float64[np.ndarray, "layer head"], n_rows: np.ndarray) -> HeadScore:
    chance = np.where(np.isnan(log_ratio), np.nan, 0.0)
    return HeadScore(np.clip(-log_ratio, -LARGEST, LARGEST), chance, n_rows)


def _rows_with_both(observed: ObservedTrace) -> Int64[np.ndarray, " layer"]:
    found = np.zeros(len(observed.layers), np.int64)
    for step in observed.steps:
        others = sum(step.count[..., GROUP[name]] for name in _OTHERS)
        found += ((step.count[..., GROUP["earlier_sets"]] > 0) & (others > 0)).sum(-1)
    return found
