"""Exports the weights of a model's attention circuits, for all known families."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from tempo.errors import InputError, ModelError
from tempo.models.circuit_weights import CircuitWeights, LayerWeights, Norm, ProcessedEmbedding
from tempo.models.hooks import stopped_after, watched_stream, zeroed_output
from tempo.models.language_model import LanguageModel
from tempo.models.projections import OUTPUTS, output_projections

EXPORTED = frozenset(
    {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "olmo",
        "olmo2",
        "gpt_neox",
        "gpt_oss",
        "smollm3",
    }
)
"""Families whose layers compute what the exported weights describe."""

_PROBE = 1000.0  # so large that the epsilon of a norm does not show
_SMALL = 1e-3
# Embedding rows compared to find the scale; evenly spread over the vocabulary.
_SAMPLE = 16
# Tokens of one forward of the first layer; bounds memory, not results.
_BATCH = 1024
_FINAL_NORMS = ("norm", "final_layer_norm")


def circuit_weights(model: LanguageModel) -> CircuitWeights:
    """The weights by head; views of the model's own memory where they are float32 on the CPU.

    Raises:
        ModelError: The family is not known, or its projections are not plain.
    """
    check_exported(model)
    head: Any = model.hf.get_output_embeddings()
    table: Any = model.hf.get_input_embeddings()
    scale = _embedding_scale(model)
    embedding = _array(table.weight)
    config: Any = model.config
    return CircuitWeights(
        layers=tuple(_layer(model, layer) for layer in range(model.n_layers)),
        embedding=embedding if scale == 1.0 else _frozen(embedding * np.float32(scale)),
        unembedding=_array(head.weight),
        final_norm=measured_norm(final_norm(model), model),
        softcap=getattr(config, "final_logit_softcapping", None),
        is_parallel=is_parallel(model),
        is_tied=head.weight is table.weight,
    )


def check_exported(model: LanguageModel) -> None:
    """Refuse a family whose layers may compute something else than the exported weights.

    Raises:
        ModelError: Names the family.
    """
    if model.config.model_type not in EXPORTED:
        raise ModelError(
            f"expected a family whose weights can be exported ({', '.join(sorted(EXPORTED))}), "
            f"got {model.config.model_type}; leave out the roles that read weights"
        )


def is_parallel(model: LanguageModel) -> bool:
    """Whether attention and MLP of a layer read the same stream."""
    return bool(getattr(model.config, "use_parallel_residual", False))


@torch.inference_mode()
def processed_embedding(
    model: LanguageModel, ids: Sequence[int] | Int64[np.ndarray, " token"]
) -> ProcessedEmbedding:
    """Token embeddings after the first MLP, without attention, as later layers read them.

    Each token runs alone through the first layer while its attention adds nothing (Gould et al.
    2023, arXiv 2312.09230, section 2; they take what the MLP writes as the effective embedding).

    Raises:
        ModelError: The first layer has no plain output projection.
        InputError: No tokens.
    """
    tokens = [int(token) for token in ids]
    if not tokens:
        raise InputError("expected at least one token to embed, got none; give some")
    decoder: Any = model.hf.get_decoder()
    linear = output_projections(model, (0,))[0]
    entered: list[Tensor] = []
    left: list[Tensor] = []
    for start in range(0, len(tokens), _BATCH):
        # One token in each sequence: it sees itself only, at position 0.
        fed = torch.tensor(tokens[start : start + _BATCH], device=model.device)[:, None]
        with (
            zeroed_output(linear),
            watched_stream(model, lambda stream: stream[:, 0].float()) as depths,
            stopped_after(decoder.layers[0]),
        ):
            decoder(input_ids=fed, use_cache=False)
        entered.append(depths[0])
        left.append(depths[1])
    before, after = torch.cat(entered), torch.cat(left)
    return ProcessedEmbedding(tuple(tokens), _array(before), _array(after - before))


def measured_norm(module: nn.Module, model: LanguageModel) -> Norm:
    """The gain, shift and epsilon of a normalisation, measured by probing the module.

    Families store them in different ways (Gemma has 1 + weight), so parameters are not read.
    """
    assert model.config.hidden_size % 2 == 0, "the probe must have mean 0"
    signs = torch.ones(model.config.hidden_size, device=model.device, dtype=model.hf.dtype)
    signs[1::2] = -1
    # mean 0 and RMS 1: a layer norm and an RMS norm agree on `up` and `down`, and differ on `moved`
    with torch.inference_mode():
        up, down = (module(sign * _PROBE * signs).float() for sign in (1, -1))
        moved = module(_PROBE * (signs + 1)).float()
        short = module(_SMALL * signs).float()
    # a norm is odd but for its shift: half the difference is the gain, half the sum the shift
    gain, shift = (up - down) / 2 * signs.float(), (up + down) / 2
    # A channel of gain 0 tells nothing about eps.
    kept = gain.abs() > 0
    # a short vector is shrunk by eps: |x| / sqrt(x^2 + eps) = ratio, solved for eps below
    ratio = ((short - shift) * signs.float() / gain)[kept].median()
    measured = _SMALL**2 * (1 / float(ratio) ** 2 - 1)
    declared = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    is_layer_norm = torch.allclose(moved, up, rtol=1e-2, atol=1e-2 * float(gain.abs().max()))
    return Norm(
        kind="layer" if is_layer_norm else "rms",
        gain=_array(gain),
        shift=_array(shift) if bool(shift.any()) else None,
        eps=float(measured if declared is None else declared),
    )


def final_norm(model: LanguageModel) -> nn.Module:
    """The norm before the language-model head.

    Raises:
        ModelError: It is not where a family known here has it.
    """
    decoder: Any = model.hf.get_decoder()
    found = [getattr(decoder, name) for name in _FINAL_NORMS if hasattr(decoder, name)]
    if not found:
        raise ModelError(
            f"expected a decoder with a final norm ({' or '.join(_FINAL_NORMS)}), got "
            f"{type(decoder).__name__} without one; its states have no lens here"
        )
    return found[0]


def branch_norm(model: LanguageModel, layer: int) -> nn.Module | None:
    """The norm that an attention's output passes before it joins the stream, where there is one."""
    decoder: Any = model.hf.get_decoder()
    block = decoder.layers[layer]
    if getattr(block, "post_feedforward_layernorm", None) is None:
        return None  # otherwise the norm of this name stands before the MLP
    return block.post_attention_layernorm


