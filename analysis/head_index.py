"""Does the number of a head say anything? Variance between head numbers, and heads permuted.

Heads of different layers that share a number share no weights, so any order of the heads within a
layer is as good as any other. What the number explains is held against that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from analysis.heads import KINDS, UNTYPED
from analysis.statistics import SEED
from tempo.errors import InputError

PERMUTATIONS = 9999
LEVEL = 0.05

_BATCH = 500
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class IndexEffect:
    """How much of the variance of heads within layers their number explains.

    Attributes:
        share: Sum of squares between the means of the numbers over the sum of squares within
            layers, in [0, 1]; 1 where all layers have the same heads in the same order.
        chance: Its expected value under any order of heads: 1 / number of layers, exactly.
        detectable: The smallest share that would have p < 0.05 here.
        p: Share of the permutations of heads within layers, these heads as they are among them,
            that explain as much.
        index_mean: Mean over layers of each head number, less the mean of its layer.
        n_layers: Layers used: those in which every head has a value.
    """

    share: float
    chance: float
    detectable: float
    p: float
    index_mean: Float64[np.ndarray, "head column"]
    n_layers: int


def index_effect(
    values: Float[np.ndarray, "layer head column"],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
) -> IndexEffect:
    """Test one quantity of every head; several columns (as one for each kind) count together.

    Raises:
        InputError: Fewer than two layers have all values, or no head differs from another.
    """
    kept = values[~np.isnan(values).any((1, 2))].astype(np.float64)
    if len(kept) < 2 or kept.shape[1] < 2:
        raise InputError(
            "expected at least two layers in which two heads or more have a value, got "
            f"{len(kept)} layers of {values.shape[1]} heads; give more layers or heads"
        )
    centred = kept - kept.mean(1, keepdims=True)
    total = float((centred**2).sum())
    if total <= _ROUNDING * float((kept**2).sum()):
        raise InputError("expected heads that differ within a layer, got equal ones; nothing to do")
    share = float(_between(centred[None])[0]) / total
    drawn = _permuted(centred, permutations, seed) / total
    return IndexEffect(
        share=share,
        chance=1 / len(kept),
        detectable=float(np.quantile(drawn, 1 - LEVEL)),
        p=float((1 + np.sum(drawn >= share - _ROUNDING)) / (1 + permutations)),
        index_mean=centred.mean(0),
        n_layers=len(kept),
    )


def index_shares(
    prompts: Sequence[Float[np.ndarray, "layer head"]],
) -> Float64[np.ndarray, " prompt"]:
    """The share of each prompt by itself; NaN where a prompt has no layer with all values."""
    found = np.full(len(prompts), np.nan)
    for number, values in enumerate(prompts):
        kept = values[~np.isnan(values).any(-1)].astype(np.float64)
        centred = (kept - kept.mean(-1, keepdims=True))[None, ..., None] if len(kept) else None
        if centred is not None and (centred**2).sum() > 0:
            found[number] = _between(centred)[0] / (centred**2).sum()
    return found


def kind_columns(kind: Int[np.ndarray, "layer head"]) -> Float64[np.ndarray, "layer head kind"]:
    """A column for each of `analysis.heads.KINDS`, 1 where a head is of it; NaN without a kind."""
    columns = (kind[..., None] == np.arange(len(KINDS))).astype(np.float64)
    columns[kind == UNTYPED] = np.nan
    return columns


def kinds_by_index(kind: Int[np.ndarray, "layer head"]) -> Int64[np.ndarray, "head kind"]:
    """For each head number, the layers in which its head is of each kind."""
    return (kind[..., None] == np.arange(len(KINDS))).sum(0)


def _between(
    centred: Float64[np.ndarray, "sample layer head column"],
) -> Float64[np.ndarray, " sample"]:
    """Sum of squares between the means of the head numbers."""
    return centred.shape[1] * (centred.mean(1) ** 2).sum((1, 2))


def _permuted(
    centred: Float64[np.ndarray, "layer head column"], permutations: int, seed: int
) -> Float64[np.ndarray, " permutation"]:
    """The same with heads permuted within each layer, again and again."""
    rng = np.random.default_rng(seed)
    layers = np.arange(len(centred))[:, None]
    found = []
    for start in range(0, permutations, _BATCH):
        n = min(_BATCH, permutations - start)
        order = rng.random((n, *centred.shape[:2])).argsort(-1)
        found.append(_between(centred[layers, order]))
    return np.concatenate(found)
