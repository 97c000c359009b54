"""Prompts with two names, one of them repeated, for S-inhibition heads.

The indirect object (IO) is named once, the subject (S) twice. ABBA names IO first and then S, BABA
the other way round; both end where IO comes next. In the control ABC the second S is a third name,
so the text does not determine which of the first two comes next (Wang et al. 2022, arXiv
2211.00593).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from tempo.errors import InputError
from tempo.prompts.tokens import TokenFacts

_NAMES = (
    "Mary John Anna Peter Laura David Emma James Sarah Mark Kate Paul Lucy Tom Alice Jack Jane "
    "Robert Helen George Rose Simon Grace Henry Julia Frank Susan Adam Maria Daniel"
)
NAMES = tuple(_NAMES.split())
TEMPLATES = (
    "When{first} and{second} walked to the garden,{again} handed a flower to",
    "After{first} and{second} left the library,{again} lent a book to",
    "While{first} and{second} waited at the station,{again} gave the ticket to",
)
ORDERS = ("ABBA", "BABA")
FEWEST_NAMES = 3


@dataclass(frozen=True, slots=True, eq=False)
class NamePrompt:
    """One prompt; places are indices into `ids`.

    Attributes:
        order: "ABBA" or "BABA".
        io: Place of the indirect object.
        s: Place of the first subject.
        s2: Place of the second subject; of the third name in the control.
        end: Last place, whose logits choose the next name.
        io_token: Token of the indirect object.
        s_token: Token of the first subject.
        is_control: Whether the second subject is a third name (ABC).
        number: Same in a prompt and its control.
    """

    ids: Int64[np.ndarray, " token"]
    order: str
    io: int
    s: int
    s2: int
    end: int
    io_token: int
    s_token: int
    is_control: bool
    number: int


@dataclass(frozen=True, slots=True)
class NamePrompts:
    """Prompts, the control of each, and the names a tokenizer keeps.

    Attributes:
        names: Candidates that are one token, with it.
        vanished: Candidates that are not.
    """

    prompts: tuple[NamePrompt, ...]
    controls: tuple[NamePrompt, ...]
    names: dict[str, int]
    vanished: tuple[str, ...]


def name_prompts(facts: TokenFacts, *, n: int = 64, seed: int = 0) -> NamePrompts:
    """Draw names for n prompts; templates and orders take turns.

    Raises:
        InputError: Fewer than three names are one token, or a name is split inside a text.
    """
    names, vanished = facts.kept(NAMES)
    if len(names) < FEWEST_NAMES:
        raise InputError(
            f"expected at least {FEWEST_NAMES} names of one token, got {len(names)} of "
            f"{len(NAMES)}; leave out the S-inhibition role"
        )
    # The kind is part of the seed, so that drawing more prompts of another kind changes nothing
    # here.
    rng = np.random.default_rng([seed, *b"names"])
    prompts: list[NamePrompt] = []
    controls: list[NamePrompt] = []
    for number in range(n):
        io, s, third = (str(name) for name in rng.choice(list(names), 3, replace=False))
        # The order alternates fastest: any even number of prompts has as many ABBA as BABA.
        template = TEMPLATES[number // len(ORDERS) % len(TEMPLATES)]
        order = ORDERS[number % len(ORDERS)]
        first, second = (io, s) if order == "ABBA" else (s, io)
        # Prompt and control have the same names, template and order: only the repeated name
        # differs.
        for again, into in ((s, prompts), (third, controls)):
            text = template.format(first=f" {first}", second=f" {second}", again=f" {again}")
            # The bos token is put in front by hand, since `encode` adds no special tokens.
            ids = np.array([*facts.front, *facts.encode(text)], np.int64)
            places = _places(ids, [names[io], names[s], names[again]], text)
            into.append(_prompt(ids, places, order=order, is_control=again != s, number=number))
    return NamePrompts(tuple(prompts), tuple(controls), names, vanished)


def _places(ids: Int64[np.ndarray, " token"], tokens: list[int], text: str) -> list[int]:
    """Indices of the indirect object, the first and the second subject."""
    io, s, again = tokens
    at_io, at_s, at_again = (np.flatnonzero(ids == token) for token in (io, s, again))
    wanted = 2 if s == again else 1  # in the control ABC the repeated name is a third one
    if len(at_io) != 1 or len(at_s) != wanted or len(at_again) != wanted:
        raise InputError(
            f"expected each name of {text!r} as one token, got IO {len(at_io)} times, S "
            f"{len(at_s)} times; leave out the S-inhibition role"
        )
    # The last one: S occurs twice in a prompt, and the second is the repeated one.
    return [int(at_io[0]), int(at_s[0]), int(at_again[-1])]


def _prompt(
    ids: Int64[np.ndarray, " token"],
    places: list[int],
    *,
    order: str,
    is_control: bool,
    number: int,
) -> NamePrompt:
    io, s, s2 = places
    return NamePrompt(
        ids=ids,
        order=order,
        io=io,
        s=s,
        s2=s2,
        end=len(ids) - 1,
        io_token=int(ids[io]),
        s_token=int(ids[s]),
        is_control=is_control,
        number=number,
    )
