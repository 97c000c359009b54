"""The next-token distribution of each sequence, computed from the logits of a step, in torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from tempo.policy.readout import Read

_LOG_OF_NOTHING = -1e4  # exp of it is exactly 0 in float32


@dataclass(frozen=True, slots=True)
class Distribution:
    """A next-token distribution, complete and summarised.

    Attributes:
        log_probability: Log-probability of every token.
        token: The best tokens, best first, ties by id.
        top_log_probability: Log-probabilities of the best tokens.
        tail_mass: Probability of all other tokens together.
        entropy_nats: Entropy of the complete distribution.
    """

    log_probability: Float32[np.ndarray, " vocab"]
    token: Int64[np.ndarray, " top"]
    top_log_probability: Float32[np.ndarray, " top"]
    tail_mass: float
    entropy_nats: float

    def top2_margin(self, excluded: Sequence[int] = ()) -> float:
        """Gap between the two best log-probabilities left; NaN if fewer than two are kept."""
        left = self.top_log_probability[~np.isin(self.token, np.asarray(excluded, np.int64))]
        return float(left[0] - left[1]) if len(left) >= 2 else float("nan")


def log_probability_rows(logits: Float[Tensor, "row vocab"]) -> Float32[Tensor, "row vocab"]:
    """Natural-log probabilities in float32."""
    # float32 whatever the model is: thresholds and ties are defined on float32 probabilities.
    return logits.float().log_softmax(-1)


def invalid_rows(log_probability: Float32[Tensor, "row vocab"]) -> Bool[Tensor, " row"]:
    """Rows made of NaN or infinite logits."""
    return log_probability.isnan().any(-1)


def combined(
    rows: Float32[Tensor, "member vocab"], weights: Float32[np.ndarray, " member"], rule: Read
) -> Float32[Tensor, " vocab"]:
    """One log-distribution from those after each member; `policy.readout.combine` in torch."""
    if len(rows) == 1:
        return rows[0]
    share = torch.from_numpy(weights).to(rows.device)[:, None]
    if rule.mean == "geometric":
        return (rows * share).sum(0).log_softmax(-1)
    # a share of 0 would add log 0; logaddexp mixes without leaving log space
    used = share[:, 0] > 0
    return reduce(torch.logaddexp, rows[used] + share[used].log())


def distributions(
    log_probability: Float32[Tensor, "sequence vocab"], size: int | None
) -> list[Distribution]:
    """Each row with its best `size` tokens (all where None), tail and entropy."""
    n_top = log_probability.shape[-1] if size is None else min(size, log_probability.shape[-1])
    # -inf would give NaN; its share of the entropy is 0
    entropy = (
        -(log_probability.exp() * log_probability.clamp(min=_LOG_OF_NOTHING)).sum(-1).cpu().numpy()
    )
    top, token = (t.cpu().numpy() for t in log_probability.topk(n_top, sorted=True))
    # float64: in float32 the tail of a peaked distribution is lost in the rounding of 1 - sum.
    tail = 1 - np.exp(top.astype(np.float64)).sum(-1)
    tail = np.zeros_like(tail) if n_top == log_probability.shape[-1] else tail.clip(min=0)
    whole = log_probability.cpu().numpy()
    return [
        _distribution(
            whole[row], token[row], top[row], tail=float(tail[row]), entropy=float(entropy[row])
        )
        for row in range(len(whole))
    ]


def _distribution(
    whole: Float32[np.ndarray, " vocab"],
    token: Int64[np.ndarray, " top"],
    top: Float32[np.ndarray, " top"],
    *,
    tail: float,
    entropy: float,
) -> Distribution:
    # topk leaves the order of ties open: the last key of lexsort is the first to sort by
    order = np.lexsort((token, -top))
    return Distribution(whole, token[order], top[order], tail, entropy)
