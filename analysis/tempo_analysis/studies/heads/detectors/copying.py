"""OV copying and copy suppression, from the weights alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights, Norm, ProcessedEmbedding, kv_head
from tempo_analysis.stats.intervals import SEED
from tempo_analysis.studies.heads.detectors.circuit_maps import (
    every_head,
    read_map,
    sized,
    unembedded,
    write_map,
)

DRAWS = 300
"""Fewest random heads of the null. With 20 for each head of the model the smallest p-value survives
the adjustment over all heads, so that one head alone can be assigned."""
DRAWS_PER_HEAD = 20
EIGENVALUE_CHANCE = 0.0
"""Expected score of a head with random weights: both signs are equally likely."""


@dataclass(frozen=True, slots=True)
class OvCopying:
    """OV eigenvalue scores of every head, beside those of random heads.

    Attributes:
        full: Score of the circuit from token to logit, W_U W_O W_V W_E, with the norms' gains.
        stream: Score of W_O W_V alone, from residual stream to residual stream, without norms.
        null: Scores of random heads in the full circuit, ascending.
        null_p99: Their 99th percentile.
        p: One-sided p-value: share of random heads that score at least as high.
        left_out: Parts of the model that the weights alone leave out, such as MLP 0.
    """

    full: Float64[np.ndarray, "layer head"]
    stream: Float64[np.ndarray, "layer head"]
    null: Float64[np.ndarray, " draw"]
    null_p99: float
    p: Float64[np.ndarray, "layer head"]
    left_out: tuple[str, ...]


def ov_copying(weights: CircuitWeights, *, draws: int | None = None, seed: int = SEED) -> OvCopying:
    """Eigenvalue score of the OV circuit of every head; in [-1, 1], chance 0.

    1 for a head that raises the logit of every token it attends to, -1 for one that lowers it. The
    null draws W_V and W_O with Gaussian entries between the same embeddings and norms, in turn for
    every layer.

    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".

    Args:
        weights: Of the model.
        draws: Number of random heads; 300 or 20 for each head of the model where None, whichever is
            more.
        seed: Of the draws.
    """
    ends = token_ends(weights)
    shape = (len(weights.layers), weights.n_heads)
    full, stream = np.empty(shape), np.empty(shape)
    for layer, head in every_head(weights):
        read, write = read_map(weights, layer, head), write_map(weights, layer, head)
        full[layer, head] = eigenvalue_score(read @ ends @ write)
        # without embeddings: square of head_dim again, by the same identity of the eigenvalues
        plain = weights.value_of(layer, head) @ weights.layers[layer].out[head]
        stream[layer, head] = eigenvalue_score(plain)
    n_draws = max(DRAWS, DRAWS_PER_HEAD * full.size) if draws is None else draws
    null = np.sort(_random_scores(weights, ends, n_draws, seed))
    # side "left": random heads with an equal score count as being as high
    as_high = len(null) - np.searchsorted(null, full, side="left")
    return OvCopying(
        full=full,
        stream=stream,
        null=null,
        null_p99=float(np.quantile(null, 0.99)),
        p=(1 + as_high) / (1 + len(null)),
        left_out=weights.left_out(),
    )


def eigenvalue_score(circuit: Float[np.ndarray, "channel channel"]) -> float:
    """Real part of the sum of the eigenvalues over the sum of their sizes; NaN where all are 0.

    A B and B A have the same nonzero eigenvalues, so callers give the product of size head_dim
    squared instead of the one of size vocabulary squared.
    """
    eigenvalues = np.linalg.eigvals(circuit.astype(np.float64))
    size = float(np.abs(eigenvalues).sum())
    return float(eigenvalues.sum().real) / size if size > 0 else float("nan")


def token_ends(weights: CircuitWeights) -> Float32[np.ndarray, "hidden hidden"]:
    """W_E^T W_U, summed over the vocabulary: what stands between W_V and W_O in the full circuit.

    Embeddings are divided as by the input norm, rows of W_U have the gain of the final norm.
    """
    entered = sized(weights.layers[0].input_norm, weights.embedding)
    between = entered.T @ weights.unembedding * weights.final_norm.gain
    if weights.final_norm.kind == "layer":
        between = between - between.mean(-1, keepdims=True)
    return between


def _random_scores(
    weights: CircuitWeights, ends: Float32[np.ndarray, "hidden hidden"], draws: int, seed: int
) -> Float64[np.ndarray, " draw"]:
    """Eigenvalue scores of heads with Gaussian weights, unsorted."""
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        # norms differ by layer, so random heads take the layers in turn
        part = weights.layers[draw % len(weights.layers)]
        channels, hidden = part.value.shape[1:]
        read = rng.standard_normal((channels, hidden), np.float32)
        write = rng.standard_normal((hidden, channels), np.float32)
        if part.input_norm is not None:
            read *= part.input_norm.gain
        if part.branch_norm is not None:
            write *= part.branch_norm.gain[:, None]
        found[draw] = eigenvalue_score(read @ ends @ write)
    return found


LOWEST = 10
"""A token is suppressed if its logit is among this many lowest (McDougall et al. 2023)."""

Hits = Bool[np.ndarray, "layer head token"]


@dataclass(frozen=True, slots=True)
class CopySuppression:
    """Copy suppression of every head, as shares of a sample of tokens.

    Attributes:
        ov: Share of tokens whose own logit the OV circuit puts among the lowest of the sample, and
            below 0, when the head attends to them.
        qk: Share of tokens whose unembedding, as a query, has its highest score at their own key.
        both: Share of tokens for which both hold.
        ov_hits: Tokens that count in `ov`.
        ov_control: The null of `ov_hits`: the logit of another token in place of the own one.
        hits: Tokens that count in `both`.
        control: The null of `hits`: the logit and the key of another token.
        ov_chance: `lowest` / n.
        qk_chance: 1 / n.
        n: Number of tokens in the sample.
        lowest: Number of logits that count as lowest.
        left_out: Parts of the model that the weights alone leave out.
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
        """Chance value of `both`, if the two were independent."""
        return self.ov_chance * self.qk_chance


