"""The facts about a tokenizer that the sequences of `tempo.prompts` need."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from tempo.errors import InputError

# Any letter will do that every tokenizer has as one token.
_ANCHOR = "a"


@runtime_checkable
class Spells(Protocol):
    """A model with a tokenizer, as `tempo.models.language_model.LanguageModel` is."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of transformers, or None."""

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        ...

    @property
    def name(self) -> str:
        """Name of the model, for messages."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TokenFacts:
    """The facts about a tokenizer that sequences need.

    Attributes:
        encode: Token ids of a text without any special token.
        bos: The id that the tokenizer puts in front of a text; None where it puts none.
        ordinary: Ids that the model has logits for and that are neither special nor added.
    """

    encode: Callable[[str], list[int]]
    bos: int | None
    ordinary: Int64[np.ndarray, " id"]

    @property
    def front(self) -> tuple[int, ...]:
        """The tokens before every sequence: the bos token, or none."""
        return () if self.bos is None else (self.bos,)

    def after_text(self, text: str) -> list[int]:
        """Token ids of a text that continues another.

        Some tokenizers put a space before the first word of a text, so a word alone has other
        tokens than inside a text.
        """
        before, whole = self.encode(_ANCHOR), self.encode(_ANCHOR + text)
        # Where the tokens of the text before change, the two cannot be told apart by counting.
        continues = whole[: len(before)] == before
        return whole[len(before) :] if continues else self.encode(text)

    def single(self, text: str) -> int | None:
        """The single token of a text inside another text; None if it has more."""
        ids = self.after_text(text)
        return ids[0] if len(ids) == 1 and ids[0] in self.ordinary else None

    def kept(self, words: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...]]:
        """The words that are one token after a space, with it, and those that are not."""
        found = {word: self.single(f" {word}") for word in words}
        single = {word: token for word, token in found.items() if token is not None}
        return single, tuple(word for word in found if word not in single)


def token_facts(model: Spells) -> TokenFacts:
    """The facts of a model's tokenizer.

    Raises:
        InputError: The model has no tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(
            f"expected a tokenizer, got none for {model.name}; load the model with its tokenizer"
        )

    def encode(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(token) for token in ids]

    # Found by trying: several families declare a bos token that their tokenizer does not add.
    with_specials = tokenizer(_ANCHOR)["input_ids"]
    adds_bos = tokenizer.bos_token_id is not None and with_specials[:1] == [tokenizer.bos_token_id]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    # Logits are often padded beyond the tokenizer's ids, and added ids may lie beyond the logits.
    known = min(len(tokenizer), model.vocab_size)
    ordinary = np.setdiff1d(np.arange(known, dtype=np.int64), np.array(sorted(special), np.int64))
    return TokenFacts(encode, tokenizer.bos_token_id if adds_bos else None, ordinary)
