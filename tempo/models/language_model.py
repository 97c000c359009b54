"""A loaded language model and the facts about it that decoding needs."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tempo.errors import InputError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LanguageModel:
    """An unmodified Hugging Face decoder in eval mode, with its tokenizer and its identity.

    Attributes:
        hf: The model itself.
        tokenizer: Its tokenizer; None if prompts are given as token ids.
        name: Preset, hub id, folder or file from which it was loaded.
        revision: Commit of the hub repository, where there is one.
        fingerprint: SHA-256 over all weights and the architecture, taken when it was loaded.
        tokenizer_hash: SHA-256 over the tokenizer; None without one.
        dtype: "float32", "bfloat16" or "float16".
        mark: State of the weights' version counters when they were hashed; see `weights_mark`.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str | None
    fingerprint: str
    tokenizer_hash: str | None
    dtype: str
    mark: int = 0
    _texts: dict[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        heads = f"{self.n_heads} heads on {self.n_kv_heads} KV heads"
        kind = f"{self.config.model_type}, {self.n_layers} layers, {heads}"
        return f"LanguageModel({self.name}: {kind}, {self.dtype}, {self.device})"

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the text decoder, also inside a multimodal model."""
        return self.hf.config.get_text_config(decoder=True)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        """Number of query heads in a layer."""
        return self.config.num_attention_heads

    @property
    def n_kv_heads(self) -> int:
        """Number of key-value heads in a layer; fewer than n_heads under GQA."""
        # Families without grouped heads omit the number or set it to None.
        return getattr(self.config, "num_key_value_heads", None) or self.n_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        declared = getattr(self.config, "head_dim", None)
        # Gemma and Qwen-3 declare a head dimension that is not hidden size / heads.
        return declared or self.config.hidden_size // self.n_heads

    @property
    def vocab_size(self) -> int:
        """Number of logits; may exceed the number of tokens the tokenizer knows."""
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        """Longest context the model was made for, in positions."""
        return self.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        """Where the token ids go; with a device_map, the first of several devices."""
        embedding: Any = self.hf.get_input_embeddings()
        return embedding.weight.device

    @property
    def layer_types(self) -> tuple[str, ...]:
        """Attention type of every layer: "full_attention" or "sliding_attention"."""
        declared = getattr(self.config, "layer_types", None)
        if declared:
            return tuple(declared)
        # a window in the configuration means nothing to code that never makes a sliding mask
        code = sys.modules[type(self.hf).__module__]
        slides = hasattr(code, "create_sliding_window_causal_mask")
        window = slides and getattr(self.config, "sliding_window", None)
        return ("sliding_attention" if window else "full_attention",) * self.n_layers

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Sliding window W of every layer (a query sees p_q - p_k < W), None for full layers."""
        window = getattr(self.config, "sliding_window", None)
        return tuple(window if kind == "sliding_attention" else None for kind in self.layer_types)

    @property
    def rope_parameters(self) -> dict[str, dict[str, Any]]:
        """RoPE settings by layer type; a model with one rotary base has the one key "all"."""
        declared: dict[str, Any] = self.config.rope_parameters
        if all(isinstance(value, dict) for value in declared.values()):
            return declared
        return {"all": declared}

    @property
    def rope_types(self) -> tuple[str, ...]:
        """The RoPE types in use, each once ("default", "llama3", "yarn", "dynamic", ...)."""
        kinds = {rope.get("rope_type", "default") for rope in self.rope_parameters.values()}
        return tuple(sorted(kinds))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence: generation_config's, else the tokenizer's, else none."""
        declared: Any = getattr(self.hf.generation_config, "eos_token_id", None)
        if declared is None and self.tokenizer is not None:
            declared = self.tokenizer.eos_token_id
        if declared is None:
            return ()
        return (declared,) if isinstance(declared, int) else tuple(declared)

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Token ids of a raw text with the tokenizer's own special tokens.

        Args:
            text: The prompt.
            chat: Wrap the text as a user's turn in the chat template, up to the answer.

        Raises:
            InputError: There is no tokenizer, or no chat template.
        """
        tokenizer = self._tokenizer()
        if not chat:
            return list(tokenizer(text)["input_ids"])
        if not tokenizer.chat_template:
            raise InputError(
                f"expected a chat template, got a tokenizer without one ({self.name}); "
                "leave out chat or choose an instruction-tuned model"
            )
        turn = [{"role": "user", "content": text}]
        ids: Any = tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_dict=False
        )
        return list(ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of token ids, special tokens spelled out unless skipped."""
        text = self._tokenizer().decode(
            [int(token) for token in ids],
            skip_special_tokens=skip_special,
            clean_up_tokenization_spaces=False,
        )
        return str(text)

    def token_text(self, token: int) -> str:
        """The text one token adds after another: a leading space survives.

        A token that holds only part of a character shows as U+FFFD.
        """
        token = int(token)
        if token not in self._texts:
            # Decoded after another token: alone, many tokenizers strip the leading space.
            anchor = self._tokenizer().encode("a", add_special_tokens=False)[-1:]
            before, whole = self.decode(anchor), self.decode([*anchor, token])
            known = whole.startswith(before)
            self._texts[token] = whole[len(before) :] if known else self.decode([token])
        return self._texts[token]

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError(
                f"expected a tokenizer, got none for {self.name}; give token ids instead of text"
            )
        return self.tokenizer


@contextmanager
def attention_as(hf: PreTrainedModel, name: str) -> Generator[None]:
    """Run a model with another attention function, and restore the settings of all its parts."""
    parts = {key: getattr(hf.config, key, None) for key in hf.config.sub_configs}
    # Part by part: vision and text towers may differ. The setting lives in the config object, which
    # several models can share, so it must be restored.
    before = {"": _attention_of(hf.config)}
    before |= {key: _attention_of(part) for key, part in parts.items() if part is not None}
    hf.set_attn_implementation(name)
    try:
        yield
    finally:
        hf.set_attn_implementation(before if len(before) > 1 else before[""])


def _attention_of(config: PreTrainedConfig) -> str:
    return config._attn_implementation or "eager"  # pyright: ignore[reportPrivateUsage]
