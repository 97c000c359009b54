"""Separation of the two sides of a concept by each head, and its concentration in few heads.

Noise alone makes the difference of means of a head longer than zero, the more so the longer its
outputs are. Each length therefore has a null, in which the texts of a pair swap sides at random.
Separation is measured on pairs that the direction was not fitted to. Lengths are taken after the
output weights of the head, because its channels have no scale of their own: W_V times c with
W_O / c is the same model.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from tempo.errors import InputError
from tempo_analysis.stats.association import EVEN_AREA
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.stats.intervals import SEED, benjamini_hochberg

# Four: three quarters of the pairs fit the direction, and with 8 pairs a fold still has 2.
FOLDS = 4
"""Parts of the pairs; each is left out once when the direction is fitted."""
PERMUTATIONS = 2000
TOP = 10
"""Heads of a layer whose share of the total length is its concentration."""
FEWEST = 8
"""Fewest pairs, as for every interval (`stats.intervals.SMALLEST_SAMPLE`)."""
LEVEL = 0.05

_BATCH = 250  # permutations at a time, which bounds the memory
_ROUNDING = 1e-9
"""Relative. A swap of all pairs has the same length as none up to rounding, and counts as a tie."""

SideInputs = Float32[np.ndarray, "pair layer head channel"]
OtherInputs = Float32[np.ndarray, "other_pair layer head channel"]


@dataclass(frozen=True, slots=True)
class Concentration:
    """Share of the total length of a layer that its longest heads have.

    Attributes:
        share: Share of the `top` longest heads, in [0, 1], for each layer.
        chance: top / heads: the share if all lengths are equal, which is the lowest possible.
        null: Mean share when pairs swap sides at random.
        p: p-value: share of such draws that are at least as concentrated.
        effective_heads: Participation ratio (sum of lengths)^2 / sum of squared lengths: 1 for a
            single head, the number of heads for equal lengths.
        null_effective: Its mean when pairs swap sides at random.
        effective_p: p-value: share of such draws with at most as many effective heads. It also
            tests layers of at most `top` heads, where the share is always 1.
        top: Number of heads counted; at most the heads of a layer.
    """

    share: Float64[np.ndarray, " layer"]
    chance: float
    null: Float64[np.ndarray, " layer"]
    p: Float64[np.ndarray, " layer"]
    effective_heads: Float64[np.ndarray, " layer"]
    null_effective: Float64[np.ndarray, " layer"]
    effective_p: Float64[np.ndarray, " layer"]
    top: int


@dataclass(frozen=True, slots=True)
class ConceptHeads:
    """Scores of every head for one concept.

    Attributes:
        raw_norm: Length of the difference of means at the input of the output projection.
        selectivity: `raw_norm` over the RMS distance of the negatives from their mean.
        written_norm: Length of the difference of means after the output weights of the head.
        unbiased: Squared written length as the inner product of the differences of two halves of
            the pairs, averaged over splits: 0 on average without a difference, so it can be
            negative.
        separation: d' on held-out pairs: difference of the means along the fitted direction, over
            the standard deviation of the negatives along it.
        auroc: Area under the ROC curve on held-out pairs, along the fitted direction; chance 0.5.
        paired: Share of held-out pairs whose positive text scores above its own negative; chance
            0.5.
        p: p-value: share of random swaps of sides with at least this written length.
        q: `p` adjusted over all heads (Benjamini-Hochberg).
        null_p99: 99th percentile of `written_norm` over heads and random swaps.
        concentration: Of the written lengths.
        raw_concentration: Of the raw lengths.
        n: Number of pairs.
        folds: Number of parts that were held out in turn.
    """

    raw_norm: ByHead
    selectivity: ByHead
    written_norm: ByHead
    unbiased: ByHead
    separation: ByHead
    auroc: ByHead
    paired: ByHead
    p: ByHead
    q: ByHead
    null_p99: float
    concentration: Concentration
    raw_concentration: Concentration
    n: int
    folds: int

    @property
    def assigned(self) -> Bool[np.ndarray, "layer head"]:
        """Heads with q < 0.05, a length above the null of all heads, and an AUROC above 0.5."""
        return (self.q < LEVEL) & (self.written_norm > self.null_p99) & (self.auroc > EVEN_AREA)


def concept_heads(
    positive: SideInputs,
    negative: OtherInputs,
    out: Float32[np.ndarray, "layer head channel hidden"],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
) -> ConceptHeads:
    """Score every head on one set of pairs.

    Args:
        positive: Input of the output projection for the texts with the concept.
        negative: The same for the texts without it; row i of both is pair i.
        out: Output weights of each head.
        permutations: Random swaps of sides behind the null.
        seed: Of folds, splits and swaps.

    Raises:
        InputError: The sides have unequal numbers of texts, or fewer than 8.
    """
    if positive.shape != negative.shape or len(positive) < FEWEST:
        raise InputError(
            f"expected two sides of at least {FEWEST} paired texts, got {len(positive)} and "
            f"{len(negative)}; balance or add pairs"
        )
    change = (positive - negative).astype(np.float64)
    # Differences within pairs: what the two texts share cancels before any mean.
    gram = head_gram(out)
    raw = np.linalg.norm(change.mean(0), axis=-1)
    written = written_length(change.mean(0), gram)
    swapped_raw, swapped = _swapped(change, gram, permutations, seed)
    held_out = _held_out(positive, negative, seed)
    # the draw that was observed counts as one of the null, so p is never 0
    p = (1 + (swapped >= written * (1 - _ROUNDING)).sum(0)) / (1 + permutations)
    return ConceptHeads(
        raw_norm=raw,
        # Over the spread of the negatives: the concept itself may widen that of the positives.
        selectivity=_ratio(raw, _radius(negative)),
        written_norm=written,
        unbiased=_unbiased(change, gram, seed),
        separation=held_out.separation,
        auroc=held_out.auroc,
        paired=held_out.wins / len(change),
        p=p,
        # Adjusted over all heads of all layers at once, as any of them could have been named.
        q=benjamini_hochberg(p),
        # Over all heads: a bound for the largest of many heads, not for one head.
        null_p99=float(np.quantile(swapped, 0.99)),
        concentration=concentration(written, swapped),
        raw_concentration=concentration(raw, swapped_raw),
        n=len(change),
        folds=FOLDS,
    )


def concentration(
    lengths: Float[np.ndarray, "layer head"],
    null: Float[np.ndarray, "draw layer head"],
    *,
    top: int = TOP,
) -> Concentration:
    """Concentration of the lengths in each layer.

    Args:
        lengths: Of each head.
        null: The same when pairs swap sides at random.
        top: Number of heads counted.
    """
    # In a small layer the share of all heads is 1 by definition; effective_heads covers that case.
    top = min(top, lengths.shape[-1])
    # 1e-12 below: shares and ratios that differ by rounding only are ties, and ties count
    share, drawn = top_share(lengths, top), top_share(null, top)
    effective, few = effective_heads(lengths), effective_heads(null)
    return Concentration(
        share=share,
        chance=top / lengths.shape[-1],
        null=drawn.mean(0),
        p=(1 + (drawn >= share - 1e-12).sum(0)) / (1 + len(drawn)),
        effective_heads=effective,
        null_effective=few.mean(0),
        effective_p=(1 + (few <= effective + 1e-12).sum(0)) / (1 + len(few)),
        top=top,
    )


def top_share(
    lengths: Float[np.ndarray, "*layers head"], top: int
) -> Float64[np.ndarray, "*layers"]:
    """Share of the `top` longest heads in the total length; NaN where all lengths are 0."""
    # descending along heads
    ordered = np.sort(lengths, axis=-1)[..., ::-1]
    return _ratio(ordered[..., :top].sum(-1), ordered.sum(-1))


def effective_heads(lengths: Float[np.ndarray, "*layers head"]) -> Float64[np.ndarray, "*layers"]:
    """Participation ratio of the lengths, from 1 to the number of heads; NaN where all are 0."""
    return _ratio(lengths.sum(-1) ** 2, (lengths**2).sum(-1))


def head_gram(
    out: Float[np.ndarray, "layer head channel hidden"],
) -> Float64[np.ndarray, "layer head channel channel"]:
    """W W^T of the output weights of each head.

    |d W|^2 = d (W W^T) d^T, so lengths after W need this matrix of channels only, not the hidden
    size.
    """
    wide = out.astype(np.float64)
    return wide @ wide.swapaxes(-1, -2)


def written_length(
    difference: Float[np.ndarray, "*draws layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
) -> Float64[np.ndarray, "*draws layer head"]:
    """Length of each difference after the output weights of the head."""
    # rounding can make the square of a zero length negative
    return np.sqrt(np.maximum(_inner(difference, difference, gram), 0.0))


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Scores on held-out pairs; `wins` counts pairs whose positive text scores higher."""

    auroc: ByHead
    separation: ByHead
    wins: ByHead


