"""Does a head write what it reads? The signs of the eigenvalues of its OV circuit.

A positive eigenvalue is a direction that attending to raises, a negative one a direction that it
lowers. The score is Re(sum of eigenvalues) / (sum of their sizes), in [-1, 1] (Elhage et al. 2021,
"A Mathematical Framework for Transformer Circuits", section "Detecting copying behavior").
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from analysis.circuits.maps import heads_of, read_map, sized, write_map
from tempo.models.circuit_weights import CircuitWeights
from tempo_analysis.stats.intervals import SEED

DRAWS = 300
"""Random heads at least; more where a model has more heads, so that one alone can be assigned."""
DRAWS_PER_HEAD = 20
CHANCE = 0.0
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
