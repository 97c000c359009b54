"""The logit lens of one slot: what it would predict if the model ended at a given depth.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020. The final norm is applied before
the output embedding, which was trained on normalised states only.

Depth 0 is the embedding, depth d the residual stream after d layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from tempo_analysis.stats.distributions import kl_nats, log_probabilities

TOP = 5
"""Tokens kept at each depth."""

LensRows = Float64[np.ndarray, "*row vocab"]


@dataclass(frozen=True, slots=True)
class Lens:
    """The logit lens of one slot, by depth.

    Attributes:
        token: Ids of the best tokens, best first, ties by id.
        text: Text of these tokens.
        log_probability: Of these tokens, natural logarithm.
        own_kl_nats: KL(prediction of the slot at the last depth || its lens); 0 at the last depth.
        readout_kl_nats: KL(readout after the set || its lens).
        next_rank: Number of tokens more probable under the lens than the one the run went on with.
        next_log_probability: Of the token the run went on with.
    """

    token: Int64[np.ndarray, "depth top"]
    text: tuple[tuple[str, ...], ...]
    log_probability: Float64[np.ndarray, "depth top"]
    own_kl_nats: Float64[np.ndarray, " depth"]
    readout_kl_nats: Float64[np.ndarray, " depth"]
    next_rank: Int64[np.ndarray, " depth"]
    next_log_probability: Float64[np.ndarray, " depth"]

    @property
    def settles_at(self) -> int:
        """The smallest depth from which on the best token is that of the last depth."""
        # After the last depth that differs, not at the first that agrees: the lens may change back.
        differs = np.flatnonzero(self.token[:, 0] != self.token[-1, 0])
        return int(differs[-1]) + 1 if len(differs) else 0


def lens_of(
    logits: Float[np.ndarray, "depth vocab"],
    own: Float[np.ndarray, " vocab"],
    readout: Float[np.ndarray, " vocab"],
    *,
    went_on: int,
    text_of: Callable[[int], str],
) -> Lens:
    """Read the lens of one slot.

    Args:
        logits: Of its state at each depth, read as if it were the last.
        own: Logits or log-probabilities of its prediction at the last depth.
        readout: The same for the readout of the set.
        went_on: The token that the run went on with.
        text_of: The text of a token id.
    """
    seen = log_probabilities(logits)
    n_top = min(TOP, seen.shape[-1])
    # Stable sort of the negated values: equal tokens stay in the order of their ids.
    token = np.argsort(-seen, axis=-1, kind="stable")[:, :n_top].astype(np.int64)
    here = seen[:, went_on]
    return Lens(
        token=token,
        text=tuple(tuple(text_of(int(one)) for one in row) for row in token),
        log_probability=np.take_along_axis(seen, token, axis=-1),
        own_kl_nats=lens_divergence(own[None], seen),
        readout_kl_nats=lens_divergence(readout[None], seen),
        next_rank=(seen > here[:, None]).sum(-1).astype(np.int64),
        next_log_probability=here,
    )


def lens_divergence(
    first: Float[np.ndarray, "#row vocab"], second: Float[np.ndarray, "row vocab"]
) -> Float64[np.ndarray, " row"]:
    """KL(first || second) over the whole vocabulary, in nats, never below 0."""
    # Normalised again in float64: recorded float32 readouts sum to 1 only up to rounding.
    return kl_nats(log_probabilities(first), log_probabilities(second))