def _held_out(positive: SideInputs, negative: SideInputs, seed: int) -> _HeldOut:
    """Fit a direction to all folds but one and score that one; average over folds.

    Scores along different directions have different scales, so a fold is compared within itself.
    """
    n = len(positive)
    # Shuffled: a file of pairs may be sorted by topic, and a fold of one topic is not typical.
    order = np.random.default_rng(seed).permutation(n)
    wins = np.zeros(positive.shape[1:3])
    areas: list[np.ndarray] = []
    gaps: list[np.ndarray] = []
    for left_out in np.array_split(order, FOLDS):
        fitted = np.setdiff1d(order, left_out)
        direction = (positive[fitted] - negative[fitted]).astype(np.float64).mean(0)
        length = np.linalg.norm(direction, axis=-1, keepdims=True)
        # unit length in channel space; AUROC and d' do not depend on it, rounding does
        direction = _ratio(direction, np.broadcast_to(length, direction.shape))
        # a head without any difference gets the direction NaN, and so no scores
        above, below = (
            np.einsum("plhc,lhc->plh", side[left_out], direction) for side in (positive, negative)
        )
        # Counted, not averaged: folds may differ in size by one pair.
        wins += (above > below).sum(0)
        pairs = above[:, None] - below[None]  # every positive with every negative of the fold
        # A tie counts one half, so that scores without information give 0.5.
        areas.append(((pairs > 0) + 0.5 * (pairs == 0)).mean((0, 1)))
        # ddof=1: a fold has few negatives, and the biased deviation would enlarge d'.
        gaps.append(_ratio(above.mean(0) - below.mean(0), below.std(0, ddof=1)))
    return _HeldOut(np.mean(areas, axis=0), np.mean(gaps, axis=0), wins)


