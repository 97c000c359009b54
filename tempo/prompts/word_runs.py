"""Runs of ordered words for successor heads, with three controls of the same shape.

A run is `word, word, word`. The ordinal run counts up. Its controls have the same number of
elements and the same commas: unrelated words; the same elements in a fixed order in which none
follows its predecessor ("same class" without "successor"); the same elements counting down.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from tempo.errors import InputError
from tempo.prompts.tokens import TokenFacts

CONDITIONS = ("ordinal", "words", "shuffled", "descending")
# Three elements show the order once before it must be continued; twelve are all months.
SHORTEST, LONGEST = 3, 12

_NUMBERS = "one two three four five six seven eight nine ten"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MONTHS = "January February March April May June July August September October November December"
WORD_FAMILIES: dict[str, tuple[str, ...]] = {
    "digits": tuple(string.digits),
    "letters": tuple(string.ascii_uppercase),
    "number words": tuple(_NUMBERS.split()),
    "weekdays": tuple(_DAYS.split()),
    "months": tuple(_MONTHS.split()),
}
_WORDS = (
    "cat dog sun map red box cup hat pen bag car sea sky ice oil egg arm leg key bed cow pig fox "
    "tea pie mud wet old bus toy"
)
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True, slots=True)
class Family:
    """An ordered class of words, limited to those that are one token.

    Attributes:
        tokens: Tokens of the kept elements, in order.
        kept: Elements that are one token after a space.
        vanished: All other elements; they are left out.
        is_used: Whether enough elements that follow one another are kept for a run.
        successions: Pairs of places in `tokens` of which the second follows the first.
    """

    name: str
    tokens: tuple[int, ...]
    kept: tuple[str, ...]
    vanished: tuple[str, ...]
    is_used: bool
    successions: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        total = len(self.kept) + len(self.vanished)
        lost = f", lost {' '.join(self.vanished)}" if self.vanished else ""
        return f"{self.name}: {len(self.kept)} of {total} kept{lost}" + (
            "" if self.is_used else f"; not used, fewer than {SHORTEST} in a row"
        )


@dataclass(frozen=True, slots=True, eq=False)
class WordRun:
    """One prompt.

    Attributes:
        elements: Places of the elements in `ids`, in the order written.
        family: Family of the elements; "words" for unrelated ones.
        number: Number of the draw: the same in its four conditions, which have one length.
    """

    ids: Int64[np.ndarray, " token"]
    elements: Int64[np.ndarray, " element"]
    condition: str
    family: str
    number: int


@dataclass(frozen=True, slots=True, eq=False)
class WordRuns:
    """Runs of all conditions, and the words that the tokenizer keeps.

    Attributes:
        runs: By condition; entry i of each condition has the length of entry i of the others.
        families: Report on every family, used or not.
        words: The unrelated words that were kept.
        lost_words: Those that were not.
    """

    runs: Mapping[str, tuple[WordRun, ...]]
    families: tuple[Family, ...]
    words: tuple[str, ...]
    lost_words: tuple[str, ...]
    bos: int | None


def families(facts: TokenFacts) -> tuple[Family, ...]:
    """The elements of each family that are one token."""
    found: list[Family] = []
    for name, members in WORD_FAMILIES.items():
        tokens, vanished = facts.kept(members)
        kept = tuple(tokens)
        is_used = bool(_stretches(name, kept))
        follows = [members.index(two) - members.index(one) == 1 for one, two in pairwise(kept)]
        pairs = tuple((place, place + 1) for place, is_next in enumerate(follows) if is_next)
        found.append(Family(name, tuple(tokens.values()), kept, vanished, is_used, pairs))
    return tuple(found)


def word_runs(facts: TokenFacts, *, n: int = 64, seed: int = 0) -> WordRuns:
    """Draw n runs in each condition; the families take turns.

    Raises:
        InputError: No family is left, or too few words, or the comma is not one token.
    """
    found = families(facts)
    used = [family for family in found if family.is_used]
    words, lost = facts.kept(WORDS)
    comma = facts.single(",")
    if not used or len(words) < SHORTEST or comma is None:
        report = "; ".join(str(family) for family in found)
        raise InputError(
            f"expected a family of {SHORTEST} single-token words in a row, {SHORTEST} unrelated "
            f"words and a comma of one token, got {report}; {len(words)} words; "
            f"{'a' if comma is not None else 'no'} comma; leave out the successor role"
        )
    rng = np.random.default_rng([seed, *b"runs"])
    runs: dict[str, list[WordRun]] = {condition: [] for condition in CONDITIONS}
    for number in range(n):
        family = used[number % len(used)]
        up = _stretch(family, rng, longest=min(LONGEST, len(words)))
        # As many words as elements: heads that count commas or positions see no difference.
        unrelated = rng.choice(list(words.values()), len(up), replace=False).tolist()
        orders = {
            "ordinal": up,
            "words": unrelated,
            "shuffled": _mixed(up, family),
            "descending": up[::-1],
        }
        for condition, tokens in orders.items():
            name = "words" if condition == "words" else family.name
            ids, places = _joined(facts, tokens, comma)
            runs[condition].append(WordRun(ids, places, condition, name, number))
    kept = {condition: tuple(each) for condition, each in runs.items()}
    return WordRuns(kept, found, tuple(words), lost, facts.bos)


def _stretches(name: str, kept: tuple[str, ...]) -> list[tuple[int, int]]:
    """First and last place among the kept of every unbroken stretch that is long enough.

    A vanished element breaks a run: its neighbours do not follow one another.
    """
    ranks = [WORD_FAMILIES[name].index(element) for element in kept]
    breaks = [place for place in range(1, len(ranks)) if ranks[place] != ranks[place - 1] + 1]
    edges = [0, *breaks, len(ranks)]
    return [(first, end) for first, end in pairwise(edges) if end - first >= SHORTEST]


def _stretch(family: Family, rng: np.random.Generator, *, longest: int) -> list[int]:
    """A random run of neighbours; its length is drawn before its start."""
    spans = _stretches(family.name, family.kept)
    # The stretch, then the length, then the start: every length is equally likely where it fits.
    first, end = spans[int(rng.integers(len(spans)))]
    length = int(rng.integers(SHORTEST, min(longest, end - first) + 1))
    start = int(rng.integers(first, end - length + 1))
    return list(family.tokens[start : start + length])


def _mixed(run: list[int], family: Family) -> list[int]:
    """The elements at even places of the family, then the others: none after its predecessor.

    The wrong order is the same in every run, as the right one is. A new random order in each run
    would average out the preference of a head for single pairs, which the score itself contains.
    """
    place = {token: number for number, token in enumerate(family.tokens)}
    return sorted(run, key=lambda token: (place[token] % 2, place[token]))


def _joined(
    facts: TokenFacts, tokens: list[int], comma: int
) -> tuple[Int64[np.ndarray, " token"], Int64[np.ndarray, " element"]]:
    """The tokens with commas between them, and their indices."""
    ids = list(facts.front)
    places: list[int] = []
    for token in tokens:
        # A comma before every element but the first.
        ids += [comma] * bool(places)
        places.append(len(ids))
        ids.append(token)
    return np.array(ids, np.int64), np.array(places, np.int64)
