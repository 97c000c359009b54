"""One slot with a mixed input embedding: superposed decoding, soft thinking.

Several tokens are merged before the model instead of in its cache: their slot gets the weighted
mean of their input embeddings, and everything after it is a plain causal forward. (Shen et al.,
"Superposed Decoding", 2024; Zhang et al., "Soft Thinking", 2025.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tempo.errors import InputError
from tempo.models.language_model import LanguageModel

_SUM_SLACK = 1e-4


@dataclass(frozen=True, slots=True)
class SoftToken:
    """Tokens that share one slot, with the share of each in its embedding.

    Attributes:
        token: Ids.
        weight: Shares, not negative; they sum to 1.
    """

    token: tuple[int, ...]
    weight: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.token or len(self.token) != len(self.weight):
            raise InputError(
                f"expected a weight for each of at least one token, got {len(self.weight)} for "
                f"{len(self.token)}; give as many weights as tokens"
            )
        total = sum(self.weight)
        if not (min(self.weight) >= 0 and abs(total - 1) <= _SUM_SLACK):
            raise InputError(
                f"expected weights of at least 0 that sum to 1, got {list(self.weight)}; "
                "divide them by their sum"
            )


Slot = int | SoftToken


def soft_log_probabilities(
    model: LanguageModel, slots: Sequence[Slot], *, last: int | None = None
) -> Float32[np.ndarray, "slot vocab"]:
    """Next-token log-probabilities after the slots of a causal sequence, soft or plain.

    The model runs as it is, on input embeddings; those that scale them do so as for token ids.

    Args:
        slots: Token ids and `SoftToken`, each at a position of its own.
        last: Only after so many slots at the end; after every slot if not given.

    Raises:
        InputError: No slots, or a token id that the model does not know.
    """
    kept = len(slots) if last is None else last
    if not 1 <= kept <= len(slots):
        raise InputError(
            f"expected 1 to {len(slots)} of the slots to look at, got {kept}; give token ids or "
            "SoftToken"
        )
    soft = [slot if isinstance(slot, SoftToken) else SoftToken((slot,), (1.0,)) for slot in slots]
    with torch.inference_mode():
        mixed = torch.stack([_embedding(model, one) for one in soft])
        logits = model.hf(inputs_embeds=mixed[None], use_cache=False, logits_to_keep=kept).logits[0]
    return logits.float().log_softmax(-1).cpu().numpy()


def _embedding(model: LanguageModel, one: SoftToken) -> Float[Tensor, " channel"]:
    """The weighted mean, taken in float32; of one token, its embedding to the bit."""
    known = range(model.vocab_size)
    if any(token not in known for token in one.token):
        raise InputError(
            f"expected token ids from 0 to {len(known) - 1}, got {list(one.token)}; use the ids "
            f"of the tokenizer of {model.name}"
        )
    ids = torch.tensor(one.token, device=model.device)
    rows = model.hf.get_input_embeddings()(ids)
    share = torch.tensor(one.weight, device=rows.device)
    return (share[:, None] * rows.float()).sum(0).to(rows.dtype)
