"""Which heads tell the two sides of a concept apart, and is that a few heads or all of them?

A head's difference of means is long in any head with long outputs, and never zero. So each number
has its null: the two texts of a pair swap sides at random. Whether heads differ is judged on pairs
that the direction was not fitted to. Lengths are taken after the head's own output weights: its
channels have no scale of their own, since W_V times c with W_O / c is the same model.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from tempo.errors import InputError
from tempo_analysis.stats.association import EVEN_AREA
from tempo_analysis.stats.intervals import SEED, benjamini_hochberg

FOLDS = 4
PERMUTATIONS = 2000
TOP = 10
FEWEST = 8
LEVEL = 0.05

_BATCH = 250
_ROUNDING = 1e-9
"""A swap of all pairs or of none writes the same length up to rounding: it is a tie."""

Side = Float32[np.ndarray, "pair layer head channel"]
OtherSide = Float32[np.ndarray, "other_pair layer head channel"]
Per = Float64[np.ndarray, "layer head"]


@dataclass(frozen=True, slots=True)
class Concentration:
    """How much of the total length of a layer's differences is in its few longest heads.

    Attributes:
        share: Of the `top` longest, in [0, 1], for each layer.
        chance: top / heads: the share under equal lengths, the least there can be.
        null: Mean share when pairs swap sides at random.
        p: Share of such draws that are as concentrated.
        effective_heads: (sum of lengths)^2 / sum of squared lengths: 1 for one head, all for equal.
        null_effective: Its mean when pairs swap sides at random.
        effective_p: Share of such draws with as few effective heads. It tests concentration also
            where a layer has no more heads than are counted, and `p` is 1.
        top: Heads counted as few; at most the heads of a layer.
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
    """One concept, every head.

    Attributes:
        raw_norm: Length of the difference of means at the input of the output projection.
        selectivity: That length in units of the negatives' own RMS distance from their mean.
        written_norm: Length of the difference behind the head's output weights.
        unbiased: Squared written length from two halves of the pairs, averaged over splits: around
            0 without a difference, and possibly below.
        separation: d' on the pairs not fitted: difference of the two means along the fitted
            direction, in units of the negatives' standard deviation along it.
        auroc: Share of (positive, negative) of the pairs not fitted that the direction puts in
            order; chance is 0.5.
        paired: Share of pairs not fitted whose own two sides it puts in order; chance is 0.5.
        p: Share of random swaps of the sides of pairs that write as much as this head does.
        q: `p` adjusted over all heads (Benjamini-Hochberg).
        null_p99: 99th percentile over heads and draws of `written_norm` when pairs swap sides.
        concentration: Of the written lengths.
        raw_concentration: Of the raw lengths.
        n: Pairs.
        folds: Parts that took turns in not being fitted.
    """

    raw_norm: Per
    selectivity: Per
    written_norm: Per
    unbiased: Per
    separation: Per
    auroc: Per
    paired: Per
    p: Per
    q: Per
    null_p99: float
    concentration: Concentration
    raw_concentration: Concentration
    n: int
    folds: int

    @property
    def assigned(self) -> Bool[np.ndarray, "layer head"]:
        """Heads with q < 0.05 that write more than swaps do anywhere and order held-out pairs."""
        return (self.q < LEVEL) & (self.written_norm > self.null_p99) & (self.auroc > EVEN_AREA)


