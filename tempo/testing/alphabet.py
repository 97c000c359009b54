"""A tokenizer of 128 tokens that spells printable ASCII, built in code."""

import string
from functools import cache

from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

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
