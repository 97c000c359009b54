"""Turns a GGUF file into a dense model and its tokenizer."""

import contextlib
import io
import struct
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tempo.errors import ModelError

# llama.cpp (src/llama-vocab.cpp) names the rule that cuts text into words before BPE.
# transformers knows some of the names and takes every other one for the rule of GPT-2.
_GPT2_RULE = frozenset({"gpt-2", "granite-docling", "jais", "mpt", "olmo", "phi-2", "trillion"})
_SINGLE_DIGITS = frozenset(
    {"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"}
)

_SAID = frozenset({"model", "pre", "tokens", "eos_token_id", "bos_token_id", "add_bos_token"})

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


@dataclass(frozen=True, slots=True)
class _Declared:
    """What the file says about its tokenizer.

    Attributes:
        kind: "gpt2" for byte-level BPE, "llama" for sentencepiece, ...
        rule: Name of the rule that cuts text into words; None where there is none.
        n_tokens: Size of the vocabulary.
        eos: Id of the token that ends a sequence, if any.
        bos: Id of the token that starts one, if any.
        adds_bos: Whether it is put before every text; None if the file does not say.
    """

    kind: str
    rule: str | None
    n_tokens: int
    eos: int | None
    bos: int | None
    adds_bos: bool | None


def dense_model(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
    """Read a GGUF file, unpack every weight once and build its tokenizer.

    Raises:
        ModelError: The file is damaged, or of an architecture or tokenizer not understood.
    """
    declared = _declared(path)
    _check_rule(declared, path)
    try:
        with _without_bars():
            hf = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, **_unpacking()
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except _GGUF_ERRORS as error:
        raise ModelError(
            f"expected a GGUF file that transformers can unpack, got {path.name}: "
            f"{first_line(error)}; convert the original checkpoint instead"
        ) from error
    _set_word_rule(tokenizer, declared.rule)
    _check_special_tokens(tokenizer, declared, path)
    return hf, tokenizer


def first_line(error: Exception) -> str:
    """The first line of an error's message, for messages of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:240].rstrip(".")


def _declared(path: Path) -> _Declared:
    """Read what the file says; this also finds a file that ends too early."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
        said = {
            key: field.contents()
            for name, field in fields.items()
            if (key := name.removeprefix("tokenizer.ggml.")) in _SAID
        }
    except _GGUF_ERRORS as error:
        raise ModelError(
            f"expected a complete GGUF file, got {path.name} which cannot be read "
            f"({first_line(error)}); download it again"
        ) from error
    return _Declared(
        kind=said.get("model", ""),
        rule=said.get("pre"),
        n_tokens=len(said.get("tokens", ())),
        eos=said.get("eos_token_id"),
        bos=said.get("bos_token_id"),
        adds_bos=said.get("add_bos_token"),
    )


def _check_rule(declared: _Declared, path: Path) -> None:
    """Refuse a rule for words that would be read as another one."""
    known = _GPT2_RULE | _SINGLE_DIGITS | _rules_of_transformers()
    if declared.kind == "gpt2" and declared.rule is not None and declared.rule not in known:
        raise ModelError(
            f"expected a known pre-tokenizer in {path.name}, got {declared.rule!r}, which would be "
            "read as GPT-2's; load the original folder with its tokenizer.json"
        )


def _check_special_tokens(tokenizer: Any, declared: _Declared, path: Path) -> None:
    """Refuse a tokenizer with other special tokens than the file's, as older releases build."""
    wanted = [declared.eos, declared.bos]
    ids = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    is_same = all(want is None or want == got for want, got in zip(wanted, ids, strict=True))
    if declared.kind == "gpt2" and declared.adds_bos is not None:
        adds_bos = tokenizer("a")["input_ids"][:1] == [declared.bos]
        is_same = is_same and adds_bos == declared.adds_bos
    if not is_same or len(tokenizer) > declared.n_tokens:
        raise ModelError(
            f"expected the special tokens that {path.name} declares, got others from "
            f"transformers {transformers.__version__}; upgrade transformers"
        )


def _rules_of_transformers() -> set[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # older releases know none
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def _set_word_rule(tokenizer: Tokenizer, rule: str | None) -> None:
    """Give the tokenizer the digit rule that transformers leaves out."""
    from tokenizers import pre_tokenizers

    if rule in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend: Any = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


def _unpacking() -> dict[str, object]:
    """The argument that makes transformers unpack the weights; older releases always do."""
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


@contextlib.contextmanager
def _without_bars() -> Generator[None]:
    """Keep the loader's progress bars off the terminal; they have no switch of their own."""
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
