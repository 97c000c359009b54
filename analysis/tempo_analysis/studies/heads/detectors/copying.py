"""What the weights of a head copy or suppress: OV eigenvalues, copy suppression."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights, Norm, ProcessedEmbedding, kv_head
from tempo_analysis.stats.intervals import SEED
from tempo_analysis.studies.heads.detectors.circuit_maps import (
    heads_of,
    read_map,
    sized,
    unembedded,
    write_map,
)

DRAWS = 300
"""Random heads at least; more where a model has more heads, so that one alone can be assigned."""
DRAWS_PER_HEAD = 20
EIGENVALUE_CHANCE = 0.0
"""Expected score of a head with independent random weights: its sign is as likely as the other."""


@dataclass(frozen=True, slots=True)
class OvCopying:
    """The score of every head, and what random heads between the same two ends have.

    Attributes:
        full: From token to logit, W_U W_O W_V W_E with the gains of the norms.
        stream: Of W_O W_V alone, from residual stream to residual stream, without norms.
        null: Scores of random heads in the full circuit, ascending.
        null_p99: Their 99th percentile.
        p: One-sided share of random heads that score as high in the full circuit.
        left_out: What the weights alone do not show of this model.
    """

    full: Float64[np.ndarray, "layer head"]
    stream: Float64[np.ndarray, "layer head"]
    null: Float64[np.ndarray, " draw"]
    null_p99: float
    p: Float64[np.ndarray, "layer head"]
    left_out: tuple[str, ...]


def ov_copying(weights: CircuitWeights, *, draws: int | None = None, seed: int = SEED) -> OvCopying:
    """Score all heads; the null has heads of Gaussian weights, spread over the layers."""
    ends = token_ends(weights)
    shape = (len(weights.layers), weights.n_heads)
    full, stream = np.empty(shape), np.empty(shape)
    for layer, head in heads_of(weights):
        read, write = read_map(weights, layer, head), write_map(weights, layer, head)
        full[layer, head] = eigenvalue_score(read @ ends @ write)
        plain = weights.value_of(layer, head) @ weights.layers[layer].out[head]
        stream[layer, head] = eigenvalue_score(plain)
    n_draws = max(DRAWS, DRAWS_PER_HEAD * full.size) if draws is None else draws
    null = np.sort(_random_scores(weights, ends, n_draws, seed))
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
    """Re(sum of eigenvalues) / (sum of their sizes); NaN where all are 0.

    The eigenvalues of A B that are not 0 are those of B A, so the small product will do.
    """
    eigenvalues = np.linalg.eigvals(circuit.astype(np.float64))
    size = float(np.abs(eigenvalues).sum())
    return float(eigenvalues.sum().real) / size if size > 0 else float("nan")


def token_ends(weights: CircuitWeights) -> Float32[np.ndarray, "hidden hidden"]:
    """W_E W_U in between of which a head stands: the sum over tokens of embedding times logit row.

    Embeddings have the size that the input norm gives them, logit rows the final norm's gain.
    """
    entered = sized(weights.layers[0].input_norm, weights.embedding)
    between = entered.T @ weights.unembedding * weights.final_norm.gain
    if weights.final_norm.kind == "layer":
        between = between - between.mean(-1, keepdims=True)
    return between


def _random_scores(
    weights: CircuitWeights, ends: Float32[np.ndarray, "hidden hidden"], draws: int, seed: int
) -> Float64[np.ndarray, " draw"]:
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
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
