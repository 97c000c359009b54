"""Tiny random models of many families, and tiny models that tempo refuses."""

import math
import string
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
_WORDS = (" the", " cat", " sat", " on", " mat", " a", " is", " dog", " ran", " in", "er")
VOCAB_SIZE = 128


def character_tokenizer(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    """One token for each character, and longer ones for a few common pieces.

    Printable ASCII goes through encode and decode unchanged; anything else becomes `<unk>`.
    """
    tokenizer = Tokenizer.from_str(_serialised())
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", _SPECIAL.index("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@cache
def _serialised() -> str:
    merges = _merges()
    tokens = [*_SPECIAL, *_CHARACTERS, *(first + second for first, second in merges)]
    filler = [f"<extra{number}>" for number in range(VOCAB_SIZE - len(tokens))]
    vocab = {token: number for number, token in enumerate([*tokens, *filler])}
    assert len(vocab) == VOCAB_SIZE, f"{len(vocab)} tokens"
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer.to_str()


def _merges() -> list[tuple[str, str]]:
    """The pairs that spell the words from left to right, each pair once."""
    pairs: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        for end in range(1, len(word)):
            pairs[word[:end], word[end]] = None
    return list(pairs)


# Shorter than the prompts of the tests, so that the window hides something.
_WINDOW = 8
_MIXED = ["sliding_attention", "full_attention"]

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    # Two query heads on each KV head: with one, a wrong head mapping would not show.
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, Any] = {
    "head_dim": 16,
    # Not the head dimension: a scaling taken from the wrong field then shows.
    "query_pre_attn_scalar": 24,
    "num_hidden_layers": 4,
    "sliding_window": _WINDOW,
}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 128,
}

# model type and what differs from _SHAPE
_RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_mha": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {"sliding_window": _WINDOW, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    # caps low enough that leaving one out shows
    "gemma2": (
        "gemma2",
        _GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0},
    ),
    "gemma3": (
        "gemma3_text",
        _GEMMA
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
            }
        },
    ),
    "phi3": ("phi3", {}),
    "olmo": ("olmo", {"clip_qkv": 2.0}),
    "olmo2": ("olmo2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_oss": (
        "gpt_oss",
        {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "sliding_window": _WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": _YARN,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
}

FAMILIES = tuple(_RECIPES)
_HYBRID = frozenset({"gemma2", "gemma3", "gpt_oss"})
_WITH_BOS = frozenset({"llama", "llama_mha", "mistral", "gemma2", "gemma3"})
_ZERO_CENTRED_NORMS = frozenset({"gemma2", "gemma3_text"})  # they scale by 1 + weight

_REFUSED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2},
    "falcon": {"hidden_size": 32, "alibi": True},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
    "stablelm": {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2},
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 2, "num_heads": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "recurrent_gemma": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
    "lfm2": {"hidden_size": 32, "intermediate_size": 48, "layer_types": ["conv", "full_attention"]},
    "llama4_text": {"hidden_size": 32, "intermediate_size": 48, "head_dim": 16},
}
_REFUSED_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}

REFUSED = tuple(_REFUSED)


def tiny_model(
    family: str, *, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> LanguageModel:
    """A model of a family with random weights, small enough to build in a fraction of a second.

    Weights are scaled so that attention is uneven and several tokens have a real chance. The
    tokenizer spells printable ASCII, with a few longer tokens; it adds a bos token where the
    family does. Hybrid families have both layer types.

    Args:
        family: One of FAMILIES.
        seed: Seed of the weights.
        dtype: "float32", "bfloat16" or "float16".
        overrides: Settings of the configuration.

    Raises:
        InputError: The family is unknown.
    """
    if family not in _RECIPES:
        raise InputError(f"expected a family ({', '.join(FAMILIES)}), got {family!r}; choose one")
    model_type, changes = _RECIPES[family]
    tokenizer = character_tokenizer(adds_bos=family in _WITH_BOS)
    settings = _SHAPE | changes | overrides
    if family in _HYBRID:  # the default of Gemma-3 would have no full layer below the sixth
        n_layers = settings["num_hidden_layers"]
        settings.setdefault("layer_types", (_MIXED * n_layers)[:n_layers])
    if family == "gpt_neox":  # knows no groups, but would keep the number
        settings.pop("num_key_value_heads")
    config = _config(model_type, tokenizer, **settings)
    hf = _build(config, seed)
    _scatter(hf, torch.Generator().manual_seed(seed))
    for parameter in hf.parameters():  # not the buffers: rotary frequencies stay float32
        parameter.data = parameter.data.to(getattr(torch, dtype))
    hf.config.name_or_path = f"tiny-{family}"
    return load_model((hf, tokenizer), dtype=dtype)


def refused_model(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny model, with its tokenizer, of a kind that `load_model` refuses.

    Raises:
        InputError: The kind is not one of REFUSED.
    """
    if kind not in _REFUSED:
        raise InputError(
            f"expected a refused kind ({', '.join(REFUSED)}), got {kind!r}; choose one"
        )
    tokenizer = character_tokenizer(adds_bos=False)
    # Families name their sizes in their own way; those that do get no common ones.
    settings = _REFUSED[kind]
    shape = {} if "n_head" in settings or "n_heads" in settings else _REFUSED_SHAPE
    shape = shape | {"vocab_size": VOCAB_SIZE} | settings
    return _build(_config(kind, tokenizer, **shape), seed=0), tokenizer


def _config(
    model_type: str, tokenizer: PreTrainedTokenizerFast, **settings: Any
) -> PreTrainedConfig:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(model_type, **(ids | settings))


def _build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """The model, without touching the caller's random numbers."""
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    # `from_config` draws from the global generator; the caller's state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.from_config(config).eval()


@torch.no_grad()
def _scatter(hf: PreTrainedModel, generator: torch.Generator) -> None:
    """Draw all weights again, each with the scale of its kind."""
    head, embedding = _ends(hf)
    centre = 0.0 if hf.config.model_type in _ZERO_CENTRED_NORMS else 1.0
    for name, parameter in hf.named_parameters():
        if parameter is head:
            middle, spread = 0.0, 2.2 / math.sqrt(parameter.shape[-1])
        elif parameter is embedding:
            middle, spread = 0.0, 0.5 if centre else 0.5 / math.sqrt(parameter.shape[-1])
        elif parameter.ndim >= 2:
            middle, spread = 0.0, 1.4 / math.sqrt(_fan_in(name, parameter))
        elif name.endswith("norm.weight") or "layernorm.weight" in name:
            middle, spread = centre, 0.2
        else:  # biases and sinks
            middle, spread = 0.0, 0.5
        parameter.normal_(middle, spread, generator=generator)


def _ends(hf: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of the language-model head and of the embedding."""
    return hf.get_output_embeddings().weight, hf.get_input_embeddings().weight


def _fan_in(name: str, parameter: torch.Tensor) -> int:
    """Inputs of one output; experts are stored the other way round and have 2-D biases."""
    if name.endswith("_bias"):
        return 4
    return parameter.shape[-2] if parameter.ndim == 3 else parameter.shape[-1]