def _swapped(
    change: Float64[np.ndarray, "pair layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
    permutations: int,
    seed: int,
) -> tuple[Float64[np.ndarray, "draw layer head"], Float64[np.ndarray, "draw layer head"]]:
    """Raw and written lengths when the texts of each pair swap sides at random.

    A swap changes the sign of the difference of a pair, so a draw is a vector of signs.
    """
    rng = np.random.default_rng([seed, 1])  # [seed, 2] draws the splits of `_unbiased`
    n, *shape, channels = change.shape
    flat = change.reshape(n, -1)
    inner = gram.reshape(-1, channels, channels)
    raw: list[np.ndarray] = []
    written: list[np.ndarray] = []
    for start in range(0, permutations, _BATCH):
        draws = min(_BATCH, permutations - start)
        # signs @ differences / n: the means of all draws in one product
        means = rng.choice([-1.0, 1.0], (draws, n)) @ flat / n
        by_head = means.reshape(draws, -1, channels).swapaxes(0, 1)
        # by_head is [layer * head, draw, channel]: one batched product, as `_inner` for each draw
        squares = ((by_head @ inner) * by_head).sum(-1).T
        raw.append(np.linalg.norm(by_head, axis=-1).T.reshape(draws, *shape))
        written.append(np.sqrt(np.maximum(squares, 0.0)).reshape(draws, *shape))
    return np.concatenate(raw), np.concatenate(written)


def _unbiased(
    change: Float64[np.ndarray, "pair layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
    seed: int,
    splits: int = 20,
) -> ByHead:
    """Squared written length without the bias of noise, averaged over random splits of the pairs.

    The noise of two halves is independent, so their inner product is right on average.
    """
    rng = np.random.default_rng([seed, 2])
    found = np.zeros(change.shape[1:3])
    for _ in range(splits):
        # The square of one mean would include its noise: E|mean|^2 = |difference|^2 + variance.
        first, second = np.array_split(rng.permutation(len(change)), 2)
        found += _inner(change[first].mean(0), change[second].mean(0), gram)
    return found / splits


def _radius(negative: SideInputs) -> ByHead:
    """RMS distance of the negative texts from their mean."""
    centred = (negative - negative.mean(0)).astype(np.float64)
    return np.sqrt((centred**2).sum(-1).mean(0))


def _inner(
    one: Float[np.ndarray, "*draws layer head channel"],
    other: Float[np.ndarray, "*draws layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
) -> Float64[np.ndarray, "*draws layer head"]:
    """Inner product after the output weights of the head."""
    # optimize: contracts two operands at a time; all three at once would loop over both channels.
    return np.einsum("...lhc,lhcd,...lhd->...lh", one, gram, other, optimize=True)


def _ratio(
    over: Float[np.ndarray, "*shape"], under: Float[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Elementwise; NaN where the divisor is 0."""
    # where and out: a quotient by 0 is never computed, so there is no warning.
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0)
