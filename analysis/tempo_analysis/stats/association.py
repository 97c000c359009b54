"""Association of two quantities within a prompt: rank correlation, AUC and slopes.

Each is computed within a prompt and averaged over prompts, so differences between prompts do
not affect it. With `groups` (a label for each item, such as its set) only items of
the same group of a prompt are compared. Items are padded with NaN, which is no item.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy import stats

from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval

Items = Float[np.ndarray, "prompt item"]
Groups = Int[np.ndarray, "prompt item"] | None
"""Labels within a prompt; None is one group."""

NO_CORRELATION = 0.0
"""Expected rank correlation of unrelated quantities."""
EVEN_AREA = 0.5
"""Expected AUC of uninformative scores."""

# Relative to the largest predictor value: what centring leaves below it is rounding, not variation.
_ROUNDING = 1e-10


def mean_rank_correlation(
    first: Items, second: Items, groups: Groups = None, *, seed: int = SEED
) -> Interval:
    """Mean over prompts of `rank_correlations`; below 8 prompts NaN limits and the reason."""
    return estimate_with_interval(rank_correlations(first, second, groups), seed=seed)


def mean_area(
    scores: Items,
    positive: Bool[np.ndarray, "prompt item"],
    groups: Groups = None,
    *,
    seed: int = SEED,
) -> Interval:
    """Mean over prompts of `areas`; below 8 prompts NaN limits and the reason."""
    return estimate_with_interval(areas(scores, positive, groups), seed=seed)


def mean_slopes(
    y: Items,
    x: Float[np.ndarray, "prompt item predictor"],
    groups: Groups = None,
    *,
    seed: int = SEED,
) -> tuple[Interval, ...]:
    """Mean over prompts of `slopes`, one for each predictor; below 8 prompts NaN limits."""
    return tuple(estimate_with_interval(each, seed=seed) for each in slopes(y, x, groups).T)


def rank_correlations(
    first: Items, second: Items, groups: Groups = None
) -> Float64[np.ndarray, " prompt"]:
    """Spearman's correlation in each prompt; ties share their mean rank.

    With groups, ranks are taken within each group, centred on its mean, then pooled. NaN where the
    items outnumber the groups by fewer than 2, or where a quantity does not vary.
    """
    table = np.stack([first, second], axis=-1)
    found = [_rank_correlation(items, labels) for items, labels in _prompts(table, groups)]
    return np.array(found, np.float64)


def areas(
    scores: Items, positive: Bool[np.ndarray, "prompt item"], groups: Groups = None
) -> Float64[np.ndarray, " prompt"]:
    """Share of the pairs of each prompt whose positive item has the higher score; ties count 1/2.

    This is the area under the ROC curve. With groups only pairs of one group count. NaN where a
    prompt has no pair of a positive and another item.
    """
    table = np.stack([scores, positive], axis=-1)
    return np.array([_area(items, labels) for items, labels in _prompts(table, groups)], np.float64)


def slopes(
    y: Items, x: Float[np.ndarray, "prompt item predictor"], groups: Groups = None
) -> Float64[np.ndarray, "prompt predictor"]:
    """Least-squares slopes of y on all predictors at once, in each prompt, in y per unit of x.

    Each group has its own intercept. NaN for a prompt without a residual degree of freedom, with a
    predictor that does not vary or that follows from the others, or with infinite values.
    """
    table = np.concatenate([y[..., None], x], axis=-1)
    found = [_slopes(items, labels) for items, labels in _prompts(table, groups)]
    return np.array(found, np.float64).reshape(len(y), x.shape[-1])


def _prompts(
    table: Float[np.ndarray, "prompt item column"], groups: Groups
) -> Iterator[tuple[Float64[np.ndarray, "known column"], Int[np.ndarray, " known"]]]:
    """The items of each prompt that have every value, and their groups."""
    labels = np.zeros(table.shape[:2], np.int64) if groups is None else groups
    for items, label in zip(table.astype(np.float64), labels, strict=True):
        # Item by item over all columns: both quantities must be over the same items.
        known = ~np.isnan(items).any(-1)
        yield items[known], label[known]


def _rank_correlation(
    items: Float64[np.ndarray, "known 2"], labels: Int[np.ndarray, " known"]
) -> float:
    members = _members(labels)
    # Each group's mean takes one degree of freedom; with one left any correlation is +-1.
    if len(items) < len(members) + 2:
        return float("nan")
    ranks = np.empty_like(items)
    for here in members:
        # Ranks inside the group: ranks over all items would carry the differences between groups.
        ranks[here] = stats.rankdata(items[here], axis=0)
    first, second = _centred(ranks, members).T
    size = np.sqrt((first @ first) * (second @ second))
    # A quantity that does not vary has no correlation; 0 would claim there is none.
    return float(first @ second / size) if size > 0 else float("nan")


def _area(items: Float64[np.ndarray, "known 2"], labels: Int[np.ndarray, " known"]) -> float:
    wins = pairs = 0.0
    for here in _members(labels):
        positive = items[here, 1] == 1
        n_positive = int(positive.sum())
        ranks = stats.rankdata(items[here, 0])
        # Mann and Whitney's U: the rank sum less the smallest it can be. Ties share mean ranks,
        # which is what makes them count 1/2.
        wins += float(ranks[positive].sum()) - n_positive * (n_positive + 1) / 2
        pairs += n_positive * (len(ranks) - n_positive)
    # Groups are pooled by pairs, so a group counts by how many comparisons it offers.
    return wins / pairs if pairs else float("nan")


def _slopes(
    items: Float64[np.ndarray, "known column"], labels: Int[np.ndarray, " known"]
) -> Float64[np.ndarray, " predictor"]:
    members, n_predictors = _members(labels), items.shape[1] - 1
    nothing = np.full(n_predictors, np.nan)
    # Groups and slopes use up the items: the fit would be exact and its slopes meaningless.
    if len(items) <= len(members) + n_predictors or not np.isfinite(items).all():
        return nothing
    centred = _centred(items, members)
    y, x = centred[:, 0], centred[:, 1:]
    # Scaled to 1, because lstsq's rank test is relative to the largest singular value and would
    # drop a predictor for its unit alone.
    spread = np.abs(x).max(0)
    if (spread <= _ROUNDING * np.abs(items[:, 1:]).max(0)).any():
        return nothing
    found, _, rank, _ = np.linalg.lstsq(x / spread, y, rcond=_ROUNDING)
    # With a predictor that follows from the others lstsq returns one of many solutions (the
    # shortest), which is no estimate.
    return found / spread if rank == n_predictors else nothing


def _members(labels: Int[np.ndarray, " known"]) -> list[Bool[np.ndarray, " known"]]:
    """Which items belong to each group."""
    return [labels == label for label in np.unique(labels)]


def _centred(
    items: Float64[np.ndarray, "known column"], members: list[Bool[np.ndarray, " known"]]
) -> Float64[np.ndarray, "known column"]:
    """Items less the mean of their group."""
    centred = items.copy()
    for here in members:
        centred[here] -= items[here].mean(0)
    return centred
