"""Hand-built attention patterns whose scores are known, and sequences that carry them."""

from collections.abc import Mapping

import numpy as np

from tempo_analysis.studies.heads.detectors.rows import SequenceRows

T = 16
HALF = 8
REPEATED = np.tile(np.arange(10, 10 + HALF), 2)


def one_hot(target: np.ndarray) -> np.ndarray:
    return np.eye(len(target))[target]


def uniform(n: int = T) -> np.ndarray:
    return np.tri(n) / np.arange(1, n + 1)[:, None]


def previous(n: int = T) -> np.ndarray:
    return one_hot(np.maximum(np.arange(n) - 1, 0))


def sink(n: int = T) -> np.ndarray:
    return one_hot(np.zeros(n, int))


def at_offset(offset: int, n: int = T) -> np.ndarray:
    return one_hot(np.maximum(np.arange(n) - offset, 0))


def second_half(offset: int, n: int = T) -> np.ndarray:
    """The second half looks this far back, the first at slot 0."""
    q = np.arange(n)
    return one_hot(np.where(q >= n // 2, q - offset, 0))


def patterns() -> Mapping[str, np.ndarray]:
    return {
        "U": uniform(),
        "P": previous(),
        "S": sink(),
        "I": np.eye(T),
        "IND": second_half(HALF - 1),
        "DUP": second_half(HALF),
        "MIX": 0.5 * sink() + 0.5 * previous(),
    }


def rows_of(
    *heads: np.ndarray, token: np.ndarray | None = None, visible: np.ndarray | None = None
) -> SequenceRows:
    """One layer, whose heads are these matrices."""
    weights = np.stack(heads)[None].astype(np.float32)
    ids = np.arange(weights.shape[-1]) if token is None else np.asarray(token)
    return SequenceRows(ids.astype(np.int64), weights, visible)


def random_weights(
    rng: np.random.Generator, *shape: int, spread: float = 1.0, causal: bool = True
) -> np.ndarray:
    """Softmax of normal scores, [layer head query slot]."""
    scores = np.exp(rng.normal(0, spread, shape))
    scores = scores * np.tri(*shape[-2:]) if causal else scores
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def random_rows(
    seed: int, *, layers: int = 2, heads: int = 3, n: int = T, spread: float = 1.0, ids: int = 5
) -> SequenceRows:
    rng = np.random.default_rng(seed)
    token = rng.integers(0, ids, n)
    return SequenceRows(token, random_weights(rng, layers, heads, n, n, spread=spread))


def windowed(layers: int, n: int, width: int) -> np.ndarray:
    """Sight of a sliding window in every layer but the first, which is causal."""
    behind = np.arange(n)[:, None] - np.arange(n)[None, :]
    sight = np.stack(
        [(behind >= 0) & (behind < (width if layer else n)) for layer in range(layers)]
    )
    return sight
