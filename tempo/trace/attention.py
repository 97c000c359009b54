"""Attention rows in numpy: computed from queries and keys, and summed over groups of slots."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from tempo.vocabulary import GROUPS

Weights = Float32[np.ndarray, "layer head query slot"]
HeadWeights = Float32[np.ndarray, "query slot"]
GroupMass = Float32[np.ndarray, "layer head query group"]


def entropy_nats(
    weights: Float[np.ndarray, "*row slot"],
) -> Float[np.ndarray, "*row"]:
    """Entropy of each row; a weight of 0 adds nothing."""
    # 0 log 0 counts as 0; numpy would give NaN.
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    return -(weights * logs).sum(-1)


def rows_from_qk(
    q: Float32[np.ndarray, "head query channel"],
    k: Float32[np.ndarray, "kv_head slot channel"],
    *,
    scaling: float,
    visible: Bool[np.ndarray, "query slot"],
    bias: Float32[np.ndarray, "query slot"] | None = None,
    softcap: float | None = None,
    sinks: Float32[np.ndarray, " head"] | None = None,
) -> tuple[Float32[np.ndarray, "head query slot"], Float32[np.ndarray, "head query"]]:
    """One layer's rows and their logsumexp, from queries and keys after RoPE.

    A learned sink (gpt-oss) takes part in the normaliser and is left out of the row.
    """
    # Query heads that share a KV head are neighbours, so each KV head is repeated in place.
    keys = np.repeat(k, q.shape[0] // k.shape[0], axis=0)
    scores = np.einsum("hqc,hsc->hqs", q, keys, dtype=np.float32) * np.float32(scaling)
    if softcap is not None:
        scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)
    # The cap comes before mask and bias, as in Gemma-2: a capped -inf would be finite.
    scores = np.where(visible, scores if bias is None else scores + bias, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, column], -1)
    # Finite in every row, since a query always sees at least itself.
    top = scores.max(-1, keepdims=True)
    total = np.exp(scores - top).sum(-1, keepdims=True)
    logsumexp = top + np.log(total)
    # The sink column is dropped after the softmax: its row sums to less than 1.
    weights = np.exp(scores - logsumexp)[..., : visible.shape[-1]]
    return weights.astype(np.float32), logsumexp[..., 0].astype(np.float32)


def group_onehot(groups: Int[np.ndarray, "query slot"]) -> Float32[np.ndarray, "query slot group"]:
    """Indicator of each slot's group, for sums over groups."""
    return (groups[..., None] == np.arange(len(GROUPS))).astype(np.float32)


def mass_by_group(weights: Weights, groups: Int[np.ndarray, "query slot"]) -> GroupMass:
    """Sum of each row over each group of slots."""
    # As a product with an indicator: one pass, and groups that are empty get 0.
    return np.einsum("lhqs,qsg->lhqg", weights, group_onehot(groups))
