"""Copy suppression: does a head look for the token that is about to be said, and lower it?

OV: of the tokens of a sample, attending to token t must push t itself among the lowest logits. QK:
a query that is about to say t (its unembedding as the stream) must look at t before the others.
Tokens are read through the first MLP (McDougall et al. 2023, arXiv 2310.04625, section 3). Query
and key stand at the same position, so that RoPE turns nothing.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from analysis.circuits.maps import heads_of, read_map, sized, unembedded, write_map
from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights, Norm, ProcessedEmbedding, kv_head
from tempo_analysis.stats.intervals import SEED

LOWEST = 10

Hits = Bool[np.ndarray, "layer head token"]


@dataclass(frozen=True, slots=True)
class CopySuppression:
    """Fractions of a sample of tokens, for every head.

    Attributes:
        ov: Tokens that are among the lowest logits of the sample when attended to.
        qk: Tokens that their own unembedding, as a query, looks at first.
        both: Tokens for which both hold.
        ov_hits: Which tokens are lowered: the score of the role is their share, `ov`.
        ov_control: The same with every token's logits under another token's name.
        hits: Which tokens both hold for.
        control: The same with every token's logits and keys under another token's name.
        ov_chance: `lowest` over the size of the sample.
        qk_chance: 1 over the size of the sample.
        n: Tokens in the sample.
        lowest: How many logits count as lowest, of n.
        left_out: What the weights alone do not show of this model.
    """

    ov: Float64[np.ndarray, "layer head"]
    qk: Float64[np.ndarray, "layer head"]
    both: Float64[np.ndarray, "layer head"]
    ov_hits: Hits
    ov_control: Hits
    hits: Hits
    control: Hits
    ov_chance: float
    qk_chance: float
    n: int
    lowest: int
    left_out: tuple[str, ...]

    @property
    def chance(self) -> float:
        """Of `both`, if the two were independent."""
        return self.ov_chance * self.qk_chance


def copy_suppression(
    weights: CircuitWeights, sample: ProcessedEmbedding, *, lowest: int = LOWEST, seed: int = SEED
) -> CopySuppression:
    """Judge every head on a sample of distinct tokens.

    Raises:
        InputError: Tokens repeat, or there are not more of them than count as lowest.
    """
    n = len(sample.tokens)
    if len(set(sample.tokens)) != n or n <= lowest:
        raise InputError(
            f"expected more than {lowest} distinct tokens, got {n} of which "
            f"{len(set(sample.tokens))} differ; give a larger sample"
        )
    names = np.arange(n)
    others = _others(n, seed)
    rows = weights.unembedding[list(sample.tokens)]
    said = unembedded(weights, rows)
    shape = (len(weights.layers), weights.n_heads, n)
    found = {name: np.empty(shape, np.bool_) for name in ("ov", "qk", "ov_other", "qk_other")}
    for layer, head in heads_of(weights):
        read = sized(weights.layers[layer].input_norm, sample.mlp)
        logits = said @ write_map(weights, layer, head) @ (read_map(weights, layer, head) @ read.T)
        scores = query_key_scores(weights, layer, head, queries=rows, keys=sample.mlp)
        for suffix, own in (("", names), ("_other", others)):
            found["ov" + suffix][layer, head] = among_lowest(logits, own, lowest)
            found["qk" + suffix][layer, head] = looks_first(scores, own)
    hits = found["ov"] & found["qk"]
    return CopySuppression(
        ov=found["ov"].mean(-1),
        qk=found["qk"].mean(-1),
        both=hits.mean(-1),
        ov_hits=found["ov"],
        ov_control=found["ov_other"],
        hits=hits,
        control=found["ov_other"] & found["qk_other"],
        ov_chance=lowest / n,
        qk_chance=1 / n,
        n=n,
        lowest=lowest,
        left_out=("RoPE", *weights.left_out()),
    )


def among_lowest(
    logits: Float[np.ndarray, "said token"], own: Float[np.ndarray, " token"] | np.ndarray, k: int
) -> Bool[np.ndarray, " token"]:
    """Whether fewer than k logits of a token's column are lower than, or as low as, its own."""
    mine = logits[own, np.arange(len(own))]
    as_low = (logits <= mine).sum(0) - 1
    return (as_low < k) & (mine < 0)


def looks_first(
    scores: Float[np.ndarray, "query key"], own: np.ndarray
) -> Bool[np.ndarray, " query"]:
    """Whether a query's own key has a higher score than every other."""
    mine = scores[np.arange(len(own)), own]
    return (scores >= mine[:, None]).sum(1) == 1


def query_key_scores(
    weights: CircuitWeights,
    layer: int,
    head: int,
    *,
    queries: Float32[np.ndarray, "token hidden"],
    keys: Float32[np.ndarray, "token hidden"],
) -> Float32[np.ndarray, "query key"]:
    """Scores before scaling of streams against streams, at one position."""
    part = weights.layers[layer]
    asked = _normed(part.input_norm, queries) @ part.query[head].T
    held = _normed(part.input_norm, keys) @ weights.key_of(layer, head).T
    if part.query_bias is not None:
        asked = asked + part.query_bias[head]
    if part.key_bias is not None:
        held = held + part.key_bias[kv_head(head, weights.n_heads, weights.n_kv_heads)]
    return asked @ held.T


def _normed(norm: Norm | None, rows: Float32[np.ndarray, "token hidden"]) -> np.ndarray:
    return rows if norm is None else norm.applied(rows).astype(np.float32)


def _others(n: int, seed: int) -> np.ndarray:
    """Another name for each of n: a random cycle through all."""
    order = np.random.default_rng(seed).permutation(n)
    others = np.empty(n, np.int64)
    others[order] = np.roll(order, 1)
    return others
