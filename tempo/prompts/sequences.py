"""Token sequences for the census of heads: text, random ids and repeated halves.

Every draw is keyed by a seed. Sequences of one kind have one length, so they need no padding. They
begin with the bos token where the tokenizer itself would put it: without one, the first text token
becomes the attention sink.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from tempo.errors import InputError
from tempo.prompts.tokens import TokenFacts

N_SEQUENCES = 64
LENGTH = 128
# With and without line breaks: many tokenizers merge a mark with the newline after it.
DELIMITERS = (".", ",", ";", ":", "!", "?", "\n", ".\n", ".\n\n", ",\n", ";\n")

Sequences = Int64[np.ndarray, "sequence token"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text from which windows are drawn.

    Attributes:
        source: Its name in results.
        sha256: Hash of the text, to check that two runs read the same one.
    """

    text: str
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class TextWindows:
    """Pieces of a corpus that do not overlap, in the order drawn.

    Attributes:
        bos: Token in front of every window; None where the tokenizer adds none.
        start: Index in the corpus of the first text token of each window.
        n_corpus: Tokens in the corpus.
    """

    ids: Sequences
    bos: int | None
    start: Int64[np.ndarray, " sequence"]
    n_corpus: int
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class RandomSequences:
    """Ordinary token ids, drawn independently from the uniform distribution."""

    ids: Sequences
    bos: int | None


@dataclass(frozen=True, slots=True, eq=False)
class RepeatedHalves:
    """`[R, R]`, and a control `[R, R']` of the same length in which nothing repeats.

    R and R' are drawn without replacement and share no token, so every token of the second half has
    exactly one earlier occurrence in `[R, R]` and none in the control.

    Attributes:
        start: Index of the first token of R: 1 after a bos token, otherwise 0.
        n_half: Length of R.
    """

    ids: Sequences
    control: Sequences
    bos: int | None
    start: int
    n_half: int


@dataclass(frozen=True, slots=True)
class Delimiters:
    """Punctuation marks that are one token inside a text.

    Attributes:
        ids: Their tokens, ascending.
        kept: The marks found.
        vanished: The marks that take more tokens, or none of their own.
    """

    ids: tuple[int, ...]
    kept: tuple[str, ...]
    vanished: tuple[str, ...]


def bundled_corpus() -> Corpus:
    """The topics of Python's help: technical English prose that every installation has."""
    from pydoc_data import topics

    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    # Sorted, so that the text does not depend on the order in which the module lists its topics.
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    return _corpus(text, f"pydoc_data.topics of {version}")


def corpus_file(path: str | Path) -> Corpus:
    """The text of a user's file.

    Raises:
        InputError: The file is not there, or not UTF-8 text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"expected a text file, got {str(path)!r}: {error.strerror}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in {path}, got {error}; convert it") from None
    return _corpus(text, Path(path).name)


def corpus_of(texts: Sequence[str]) -> Corpus:
    """A user's own texts, one after another with a blank line between, as the bundled topics are.

    Raises:
        InputError: One text instead of a list, no text, or an empty one.
    """
    if isinstance(texts, str) or not texts or not all(texts):
        got = "one text" if isinstance(texts, str) else f"{len(texts)}, one of them empty"
        raise InputError(
            f"expected a list of texts, none of them empty, got {got if texts else 'nothing'}; "
            "give texts=[...]"
        )
    return _corpus("\n\n".join(texts), f"{len(texts)} text{'s' if len(texts) > 1 else ''}")


def text_windows(
    facts: TokenFacts,
    corpus: Corpus,
    *,
    n: int = N_SEQUENCES,
    length: int = LENGTH,
    seed: int = 0,
) -> TextWindows:
    """Draw windows of a corpus; the bos token, where there is one, counts in their length.

    Raises:
        InputError: The corpus has fewer tokens than the windows need.
    """
    tokens = np.array(facts.encode(corpus.text), np.int64)
    inner = _inner(facts, n, length)
    if len(tokens) < n * inner:
        raise InputError(
            f"expected a corpus of at least {n * inner} tokens for {n} windows of {inner}, got "
            f"{len(tokens)} in {corpus.source}; give a longer text"
        )
    # Windows start at multiples of their length, so that no two overlap.
    pieces = _rng(seed, "text").choice(len(tokens) // inner, n, replace=False).astype(np.int64)
    start = pieces * inner
    ids = _fronted(facts, tokens[start[:, None] + np.arange(inner)])
    return TextWindows(ids, facts.bos, start, len(tokens), corpus.source, corpus.sha256)


def random_sequences(
    facts: TokenFacts, *, n: int = N_SEQUENCES, length: int = LENGTH, seed: int = 0
) -> RandomSequences:
    """Draw ordinary ids independently and evenly; the bos token counts in the length."""
    inner = _inner(facts, n, length)
    # With replacement: as in any text, a token may occur again by chance.
    drawn = _rng(seed, "random").choice(facts.ordinary, (n, inner))
    return RandomSequences(_fronted(facts, drawn), facts.bos)


def repeated_halves(
    facts: TokenFacts, *, n: int = N_SEQUENCES, n_half: int = LENGTH // 2, seed: int = 0
) -> RepeatedHalves:
    """Draw halves of distinct tokens; the bos token does not count in their length.

    Raises:
        InputError: The vocabulary is too small for two halves without a common token.
    """
    _inner(facts, n, n_half + len(facts.front))
    if 2 * n_half > len(facts.ordinary):
        raise InputError(
            f"expected at least {2 * n_half} ordinary tokens for two halves of {n_half}, got "
            f"{len(facts.ordinary)}; take shorter halves"
        )
    rng = _rng(seed, "halves")
    # Both halves in one draw without replacement, so that R and R' share no token.
    both = np.stack([rng.choice(facts.ordinary, 2 * n_half, replace=False) for _ in range(n)])
    first = both[:, :n_half]
    repeated = np.concatenate([first, first], axis=1)
    return RepeatedHalves(
        ids=_fronted(facts, repeated),
        control=_fronted(facts, both),
        bos=facts.bos,
        start=len(facts.front),
        n_half=n_half,
    )


def delimiters(facts: TokenFacts) -> Delimiters:
    """The punctuation marks that are one token, and those that the tokenizer does not keep.

    Raises:
        InputError: None is one token.
    """
    found = {mark: facts.single(mark) for mark in DELIMITERS}
    kept = {mark: token for mark, token in found.items() if token is not None}
    if not kept:
        raise InputError(
            f"expected a punctuation mark that is one token, got none of {len(DELIMITERS)}; "
            "leave out the delimiter role"
        )
    vanished = tuple(mark for mark in DELIMITERS if mark not in kept)
    return Delimiters(tuple(sorted(set(kept.values()))), tuple(kept), vanished)


def _corpus(text: str, source: str) -> Corpus:
    return Corpus(text, source, hashlib.sha256(text.encode()).hexdigest())


def _inner(facts: TokenFacts, n: int, length: int) -> int:
    """Number of tokens of a sequence after the bos token."""
    inner = length - len(facts.front)
    if n < 1 or inner < 2:
        raise InputError(
            f"expected at least 1 sequence of 2 tokens, got {n} of {inner}; ask for more"
        )
    return inner


def _fronted(facts: TokenFacts, ids: Int64[np.ndarray, "sequence inner"]) -> Sequences:
    front = np.tile(np.array(facts.front, np.int64), (len(ids), 1))
    return np.concatenate([front, ids], axis=1)


def _rng(seed: int, kind: str) -> np.random.Generator:
    """A separate generator for each kind, so that drawing more of one kind changes no other."""
    return np.random.default_rng([seed, *kind.encode()])