def concept_heads(
    positive: Side,
    negative: OtherSide,
    out: Float32[np.ndarray, "layer head channel hidden"],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
) -> ConceptHeads:
    """Judge every head.

    Args:
        positive: Input of the output projection for the texts with the concept.
        negative: For those without it; pair i is row i of both.

    Raises:
        InputError: The sides have unequal numbers of texts, or fewer than 8.
    """
    if positive.shape != negative.shape or len(positive) < FEWEST:
        raise InputError(
            f"expected two sides of at least {FEWEST} paired texts, got {len(positive)} and "
            f"{len(negative)}; balance or add pairs"
        )
    change = (positive - negative).astype(np.float64)
    gram = head_gram(out)
    raw = np.linalg.norm(change.mean(0), axis=-1)
    written = written_length(change.mean(0), gram)
    swapped_raw, swapped = _swapped(change, gram, permutations, seed)
    held = _held_out(positive, negative, seed)
    p = (1 + (swapped >= written * (1 - _ROUNDING)).sum(0)) / (1 + permutations)
    return ConceptHeads(
        raw_norm=raw,
        selectivity=_ratio(raw, _radius(negative)),
        written_norm=written,
        unbiased=_unbiased(change, gram, seed),
        separation=held.separation,
        auroc=held.auroc,
        paired=held.wins / len(change),
        p=p,
        q=benjamini_hochberg(p),
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
    """Of each layer by itself."""
    top = min(top, lengths.shape[-1])
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
    """Share of the longest; NaN where all are 0."""
    ordered = np.sort(lengths, axis=-1)[..., ::-1]
    return _ratio(ordered[..., :top].sum(-1), ordered.sum(-1))


def effective_heads(lengths: Float[np.ndarray, "*layers head"]) -> Float64[np.ndarray, "*layers"]:
    """Participation ratio of the lengths; NaN where all are 0."""
    return _ratio(lengths.sum(-1) ** 2, (lengths**2).sum(-1))


def head_gram(
    out: Float[np.ndarray, "layer head channel hidden"],
) -> Float64[np.ndarray, "layer head channel channel"]:
    """W W^T of each head's output weights: all that lengths behind them need."""
    wide = out.astype(np.float64)
    return wide @ wide.swapaxes(-1, -2)


def written_length(
    difference: Float[np.ndarray, "*draws layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
) -> Float64[np.ndarray, "*draws layer head"]:
    """Length of each difference behind the head's output weights."""
    return np.sqrt(np.maximum(_inner(difference, difference, gram), 0.0))


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Judged on the pairs that a direction was not fitted to."""

    auroc: Per
    separation: Per
    wins: Per


def _held_out(positive: Side, negative: Side, seed: int) -> _HeldOut:
    """Every pair is left out once; scores of one fold are compared within it only."""
    n = len(positive)
    order = np.random.default_rng(seed).permutation(n)
    wins = np.zeros(positive.shape[1:3])
    areas: list[np.ndarray] = []
    gaps: list[np.ndarray] = []
    for left_out in np.array_split(order, FOLDS):
        fitted = np.setdiff1d(order, left_out)
        direction = (positive[fitted] - negative[fitted]).astype(np.float64).mean(0)
        length = np.linalg.norm(direction, axis=-1, keepdims=True)
        direction = _ratio(direction, np.broadcast_to(length, direction.shape))
        above, below = (
            np.einsum("plhc,lhc->plh", side[left_out], direction) for side in (positive, negative)
        )
        wins += (above > below).sum(0)
        pairs = above[:, None] - below[None]
        areas.append(((pairs > 0) + 0.5 * (pairs == 0)).mean((0, 1)))
        gaps.append(_ratio(above.mean(0) - below.mean(0), below.std(0, ddof=1)))
    return _HeldOut(np.mean(areas, axis=0), np.mean(gaps, axis=0), wins)


def _swapped(
    change: Float64[np.ndarray, "pair layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
    permutations: int,
    seed: int,
) -> tuple[Float64[np.ndarray, "draw layer head"], Float64[np.ndarray, "draw layer head"]]:
    """Raw and written lengths when the texts of each pair swap sides at random."""
    rng = np.random.default_rng([seed, 1])
    n, *shape, channels = change.shape
    flat = change.reshape(n, -1)
    inner = gram.reshape(-1, channels, channels)
    raw: list[np.ndarray] = []
    written: list[np.ndarray] = []
    for start in range(0, permutations, _BATCH):
        draws = min(_BATCH, permutations - start)
        means = rng.choice([-1.0, 1.0], (draws, n)) @ flat / n
        by_head = means.reshape(draws, -1, channels).swapaxes(0, 1)
        squares = ((by_head @ inner) * by_head).sum(-1).T
        raw.append(np.linalg.norm(by_head, axis=-1).T.reshape(draws, *shape))
        written.append(np.sqrt(np.maximum(squares, 0.0)).reshape(draws, *shape))
    return np.concatenate(raw), np.concatenate(written)


def _unbiased(
    change: Float64[np.ndarray, "pair layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
    seed: int,
    splits: int = 20,
) -> Per:
    """Inner product of the differences of two halves of the pairs, over random splits."""
    rng = np.random.default_rng([seed, 2])
    found = np.zeros(change.shape[1:3])
    for _ in range(splits):
        first, second = np.array_split(rng.permutation(len(change)), 2)
        found += _inner(change[first].mean(0), change[second].mean(0), gram)
    return found / splits


def _radius(negative: Side) -> Per:
    """RMS distance of the negatives from their mean."""
    centred = (negative - negative.mean(0)).astype(np.float64)
    return np.sqrt((centred**2).sum(-1).mean(0))


def _inner(
    one: Float[np.ndarray, "*draws layer head channel"],
    other: Float[np.ndarray, "*draws layer head channel"],
    gram: Float64[np.ndarray, "layer head channel channel"],
) -> Float64[np.ndarray, "*draws layer head"]:
    return np.einsum("...lhc,lhcd,...lhd->...lh", one, gram, other, optimize=True)


def _ratio(
    over: Float[np.ndarray, "*shape"], under: Float[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Elementwise; NaN where the divisor is 0."""
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0)
