"""Needle prompts: a sentence hidden in a text and a question about it, for retrieval heads.

The answer follows the question, so one forward shows the attention of each head while the answer
is predicted. The question is worded differently from the needle up to where the answer begins.
Wu et al. 2024 (arXiv 2404.15574) decode greedily instead; `answered` rows are the same rows where
the model's own choices agree, which the caller checks against its logits.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from tempo.errors import InputError
from tempo.prompts.sequences import Corpus
from tempo.prompts.tokens import TokenFacts

# The sentence in the text, the question, and the answer that both end with. The question is worded
# otherwise than the sentence, so that copying what stands before the answer does not lead to it.
NEEDLES = (
    (
        "The caretaker keeps the spare key in the third green pot beside the old pump.",
        "Question: Where is the spare key? Answer: It is in the",
        " third green pot beside the old pump",
    ),
    (
        "Our ferry to the island leaves from the small wooden pier behind the fish market.",
        "Question: Where does the ferry to the island start? Answer: It starts from the",
        " small wooden pier behind the fish market",
    ),
    (
        "My grandmother hides her best cookies inside a blue tin on the kitchen shelf.",
        "Question: Where are the best cookies hidden? Answer: They are inside a",
        " blue tin on the kitchen shelf",
    ),
    (
        "The winner of the garden contest received a silver watering can and two young trees.",
        "Question: What was the prize of the garden contest? Answer: The prize was a",
        " silver watering can and two young trees",
    ),
)


@dataclass(frozen=True, slots=True, eq=False)
class NeedlePrompt:
    """One text with its needle, the question and the answer.

    Attributes:
        needle: Indices of the answer inside the needle, first to last.
        answered: Query rows that predict the tokens of the answer, one for each token.
        answer: The tokens of the answer; those at `needle` are the same.
        depth: Position of the needle in the text, from 0 (start) to 1 (end).
        number: Index of the needle in NEEDLES.
    """

    ids: Int64[np.ndarray, " token"]
    needle: Int64[np.ndarray, " answer"]
    answered: Int64[np.ndarray, " answer"]
    answer: Int64[np.ndarray, " answer"]
    depth: float
    number: int


def needle_prompts(
    facts: TokenFacts, corpus: Corpus, *, n: int = 16, n_text: int = 160, seed: int = 0
) -> tuple[NeedlePrompt, ...]:
    """Hide needles in turn in pieces of a corpus, at depths drawn evenly.

    Args:
        n_text: Tokens of the corpus in each prompt.

    Raises:
        InputError: The corpus is too short, or a needle does not hold its answer in these tokens.
    """
    tokens = np.array(facts.encode(corpus.text), np.int64)
    if len(tokens) < n * n_text:
        raise InputError(
            f"expected a corpus of at least {n * n_text} tokens for {n} texts of {n_text}, got "
            f"{len(tokens)} in {corpus.source}; give a longer text"
        )
    rng = np.random.default_rng([seed, *b"needles"])
    # Without replacement: overlapping texts would not be independent prompts.
    pieces = rng.choice(len(tokens) // n_text, n, replace=False)
    return tuple(
        _hidden(
            facts,
            tokens[piece * n_text : (piece + 1) * n_text],
            # Not at the ends: next to the sink or to the question a head needs no retrieval.
            depth=float(rng.uniform(0.1, 0.9)),
            number=order % len(NEEDLES),
        )
        for order, piece in enumerate(pieces.tolist())
    )


def _hidden(
    facts: TokenFacts, text: Int64[np.ndarray, " token"], *, depth: float, number: int
) -> NeedlePrompt:
    sentence, question, reply = NEEDLES[number]
    needle, asked, answer = (
        np.array(facts.after_text(part), np.int64)
        # A line of its own, so that the needle does not change the tokens of the text around it.
        for part in (f"\n{sentence}\n", f"\n{question}", reply)
    )
    inside = _find(needle, answer)
    if inside is None:
        raise InputError(
            f"expected the answer {reply!r} token by token inside its needle, got other tokens; "
            "leave out the retrieval role"
        )
    cut = round(depth * len(text))
    front = np.array(facts.front, np.int64)
    parts = (front, text[:cut], needle, text[cut:], asked, answer)
    first = len(front) + cut + inside
    # The row before a token is the one that predicts it.
    due = sum(len(part) for part in parts[:-1]) - 1
    span = np.arange(len(answer), dtype=np.int64)
    return NeedlePrompt(np.concatenate(parts), first + span, due + span, answer, depth, number)


def _find(tokens: Int64[np.ndarray, " token"], part: Int64[np.ndarray, " answer"]) -> int | None:
    """Index at which a sequence of tokens begins in a longer one; None if it does not occur."""
    starts = range(len(tokens) - len(part) + 1)
    # The first occurrence: the sentence holds its answer once, at its end.
    found = [start for start in starts if (tokens[start : start + len(part)] == part).all()]
    return found[0] if found else None
