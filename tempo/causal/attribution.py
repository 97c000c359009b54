"""Direct logit attribution (the part of each component in a logit), and the logit lens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from tempo.causal.eager_rows import SequenceIds, check_sequences
from tempo.errors import InputError, ModelError
from tempo.models.circuit_weights import Norm
from tempo.models.head_weights import branch_norm, check_exported, final_norm, measured_norm
from tempo.models.hooks import watched_inputs, watched_outputs, watched_stream
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.projections import output_projections

# Relative to the logit, in float32; a larger gap means that a part is missing.
TOLERANCE = 1e-3
_ROUNDING = 0.05  # of half precision; another operation differs by more

Vector = Float64[np.ndarray, " hidden"]


@dataclass(frozen=True, slots=True)
class Attribution:
    """Parts of one logit, or of a difference of two, at one position.

    Attributes:
        embedding: Part of the token's own embedding.
        heads: Part of each head.
        biases: Part of each layer's output bias and of the shift of a norm after its attention.
        mlps: Part of each MLP.
        shift: Part of the final norm's shift.
        logit: Logit of the model itself, before any soft cap.
    """

    embedding: float
    heads: Float64[np.ndarray, "layer head"]
    biases: Float64[np.ndarray, " layer"]
    mlps: Float64[np.ndarray, " layer"]
    shift: float
    logit: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        parts = self.heads.sum() + self.biases.sum() + self.mlps.sum()
        return float(self.embedding + parts + self.shift)

    @property
    def gap(self) -> float:
        """Distance of the parts from the logit, relative to the logit where that is above 1."""
        return abs(self.total - self.logit) / max(1.0, abs(self.logit))


def direct_attribution(
    model: LanguageModel,
    ids: SequenceIds,
    *,
    token: int,
    against: int | None = None,
    position: int = -1,
) -> Attribution:
    """Decompose the logit of a token, or its difference to the logit of another token.

    Args:
        position: The query row; the last one unless given.

    Raises:
        InputError: There is no such token or position.
        ModelError: The family is not known, or the parts do not add up to the model's logit.
    """
    check_exported(model)
    check_sequences(model, [np.asarray(ids, np.int64)])
    wanted = [token] if against is None else [token, against]
    if not all(0 <= each < model.vocab_size for each in wanted) or not (
        -len(ids) <= position < len(ids)
    ):
        raise InputError(
            f"expected tokens below {model.vocab_size} and a position among {len(ids)}, got "
            f"{wanted} and {position}; choose again"
        )
    parts = _stream_parts(model, ids, position % len(ids))
    return _attributed(model, parts, wanted)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Components of the residual stream at one position, and the logits there.

    Attributes:
        stream: By depth; see `watched_stream`.
        given: To each layer's output projection.
        written: By each layer's output projection.
    """

    stream: list[Float64[Tensor, " hidden"]]
    given: dict[int, Float64[Tensor, " wide"]]
    written: dict[int, Float64[Tensor, " hidden"]]
    logits: Float64[Tensor, " vocab"]


@torch.inference_mode()
def _stream_parts(model: LanguageModel, ids: SequenceIds, position: int) -> _Parts:
    head: Any = model.hf.get_output_embeddings()
    linears = output_projections(model, range(model.n_layers))

    def at_position(rows: Float[Tensor, "1 token channel"]) -> Float64[Tensor, " channel"]:
        # float64 from here on: hundreds of parts are added, and their sum is compared with the
        # logit.
        return rows[0, position].double().cpu()

    with (
        attention_as(model.hf, "eager"),
        watched_stream(model, at_position) as stream,
        watched_inputs(linears, at_position) as given,
        watched_outputs(linears) as written,
        watched_outputs({0: head}) as logits,
    ):
        model.hf(input_ids=torch.from_numpy(np.asarray(ids)).to(model.device)[None])
    # the head's own output: a soft cap acts on it afterwards
    return _Parts(
        stream=stream,
        given={layer: calls[0] for layer, calls in given.items()},
        written={layer: at_position(calls[0]) for layer, calls in written.items()},
        logits=at_position(logits[0][0]),
    )