def _layer(model: LanguageModel, layer: int) -> LayerWeights:
    decoder: Any = model.hf.get_decoder()
    block, attention = decoder.layers[layer], _attention(model, layer)
    query, key, value = _inward(model, attention)
    linear = output_projections(model, (layer,))[layer]
    # The input of the projection is the heads side by side, so its columns are split by head.
    wide = linear.weight.detach().reshape(-1, model.n_heads, model.head_dim).transpose(0, 1)
    after, before = branch_norm(model, layer), getattr(block, "input_layernorm", None)
    return LayerWeights(
        query=query[0],
        key=key[0],
        value=value[0],
        out=_array(wide),
        query_bias=query[1],
        key_bias=key[1],
        value_bias=value[1],
        out_bias=_bias(linear),
        input_norm=None if before is None else measured_norm(before, model),
        branch_norm=None if after is None else measured_norm(after, model),
        clip=getattr(model.config, "clip_qkv", None),
        # With such a norm the score is no longer bilinear in the weights.
        normalises=hasattr(attention, "q_norm"),
    )


def _attention(model: LanguageModel, layer: int) -> nn.Module:
    """The attention module of a layer, which has its only output projection."""
    decoder: Any = model.hf.get_decoder()
    return next(
        module
        for module in decoder.modules()
        if getattr(module, "layer_idx", None) == layer
        and any(name in dict(module.named_children()) for name in OUTPUTS)
    )


_Part = tuple[
    Float32[np.ndarray, "head channel hidden"], Float32[np.ndarray, "head channel"] | None
]


def _inward(model: LanguageModel, attention: Any) -> list[_Part]:
    """Query, key and value maps by head, with their biases."""
    n, n_kv, width = model.n_heads, model.n_kv_heads, model.head_dim
    if hasattr(attention, "q_proj"):
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        parts = [(linear.weight, linear.bias) for linear in linears]
    elif hasattr(attention, "qkv_proj"):  # queries of all heads, then keys, then values
        linears = (attention.qkv_proj,)
        parts = _split(
            attention.qkv_proj, lambda rows: rows.split([n * width] + [n_kv * width] * 2)
        )
    elif hasattr(attention, "query_key_value") and n == n_kv:  # head by head: query, key, value
        linears = (attention.query_key_value,)
        parts = _split(
            attention.query_key_value,
            lambda rows: rows.unflatten(0, (n, 3, width)).transpose(0, 1).flatten(1, 2).unbind(0),
        )
    else:
        raise _unknown(model, attention)
    sizes = [len(weight) for weight, _ in parts]
    if sizes != [n * width, n_kv * width, n_kv * width] or any(
        type(linear) is not nn.Linear for linear in linears
    ):
        raise _unknown(model, attention)
    return [
        (
            _array(weight.detach().unflatten(0, (-1, width))),
            None if bias is None else _array(bias.detach().unflatten(0, (-1, width))),
        )
        for weight, bias in parts
    ]


def _split(linear: nn.Linear, into: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Rows of a fused projection, and of its bias."""
    weights = into(linear.weight)
    biases: Any = [None] * 3 if getattr(linear, "bias", None) is None else into(linear.bias)
    return list(zip(weights, biases, strict=True))


def _bias(linear: Any) -> Float32[np.ndarray, " hidden"] | None:
    return None if linear.bias is None else _array(linear.bias)


def _unknown(model: LanguageModel, attention: nn.Module) -> ModelError:
    return ModelError(
        "expected plain linear query, key and value projections, got those of "
        f"{type(attention).__name__} in {model.config.model_type}; leave out the roles that read "
        "weights"
    )


def _embedding_scale(model: LanguageModel) -> float:
    """The factor on embeddings at the input of the first layer, measured on a few tokens."""
    ids = np.linspace(1, model.vocab_size - 1, _SAMPLE).astype(np.int64)
    table: Any = model.hf.get_input_embeddings()
    stored = table.weight[torch.from_numpy(ids).to(model.device)].detach().float().cpu().numpy()
    entered = processed_embedding(model, ids).embedding
    # Least squares over all entries of the sample; the check below refuses anything but a scale.
    scale = float((entered * stored).sum() / (stored**2).sum())
    if np.array_equal(entered, stored):
        return 1.0
    if not np.allclose(entered, scale * stored, rtol=1e-2, atol=1e-6):
        raise ModelError(
            "expected embeddings that enter the first layer as they are or scaled, got others in "
            f"{model.config.model_type}; leave out the roles that read weights"
        )
    return scale


def _array(tensor: Float[Tensor, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    return _frozen(tensor.detach().float().cpu().numpy())


def _frozen(array: np.ndarray) -> np.ndarray:
    """The array made read-only, since it may share the memory of the model."""
    array.flags.writeable = False
    return array
