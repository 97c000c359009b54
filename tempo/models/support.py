"""Checks that refuse models on which parallel sets cannot be decoded or measured."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tempo.errors import ModelError
from tempo.models.language_model import LanguageModel

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_POSITION_TABLES = frozenset(
    {"wpe", "embed_positions", "position_embedding", "position_embeddings"}
)
_ADVICE = "use a decoder with rotary positions, such as smollm2-135m"


def check_supported(hf: PreTrainedModel) -> None:
    """Refuse a model on which members of a set could not share a position, or not be measured.

    Raises:
        ModelError: Names the first reason found.
    """
    config = hf.config.get_text_config(decoder=True)
    # General reasons first: a model often fails several checks, and the first is reported.
    reason = (
        _not_a_decoder(hf, config)
        or _not_attention(hf, config)
        or _order_not_position(hf, config)
        or _not_measurable(hf)
        or _not_rotary(config)
    )
    if reason:
        raise ModelError(
            f"expected a causal decoder with rotary positions and softmax attention, "
            f"got {type(hf).__name__}: {reason}; {_ADVICE}"
        )


def check_rope(model: LanguageModel, largest_position: float | int) -> None:
    """Refuse positions at which a RoPE type changes the frequencies of the whole call.

    Types "dynamic" and "longrope" choose their frequencies from the largest position in a call,
    so one long sequence would turn the keys of every other. Below the original length the choice
    never changes. The bound is strict: "dynamic" goes back to its first frequencies only there.

    Raises:
        ModelError: Names the type, the limit and the position.
    """
    for rope in model.rope_parameters.values():
        kind = rope.get("rope_type", "default")
        limit = _constant_below(kind, rope, model.config)
        if limit is not None and largest_position >= limit:
            raise ModelError(
                f"expected positions below {limit}, got {largest_position}: RoPE type {kind!r} of "
                f"{model.name} changes its frequencies there; shorten the prompt or "
                "take fewer steps"
            )


def _constant_below(kind: str, rope: dict[str, object], config: PreTrainedConfig) -> int | None:
    """First position whose presence may change the frequencies; None if none does."""
    if "dynamic" in kind:
        return config.max_position_embeddings - 1
    if kind == "longrope":
        return int(str(rope["original_max_position_embeddings"])) - 1
    return None


def _not_a_decoder(hf: PreTrainedModel, config: PreTrainedConfig) -> str | None:
    if hf.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if hf.get_output_embeddings() is None:
        return "it has no language-model head"
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "its attention is bidirectional"
    return None


def _not_attention(hf: PreTrainedModel, config: PreTrainedConfig) -> str | None:
    layer_types: set[str] = set(getattr(config, "layer_types", None) or ())
    others = sorted(layer_types - _LAYER_TYPES)
    if "chunked_attention" in others:
        return "its chunked_attention layers cut the context at fixed positions"
    if others:
        return f"its {', '.join(others)} layers keep or choose context without a softmax over slots"
    if getattr(hf, "_is_stateful", False):
        return "it carries a recurrent state from token to token"
    return None


def _order_not_position(hf: PreTrainedModel, config: PreTrainedConfig) -> str | None:
    if _uses_alibi(config):
        return "its ALiBi bias is read from the order of the cache, which siblings cannot share"
    table = _position_table(hf)
    if table:
        return f"its absolute positions ({table}) are added to the input and cannot be shared"
    return None


def _uses_alibi(config: PreTrainedConfig) -> bool:
    nested = getattr(config, "attn_config", None)
    # Bloom uses ALiBi always and does not declare it.
    declared = getattr(config, "alibi", False) or getattr(nested, "alibi", False)
    return bool(declared) or config.model_type == "bloom"


def _position_table(hf: PreTrainedModel) -> str | None:
    """Name of the embedding of absolute positions, if the model has one."""
    decoder = set(hf.get_decoder().modules())  # not a vision tower beside it
    for name, module in hf.named_modules():
        is_table = (
            isinstance(module, torch.nn.Embedding) and name.split(".")[-1] in _POSITION_TABLES
        )
        if is_table and module in decoder:
            return name
    return None


def _not_measurable(hf: PreTrainedModel) -> str | None:
    can_set = getattr(hf, "_can_set_attn_implementation", lambda: False)
    if getattr(hf, "_supports_attention_backend", False) and can_set():
        return None
    return "its attention does not go through the attention-function registry of transformers"


def _not_rotary(config: PreTrainedConfig) -> str | None:
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return "it has no rotary positions"
    if "mrope_section" in rope:
        return "its rotary positions have three axes (image and video)"
    return None