def _attributed(model: LanguageModel, parts: _Parts, wanted: Sequence[int]) -> Attribution:
    norm = measured_norm(final_norm(model), model)
    direction = _direction(model, wanted)
    # The size of the whole stream: each part alone would be scaled by a size of its own.
    frozen = _frozen(norm, parts.stream[-1].numpy())
    # The gain is linear and can be applied to the direction once.
    through = direction * norm.gain
    linears = output_projections(model, range(model.n_layers))
    heads = np.empty((model.n_layers, model.n_heads))
    biases, mlps = np.empty((2, model.n_layers))
    for layer, linear in linears.items():
        written, added = _attention_parts(model, layer, linear, parts)
        total = written.sum(0) + added
        # By subtraction, so that parallel and sequential MLPs and norms behind them need no own
        # case.
        mlp = (parts.stream[layer + 1] - parts.stream[layer]).numpy() - total
        heads[layer] = frozen(written) @ through
        biases[layer] = frozen(added) @ through
        mlps[layer] = frozen(mlp) @ through
    logit = float(parts.logits[wanted[0]] - (parts.logits[wanted[1]] if wanted[1:] else 0.0))
    found = Attribution(
        embedding=float(frozen(parts.stream[0].numpy()) @ through),
        heads=heads,
        biases=biases,
        mlps=mlps,
        shift=0.0 if norm.shift is None else float(norm.shift @ direction),
        logit=logit,
    )
    if model.dtype == "float32" and found.gap > TOLERANCE:
        raise ModelError(
            f"expected parts that add up to the logit {logit:.4f}, got {found.total:.4f} in "
            f"{type(model.hf).__name__}; leave out the direct attribution"
        )
    return found


def _direction(model: LanguageModel, wanted: Sequence[int]) -> Vector:
    """The unembedding of a token, or the difference of two."""
    head: Any = model.hf.get_output_embeddings()
    rows = head.weight[list(wanted)].detach().double().cpu().numpy()
    return rows[0] if len(wanted) == 1 else rows[0] - rows[1]


def _frozen(norm: Norm, stream: Vector) -> Any:
    """The norm without its gain, with its size fixed to that of this stream."""
    centred = stream - stream.mean() if norm.kind == "layer" else stream
    size = np.sqrt((centred**2).mean() + norm.eps)

    def apply(x: Float64[np.ndarray, "*part hidden"]) -> Float64[np.ndarray, "*part hidden"]:
        return (x - x.mean(-1, keepdims=True) if norm.kind == "layer" else x) / size

    return apply


def _attention_parts(
    model: LanguageModel, layer: int, linear: nn.Linear, parts: _Parts
) -> tuple[Float64[np.ndarray, "head hidden"], Vector]:
    """What each head adds to the stream, and the constant part (bias and shift)."""
    weight = linear.weight.detach().double().cpu()
    slices = weight.T.reshape(model.n_heads, -1, weight.shape[0])
    given = parts.given[layer].reshape(model.n_heads, -1)
    written = torch.einsum("hc,hcm->hm", given, slices).numpy()
    bias = (
        linear.bias.detach().double().cpu().numpy() if _has_bias(linear) else np.zeros(len(weight))
    )
    actual = parts.written[layer].numpy()
    if not np.allclose(written.sum(0) + bias, actual, rtol=_ROUNDING, atol=_ROUNDING):
        raise ModelError(
            f"expected heads that add up to what layer {layer} writes, got others in "
            f"{type(model.hf).__name__}; leave out the direct attribution"
        )
    after = branch_norm(model, layer)
    if after is None:
        return written, bias
    norm = measured_norm(after, model)
    # The norm behind the attention is frozen too, at the size of all heads together.
    frozen = _frozen(norm, parts.written[layer].numpy())
    shift = np.zeros(len(weight)) if norm.shift is None else norm.shift.astype(np.float64)
    return frozen(written) * norm.gain, frozen(bias) * norm.gain + shift


def _has_bias(linear: Any) -> bool:
    return linear.bias is not None


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
    # In the dtype of the model, as the last layer hands over its states.
    given = torch.from_numpy(states).to(head.weight.device, model.hf.dtype)
    logits = head(final_norm(model)(given)).float()
    cap = getattr(config, "final_logit_softcapping", None)
    # The cap is part of the model's own logits, with which the lens is compared.
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
        ModelError: It is larger than rounding, so the family has another final operation.
    """
    error = float(np.abs(lens_logits(model, last) - logits).max())
    allowed = LENS_TOLERANCE.get(model.dtype, ROUNDED) * max(1.0, float(np.abs(logits).max()))
    if not error <= allowed:
        raise ModelError(
            f"expected the final norm and output embedding of {model.config.model_type} to give "
            f"its logits to {allowed:.2g}, got a difference of {error:.2g}; its lens is not known"
        )
    return error
