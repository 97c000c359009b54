"""Turns a GGUF file into a dense model and its tokenizer."""

import contextlib
import io
import struct
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tempo.errors import ModelError

# llama.cpp (src/llama-vocab.cpp) names the rule that cuts text into words before BPE. For these
# two rules the tokenizer is built here: transformers takes both for the rule of GPT-2, and older
# releases (5.5, 5.17) give such files the special tokens of another model.
_GPT2_RULE = frozenset({"gpt-2", "granite-docling", "jais", "mpt", "olmo", "phi-2", "trillion"})
_SINGLE_DIGITS = frozenset(
    {"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"}
)
_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_GGUF_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    struct.error,
)


def dense_model(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file, unpack every weight once and build its tokenizer.

    Raises:
        ModelError: The file is damaged, or of an architecture or tokenizer not understood.
    """
    said = _metadata(path)
    try:
        with _without_bars():
            hf = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, **_unpacking()
            )
            tokenizer = _tokenizer(path, said)
    except _GGUF_ERRORS as error:
        raise ModelError(
            f"expected a GGUF file that transformers can unpack, got {path.name}: "
            f"{first_line(error)}; convert the original checkpoint instead"
        ) from error
    return hf, tokenizer


def first_line(error: Exception) -> str:
    """The first line of an error's message, for messages of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:240].rstrip(".")


def _metadata(path: Path) -> dict[str, Any]:
    """Metadata of the tokenizer in the file; also detects a file that is cut off."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields.items()
        return {
            name.removeprefix("tokenizer."): field.contents()
            for name, field in fields
            if name.startswith("tokenizer.")
        }
    except _GGUF_ERRORS as error:
        raise ModelError(
            f"expected a complete GGUF file, got {path.name} which cannot be read "
            f"({first_line(error)}); download it again"
        ) from error


def _tokenizer(path: Path, said: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer: built here where transformers would be wrong, refused where it is unknown."""
    rule = said.get("ggml.pre")
    if said.get("ggml.model") == "gpt2" and rule in _GPT2_RULE | _SINGLE_DIGITS:
        return _byte_level_tokenizer(said)
    if said.get("ggml.model") == "gpt2" and rule not in _rules_of_transformers():
        raise ModelError(
            f"expected a known pre-tokenizer in {path.name}, got {rule!r}, which would be read as "
            "GPT-2's; load the original folder with its tokenizer.json"
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    got = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    # Wrong special tokens are silent: the prompt would lose its bos or never end.
    if any(said.get(f"ggml.{name}_token_id", number) != number for name, number in got.items()):
        raise ModelError(
            f"expected the special tokens that {path.name} declares, got others from "
            f"transformers {transformers.__version__}; upgrade transformers"
        )
    return tokenizer


def _byte_level_tokenizer(said: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Byte-level BPE with the file's vocabulary, merges, word rule and special tokens."""
    tokens: list[str] = said["ggml.tokens"]
    pairs = [(first, second) for first, second in (each.split(" ") for each in said["ggml.merges"])]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend: Any = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    one_by_one = said["ggml.pre"] in _SINGLE_DIGITS
    # Digits first: the byte-level rule alone keeps several digits in one word.
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if one_by_one else words
    backend.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, said.get("ggml.token_type", ()), strict=False))
    # Special tokens are matched before BPE, which would split them.
    backend.add_special_tokens([_whole(token) for token, kind in kinds if kind == _CONTROL])
    backend.add_tokens([_whole(token) for token, kind in kinds if kind == _USER_DEFINED])
    ids = {name: said.get(f"ggml.{theirs}_token_id") for name, theirs in _SPECIAL.items()}
    special = {name: tokens[number] for name, number in ids.items() if number is not None}
    if said.get("ggml.add_bos_token"):
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, ids["bos_token"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=said.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _whole(token: str) -> AddedToken:
    """A token that is matched in the text before it is split into words."""
    return AddedToken(token, normalized=False)


def _rules_of_transformers() -> set[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # older releases know none
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def _unpacking() -> dict[str, object]:
    """The argument that makes transformers unpack the weights; older releases always do."""
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


@contextlib.contextmanager
def _without_bars() -> Generator[None]:
    """Hide the progress bars of the loader, which have no option to disable them."""
    with contextlib.redirect_stderr(io.StringIO()), quiet():
        yield


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Switch off the progress bars of transformers, and back on if they were on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
