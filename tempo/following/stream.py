"""The residual stream of the rows of one forward, and its logit lens."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from tempo.errors import ModelError
from tempo.model import LanguageModel
from tempo.plain.weights import final_norm

LENS_TOLERANCE = {"float32": 1e-3}
ROUNDED = 0.1
"""Part of the largest logit by which the lens of the last depth may differ from the model's own
logits, in float32 and in half precision."""
_NORMS = ("norm", "final_layer_norm")


@dataclass(slots=True)
class Stream:
    """What the residual stream held, depth by depth, over all rows of a forward.

    Depth 0 enters the first layer, scaled where a family scales its embeddings; the last depth
    enters the final norm.
    """

    depths: list[Float[Tensor, "row channel"]] = field(default_factory=list)


@contextmanager
def watched_stream(model: LanguageModel) -> Generator[Stream]:
    """Note what every layer and the final norm are given while the model runs once.

    Raises:
        ModelError: The final norm is not where a family known here has it.
    """
    decoder: Any = model.hf.get_decoder()
    if not any(hasattr(decoder, name) for name in _NORMS):
        raise ModelError(
            f"expected a decoder with a final norm ({' or '.join(_NORMS)}), got "
            f"{type(decoder).__name__} without one; its states have no lens here"
        )
    seen = Stream()

    def note(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = args[0] if args else options["hidden_states"]
        seen.depths.append(given[0].detach().clone())

    places = [*decoder.layers, final_norm(model)]
    hooks = [place.register_forward_pre_hook(note, with_kwargs=True) for place in places]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen.depths) == model.n_layers + 1, "the model must run once while it is watched"


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