def copy_suppression(
    weights: CircuitWeights, sample: ProcessedEmbedding, *, lowest: int = LOWEST, seed: int = SEED
) -> CopySuppression:
    """Copy-suppression scores of every head on a sample of distinct tokens; each in [0, 1].

    Source: McDougall et al. 2023 (arXiv 2310.04625), on a sample instead of the vocabulary.

    Args:
        weights: Of the model.
        sample: The tokens, with their embeddings after MLP 0 (`sample.mlp`), which are what later
            heads read.
        lowest: Number of logits that count as lowest.
        seed: Of the null, which gives every token the name of another one.

    Raises:
        InputError: Tokens repeat, or there are not more of them than count as lowest.
    """
    n = len(sample.tokens)
    if len(set(sample.tokens)) != n or n <= lowest:
        raise InputError(
            f"expected more than {lowest} distinct tokens, got {n} of which "
            f"{len(set(sample.tokens))} differ; give a larger sample"
        )
    names = np.arange(n)  # row and column t of the logits belong to token t
    others = _others(n, seed)
    rows = weights.unembedding[list(sample.tokens)]
    output_rows = unembedded(weights, rows)
    shape = (len(weights.layers), weights.n_heads, n)
    found = {name: np.empty(shape, np.bool_) for name in ("ov", "qk", "ov_other", "qk_other")}
    for layer, head in every_head(weights):
        # [said token, attended token]: column t has the logits that the head adds on attending to t
        read = sized(weights.layers[layer].input_norm, sample.mlp)
        logits = (
            output_rows
            @ write_map(weights, layer, head)
            @ (read_map(weights, layer, head) @ read.T)
        )
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
    """Whether the own logit of a column is below 0 and among its k lowest; ties count against it.

    Args:
        logits: Column t has the logits written on attending to token t.
        own: The row to test of each column; the column's own number, or that of another token.
    """
    mine = logits[own, np.arange(len(own))]
    as_low = (logits <= mine).sum(0) - 1  # less itself
    return (as_low < k) & (mine < 0)


def looks_first(
    scores: Float[np.ndarray, "query key"], own: np.ndarray
) -> Bool[np.ndarray, " query"]:
    """Whether the own key of a query has a higher score than every other; ties are no hits."""
    mine = scores[np.arange(len(own)), own]
    # exactly one score is as high as the own one: itself
    return (scores >= mine[:, None]).sum(1) == 1


def query_key_scores(
    weights: CircuitWeights,
    layer: int,
    head: int,
    *,
    queries: Float32[np.ndarray, "token hidden"],
    keys: Float32[np.ndarray, "token hidden"],
) -> Float32[np.ndarray, "query key"]:
    """Query-key products before scaling and softmax, as if both stood at one position (no RoPE)."""
    part = weights.layers[layer]
    query_vectors = _normed(part.input_norm, queries) @ part.query[head].T
    key_vectors = _normed(part.input_norm, keys) @ weights.key_of(layer, head).T
    if part.query_bias is not None:
        query_vectors = query_vectors + part.query_bias[head]
    if part.key_bias is not None:
        # keys belong to KV heads, queries to query heads
        key_vectors = (
            key_vectors + part.key_bias[kv_head(head, weights.n_heads, weights.n_kv_heads)]
        )
    return query_vectors @ key_vectors.T


def _normed(norm: Norm | None, rows: Float32[np.ndarray, "token hidden"]) -> np.ndarray:
    return rows if norm is None else norm.applied(rows).astype(np.float32)


def _others(n: int, seed: int) -> np.ndarray:
    """A random permutation of n that leaves nothing in its place: one cycle through all."""
    # each token gets the name of its neighbour in a random order
    order = np.random.default_rng(seed).permutation(n)
    others = np.empty(n, np.int64)
    others[order] = np.roll(order, 1)
    return others
