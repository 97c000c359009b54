"""The logit lens: what the residual stream of a depth would predict."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from tempo.errors import ModelError
from tempo.models.head_weights import final_norm
from tempo.models.language_model import LanguageModel

LENS_TOLERANCE = {"float32": 1e-3}
ROUNDED = 0.1
"""Part of the largest logit by which the lens of the last depth may differ from the model's own
logits, in float32 and in half precision."""


@torch.inference_mode()
def lens_logits(
    model: LanguageModel, states: Float32[np.ndarray, "*row channel"]
) -> Float32[np.ndarray, "*row vocab"]:
    """Logits of states as if they were the last: final norm, output embedding, soft cap."""
    head: Any = model.hf.get_output_embeddings()
    config: Any = model.config
    given = torch.from_numpy(states).to(head.weight.device, model.hf.dtype)
    logits = head(final_norm(model)(given)).float()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits.cpu().numpy()


def lens_error(
    model: LanguageModel,
    last: Float32[np.ndarray, "row channel"],
    logits: Float32[np.ndarray, "row vocab"],
) -> float:
    """Largest difference of the lens of the last states from the model's own logits.

    Raises:
        ModelError: It is more than rounding, so the family does something else at its end.
    """
    error = float(np.abs(lens_logits(model, last) - logits).max())
    allowed = LENS_TOLERANCE.get(model.dtype, ROUNDED) * max(1.0, float(np.abs(logits).max()))
    if not error <= allowed:
        raise ModelError(
            f"expected the final norm and output embedding of {model.config.model_type} to give "
            f"its logits to {allowed:.2g}, got a difference of {error:.2g}; its lens is not known"
        )
    return error
