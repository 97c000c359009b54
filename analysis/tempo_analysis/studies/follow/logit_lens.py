"""What one slot would predict if the model ended early: its logit lens, by depth.

(nostalgebraist, "interpreting GPT: the logit lens", 2020.) Depth 0 is the embedding, depth d the
residual stream after d layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from tempo_analysis.stats.distributions import kl_nats, log_probabilities

TOP = 5
"""Tokens kept at each depth."""

LogProbability = Float64[np.ndarray, "*row vocab"]


@dataclass(frozen=True, slots=True)
class Lens:
    """The logit lens of one slot, by depth.

    Attributes:
        token: Ids of the best tokens, best first, ties by id.
        text: Theirs.
        log_probability: Theirs, natural logarithms.
        own_kl_nats: KL(what the slot predicts in the end || its lens); 0 at the last depth.
        readout_kl_nats: KL(readout after the whole set || its lens).
        next_rank: Tokens that the lens finds likelier than the one the run went on with.
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
        """The first depth from which on the best token is that of the end."""
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
        logits: Of its states, as if they were the last.
        own: Logits or log-probabilities of what the slot predicts in the end.
        readout: The same of the set.
        went_on: The token that the run went on with.
        text_of: The text of a token id.
    """
    seen = log_probabilities(logits)
    n_top = min(TOP, seen.shape[-1])
    token = np.argsort(-seen, axis=-1, kind="stable")[:, :n_top].astype(np.int64)
    here = seen[:, went_on]
    return Lens(
        token=token,
        text=tuple(tuple(text_of(int(one)) for one in row) for row in token),
        log_probability=np.take_along_axis(seen, token, axis=-1),
        own_kl_nats=divergence(own[None], seen),
        readout_kl_nats=divergence(readout[None], seen),
        next_rank=(seen > here[:, None]).sum(-1).astype(np.int64),
        next_log_probability=here,
    )


def divergence(
    first: Float[np.ndarray, "#row vocab"], second: Float[np.ndarray, "row vocab"]
) -> Float64[np.ndarray, " row"]:
    """KL(first || second) over the whole vocabulary, in nats; rounding never makes it negative."""
    return kl_nats(log_probabilities(first), log_probabilities(second))
