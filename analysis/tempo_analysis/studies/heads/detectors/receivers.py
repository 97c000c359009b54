"""Which heads single out a few sentences that everything after them looks back to?

Source: Thought Anchors (arXiv 2506.19143).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy.stats import rankdata

from tempo.errors import InputError
from tempo.vocabulary import Head
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.studies.heads.detectors.rows import (
    ByHead,
    HeadScore,
    SequenceRows,
    Stacked,
    by_layer,
)

RECEIVER_THRESHOLD = 0.5
"""Smallest cut on kurtosis / bound (`receiver_cut`): one sentence stands out; two equal ones stay
just below. It is ours, the paper has none. An untrained layer with sharp attention reaches 0.3, as
some tokens happen to suit most queries."""

DISTANCE = 4
SMALLEST_SHARE = 0.25
"""The kurtosis leaves a sentence out that fewer than this share of the sentences look back to."""

N_RECEIVERS = 20
_FEWEST = 4
_NO_SPREAD = 1e-6

Spans = Int64[np.ndarray, "sentence 2"]


@dataclass(frozen=True, slots=True)
class Receivers:
    """Vertical scores of one sequence, and how peaked they are.

    Attributes:
        vertical: Mean weight a token of sentence j gets from sentences at least `distance` later;
            NaN for the last ones, which nothing follows that far.
        kurtosis: Of the vertical scores over sentences: Fisher (excess), biased; NaN where they do
            not differ.
        even_kurtosis: The same for even rows; not 0, and other at every length.
        bound: N - 5 + 1 / (N - 1), which no kurtosis of N values can exceed. Compare sequences of
            one N only.
        n_values: N.
    """

    vertical: Float64[np.ndarray, "layer head sentence"]
    kurtosis: ByHead
    even_kurtosis: ByHead
    bound: float
    n_values: int

    def share_of_bound(self) -> HeadScore:
        """Kurtosis as a share of the largest possible: the score that decides the role."""
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
    """Vertical scores of the sentences and their kurtosis.

    The first sentence is left out of the kurtosis unless asked for: a sink saturates the bound just
    like a receiver. The null is the same for rows with shuffled keys, slot 0 kept.

    Args:
        rows: The rows.
        spans: First and one past the last slot of each sentence; None takes every token for one.
        distance: Sentences nearer than this do not count.
        skips_first: Whether the kurtosis leaves the first sentence out.
        smallest_share: The vertical score of a late sentence is the mean of a few rows, so it is
            noisy, and one outlier makes a kurtosis; the paper leaves none out (0).
        ranked: Replace the entries of each row by their rank over their number first, so that a
            sentence seen by longer rows is not at a disadvantage.

    Raises:
        InputError: Too few sentences, or spans that do not ascend within the sequence.
    """
    blocks = _blocks(rows.weights[..., : rows.n_queries], spans, rows)
    sight = rows.sight()[..., : rows.n_queries]
    even = sight / np.maximum(sight.sum(-1, keepdims=True), 1)
    even_blocks = _blocks(even[:, None], spans, rows)
    first = int(skips_first)
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
    """Sentences from the first that counts on that enough later ones look back to."""
    later = n_sentences - distance - np.arange(first, max(n_sentences - distance, first))
    n_values = int((later >= smallest_share * n_sentences).sum())
    if n_values < _FEWEST:
        raise InputError(
            f"expected at least {_FEWEST} sentences that enough later ones look back to, got "
            f"{n_values} of {n_sentences}; give a longer text, or take every token for a sentence"
        )
    return n_values


def kurtosis_bound(n: int) -> float:
    """Largest excess kurtosis (biased) that `n` values can have: all but one equal."""
    return n - 5 + 1 / (n - 1)


def receiver_heads(kurtosis: Stacked, *, n: int = N_RECEIVERS) -> tuple[Head, ...]:
    """The heads of largest mean kurtosis over sequences, best first; layer 0 is left out."""
    mean = mean_over_prompts(kurtosis)
    mean[0] = np.nan
    order = np.argsort(-np.where(np.isnan(mean), -np.inf, mean), axis=None, kind="stable")
    known = [place for place in order.tolist() if not np.isnan(mean.flat[place])]
    return tuple(Head(*divmod(place, mean.shape[1])) for place in known[:n])


def receiver_cut(shares: Stacked, *, n: int = N_RECEIVERS) -> float:
    """The threshold of the role: what only the top heads exceed, at least `RECEIVER_THRESHOLD`.

    The paper's rule is a rank, so that a model with second sinks (a delimiter, the first line end)
    in most of its heads still has few receivers.
    """
    mean = mean_over_prompts(shares)[1:]
    ranked = np.sort(mean[~np.isnan(mean)])[::-1]
    return max(RECEIVER_THRESHOLD, float(ranked[n]) if len(ranked) > n else RECEIVER_THRESHOLD)


def sentence_scores(
    vertical: Float64[np.ndarray, "layer head sentence"], heads: Sequence[Head]
) -> Float64[np.ndarray, " sentence"]:
    """Mean vertical score of each sentence over the receiver heads."""
    return np.mean([vertical[head.layer, head.head] for head in heads], axis=0)


def split_half_correlation(kurtosis: Stacked) -> float:
    """Pearson correlation over heads of the means of even and of odd sequences; NaN without two."""
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
    """Sentences of a text: each closes at the last of the marks in a row that end it."""
    token = token[:n_tokens]
    closes = np.isin(token, ends)
    closes[:-1] &= ~closes[1:]
    stops = np.flatnonzero(closes) + 1
    if len(stops) == 0 or stops[-1] != len(token):
        stops = np.append(stops, len(token))
    return np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)


def _blocks(
    weights: Float[np.ndarray, "layer head query slot"], spans: Spans | None, rows: SequenceRows
) -> Float[np.ndarray, "layer head sentence sentence"]:
    """Mean weight from the tokens of one sentence to those of another."""
    if spans is None:
        return weights
    ascending = (np.diff(spans.ravel()) >= 0).all() and (spans[:, 1] > spans[:, 0]).all()
    if not ascending or spans[0, 0] < 0 or spans[-1, 1] > rows.n_queries:
        raise InputError(
            f"expected spans that ascend from 0 to {rows.n_queries}, got {spans.tolist()}; give "
            "the first and one past the last slot of each sentence"
        )
    slots = np.arange(rows.n_queries)
    inside = (slots >= spans[:, :1]) & (slots < spans[:, 1:])
    pooling = inside / inside.sum(-1, keepdims=True)
    return pooling @ weights.astype(np.float64) @ pooling.T


def _vertical(
    blocks: Float[np.ndarray, "layer head sentence sentence"], distance: int, ranked: bool
) -> Float64[np.ndarray, "layer head sentence"]:
    n = blocks.shape[-1]
    far = np.tri(n, k=-distance, dtype=bool)
    if ranked:
        held = np.where(far, blocks.astype(np.float64), np.nan)
        n_far = np.maximum(far.sum(-1, keepdims=True), 1)
        blocks = np.nan_to_num(rankdata(held, axis=-1, nan_policy="omit")) / n_far
    total = np.einsum("lhij,ij->lhj", blocks, far.astype(blocks.dtype)).astype(np.float64)
    n_later = far.sum(0)
    return total / np.where(n_later > 0, n_later, np.nan)


def _kurtosis(values: Float64[np.ndarray, "layer head sentence"]) -> ByHead:
    mean = values.mean(-1, keepdims=True)
    second, fourth = (((values - mean) ** power).mean(-1) for power in (2, 4))
    differ = second > (_NO_SPREAD * np.abs(mean[..., 0])) ** 2
    return np.where(differ, fourth / np.where(differ, second, 1) ** 2 - 3, np.nan)
