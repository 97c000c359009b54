"""Receiver heads: attention of all later sentences to a few sentences.

Source: Bogdan et al. 2025, Thought Anchors (arXiv 2506.19143).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy.stats import rankdata

from tempo.errors import InputError
from tempo_analysis.stats.averages import ByHead, mean_over_prompts
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows, Stacked, by_layer

RECEIVER_THRESHOLD = 0.5
"""Smallest cut on kurtosis / bound (`receiver_cut`). One sentence that stands out exceeds it, two
equal ones stay just below. The paper has no cut; this one is our choice. An untrained layer with
sharp attention reaches 0.3, because some tokens happen to suit most queries."""

DISTANCE = 4
"""Sentences nearer than this do not count, as in the paper's analysis."""
SMALLEST_SHARE = 0.25
"""Sentences that a smaller share of all sentences follows are left out of the kurtosis."""

N_RECEIVERS = 20
"""Heads that the paper takes for receivers: those of highest kurtosis outside layer 0."""
_FEWEST = 4  # values that a kurtosis is taken over
_NO_SPREAD = 1e-6  # relative to the mean: float32 rounding of equal scores is no spread

Spans = Int64[np.ndarray, "sentence 2"]


@dataclass(frozen=True, slots=True)
class Receivers:
    """Vertical scores of one sequence and their kurtosis.

    Attributes:
        vertical: Mean weight from sentences at least `distance` later to sentence j; NaN for the
            last sentences, which no sentence follows that far.
        kurtosis: Excess kurtosis (Fisher, biased) of the vertical scores over sentences; NaN where
            they are all equal.
        even_kurtosis: Chance value: the same for uniform attention. It is not 0 and depends on the
            length.
        bound: N - 5 + 1 / (N - 1), the largest kurtosis of N values. Compare sequences of equal N
            only.
        n_values: N, the number of sentences in the kurtosis.
    """

    vertical: Float64[np.ndarray, "layer head sentence"]
    kurtosis: ByHead
    even_kurtosis: ByHead
    bound: float
    n_values: int

    def share_of_bound(self) -> HeadScore:
        """Kurtosis over its largest possible value, at most 1: the score of the role."""
        n = np.full(len(self.kurtosis), self.n_values)
        return HeadScore(self.kurtosis / self.bound, self.even_kurtosis / self.bound, n)


def receivers(
    rows: SequenceRows,
    *,
    spans: Spans | None = None,
    distance: int = DISTANCE,
    skips_first: bool = True,
    smallest_share: float = SMALLEST_SHARE,
    ranked: bool = False,
) -> Receivers:
    """Vertical scores of the sentences of one sequence, and their kurtosis over sentences.

    The first sentence is left out of the kurtosis by default, because an attention sink reaches the
    bound just as a receiver head does. The null is the same for rows with shuffled keys, slot 0
    fixed.

    Args:
        rows: The attention rows.
        spans: First and one past the last slot of each sentence; with None every token counts as a
            sentence.
        distance: Sentences nearer than this do not count.
        skips_first: Whether the kurtosis leaves the first sentence out.
        smallest_share: Sentences that a smaller share follows are left out of the kurtosis: their
            score is the mean of a few rows, and one outlier raises the kurtosis. The paper leaves
            none out (0).
        ranked: Whether each weight is replaced by its rank in the row over the number of entries,
            so that a sentence seen from long rows is not at a disadvantage.

    Raises:
        InputError: Too few sentences, or spans that do not ascend within the sequence.
    """
    blocks = _blocks(rows.weights[..., : rows.n_queries], spans, rows)
    visible = rows.visibility()[..., : rows.n_queries]
    # a row of a padded query sees nothing: 1 in place of a division by 0
    even = visible / np.maximum(visible.sum(-1, keepdims=True), 1)
    even_blocks = _blocks(even[:, None], spans, rows)
    first = int(skips_first)  # index of the first sentence in the kurtosis
    n_values = _n_values(blocks.shape[-1], distance, first, smallest_share)
    vertical, even_vertical = (_vertical(each, distance, ranked) for each in (blocks, even_blocks))
    return Receivers(
        vertical=vertical,
        kurtosis=_kurtosis(vertical[..., first : first + n_values]),
        even_kurtosis=by_layer(
            _kurtosis(even_vertical[..., first : first + n_values])[:, 0], blocks.shape[1]
        ),
        bound=kurtosis_bound(n_values),
        n_values=n_values,
    )


def _n_values(n_sentences: int, distance: int, first: int, smallest_share: float) -> int:
    """Number of sentences, from the first that counts on, that enough sentences follow."""
    # sentence j is followed by n - distance - j sentences that count
    later = n_sentences - distance - np.arange(first, max(n_sentences - distance, first))
    n_values = int((later >= smallest_share * n_sentences).sum())
    if n_values < _FEWEST:
        raise InputError(
            f"expected at least {_FEWEST} sentences that enough later ones look back to, got "
            f"{n_values} of {n_sentences}; give a longer text, or take every token for a sentence"
        )
    return n_values


