"""Hashes that identify the weights and the tokenizer behind a trace."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempo.errors import ModelError

# What may differ between two loads of the same weights without changing what the model computes.
_INCIDENTAL = frozenset(
    {
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)


def weights_fingerprint(hf: PreTrainedModel) -> str:
    """SHA-256 over every byte of every parameter and saved buffer, and over the architecture.

    Nothing is sampled: one changed bit changes it. It is the same however the weights were
    loaded, and differs between dtypes, because a cast changes the weights that run.

    Raises:
        ModelError: Some weights are not in memory (offloaded).
    """
    tensors = _distinct_tensors(hf)
    whole = hashlib.sha256(_architecture(hf).encode())
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        for (name, tensor), digest in zip(
            tensors.items(), pool.map(_digest, tensors.values()), strict=True
        ):
            # Names and shapes too: the same bytes in another place are another model.
            whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {digest}\n".encode())
    return whole.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """SHA-256 over vocabulary, rules, special tokens and chat template; None without tokenizer."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: dict[str, Any] = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    if backend:  # both are settings of the last call, not of the tokenizer
        rules.pop("truncation", None)
        rules.pop("padding", None)
    parts = [rules, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _distinct_tensors(hf: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state dictionary in the order of names, each tied tensor once."""
    distinct: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    # Sorted by name: the order of modules may differ between releases of transformers.
    for name, tensor in sorted(hf.state_dict().items()):
        if tensor.is_meta:
            raise ModelError(
                f"expected all weights in memory, got {name} offloaded; "
                "use a device or a device_map that holds the whole model"
            )
        # Tied weights share memory and may be listed under one name or two, by how they were
        # loaded.
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            distinct[name] = tensor
        seen.add(place)
    return distinct


def _digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the bytes of one tensor; through uint8, since numpy has no bfloat16."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _architecture(hf: PreTrainedModel) -> str:
    """The configuration as canonical JSON, only with keys that change the computation."""
    return json.dumps(_essential(hf.config.to_diff_dict()), sort_keys=True, default=str)


def _essential(config: dict[str, Any]) -> dict[str, Any]:
    """One level of a configuration, and those below it, without the incidental keys."""
    return {
        key: _essential(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _INCIDENTAL
    }


def weights_mark(hf: PreTrainedModel) -> int:
    """A number that changes when weights are replaced or written in place through torch.

    It reads no weights, and shows when the fingerprint must be computed again. Writing through
    `.data` or numpy is not detected.
    """
    return hash(
        tuple(
            # `_version` counts in-place writes; inference tensors have none.
            (each.data_ptr(), each.dtype, 0 if each.is_inference() else each._version)
            for each in hf.parameters()
        )
    )