def kurtosis_bound(n: int) -> float:
    """Largest excess kurtosis (biased) of `n` values: that of one outlier among equal values."""
    return n - 5 + 1 / (n - 1)


def receiver_cut(shares: Stacked, *, n: int = N_RECEIVERS) -> float:
    """Threshold of the role: the score of head n + 1, and at least `RECEIVER_THRESHOLD`.

    The paper takes the 20 highest heads, so that a model whose heads mostly have a second sink (a
    delimiter, the first line break) still has few receivers. This is that rule as a threshold.
    """
    mean = mean_over_prompts(shares)[1:]  # layer 0 is no part of the rank
    ranked = np.sort(mean[~np.isnan(mean)])[::-1]
    return max(RECEIVER_THRESHOLD, float(ranked[n]) if len(ranked) > n else RECEIVER_THRESHOLD)


def split_half_correlation(kurtosis: Stacked) -> float:
    """Reliability: Pearson correlation over heads between means of even and of odd sequences.

    NaN with fewer than two sequences or where a half does not vary.
    """
    if len(kurtosis) < 2:
        return float("nan")
    even, odd = (mean_over_prompts(kurtosis[half::2]).ravel() for half in (0, 1))
    known = ~np.isnan(even + odd)
    if known.sum() < 2 or np.ptp(even[known]) == 0 or np.ptp(odd[known]) == 0:
        return float("nan")
    return float(np.corrcoef(even[known], odd[known])[0, 1])


def sentence_spans(
    token: Int64[np.ndarray, " slot"], ends: Int[np.ndarray, " id"], *, n_tokens: int | None = None
) -> Spans:
    """Sentences of a text: each ends at the last of consecutive end marks.

    Args:
        token: Ids of the text.
        ends: Ids of the marks that end a sentence.
        n_tokens: Number of tokens to split; all where None.
    """
    token = token[:n_tokens]
    closes = np.isin(token, ends)
    closes[:-1] &= ~closes[1:]  # of marks in a row only the last one ends the sentence
    stops = np.flatnonzero(closes) + 1
    if len(stops) == 0 or stops[-1] != len(token):
        stops = np.append(stops, len(token))
    return np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)


def _blocks(
    weights: Float[np.ndarray, "layer head query slot"], spans: Spans | None, rows: SequenceRows
) -> Float[np.ndarray, "layer head sentence sentence"]:
    """Mean weight from the tokens of sentence i to those of sentence j."""
    if spans is None:
        return weights
    # spans may not overlap: the flattened bounds must ascend, and no span may be empty
    ascending = (np.diff(spans.ravel()) >= 0).all() and (spans[:, 1] > spans[:, 0]).all()
    if not ascending or spans[0, 0] < 0 or spans[-1, 1] > rows.n_queries:
        raise InputError(
            f"expected spans that ascend from 0 to {rows.n_queries}, got {spans.tolist()}; give "
            "the first and one past the last slot of each sentence"
        )
    slots = np.arange(rows.n_queries)
    inside = (slots >= spans[:, :1]) & (slots < spans[:, 1:])
    # rows of `pooling` average over the slots of a sentence: P A P^T is the block mean
    pooling = inside / inside.sum(-1, keepdims=True)
    return pooling @ weights.astype(np.float64) @ pooling.T


def _vertical(
    blocks: Float[np.ndarray, "layer head sentence sentence"], distance: int, ranked: bool
) -> Float64[np.ndarray, "layer head sentence"]:
    """Mean over sentences i >= j + distance of the block (i, j)."""
    n = blocks.shape[-1]
    # True where sentence i comes at least `distance` after sentence j
    far = np.tri(n, k=-distance, dtype=bool)
    if ranked:
        later_only = np.where(far, blocks.astype(np.float64), np.nan)
        n_far = np.maximum(far.sum(-1, keepdims=True), 1)
        blocks = np.nan_to_num(rankdata(later_only, axis=-1, nan_policy="omit")) / n_far
    total = np.einsum("lhij,ij->lhj", blocks, far.astype(blocks.dtype)).astype(np.float64)
    n_later = far.sum(0)
    return total / np.where(n_later > 0, n_later, np.nan)


def _kurtosis(values: Float64[np.ndarray, "layer head sentence"]) -> ByHead:
    """Excess kurtosis over sentences, as `scipy.stats.kurtosis`, but NaN up to rounding."""
    mean = values.mean(-1, keepdims=True)
    second, fourth = (((values - mean) ** power).mean(-1) for power in (2, 4))
    # fourth moment over squared variance, less the 3 of a normal distribution
    differ = second > (_NO_SPREAD * np.abs(mean[..., 0])) ** 2
    return np.where(differ, fourth / np.where(differ, second, 1) ** 2 - 3, np.nan)
