"""Words and numbers that every room uses with one meaning.

A *slot* is one entry of the KV cache, numbered in the order written. A *position* is the number
that RoPE sees, a float. A *step* is one forward pass; step 0 reads the prompt.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tempo.errors import InputError

PROMPT_STEP = 0
NEVER_DIED = -1
SINK_SLOT = 0

LEVELS = ("weights", "qk", "reduced")
TOP_READOUT = 256
RECENT_WINDOW = 8.0
"""A slot at most this many positions behind the query counts as recent."""

GROUPS = (
    "sink",
    "recent_prompt",
    "other_prompt",
    "earlier_sets",
    "earlier_singletons",
    "siblings",
    "self",
)
"""Disjoint groups of slots, seen from one query; every visible slot is in exactly one."""


class Head(NamedTuple):
    """One query head, both numbers from 0; prints as ``L3H5``."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


_HEAD = re.compile(
    r"\s*(?:L(\d+)H(\d+)|A?(\d+)\.(\d+)|\(\s*(\d+)\s*,\s*(\d+)\s*\))\s*", re.IGNORECASE
)


HeadName = str | Head | tuple[int, int]
"""A head as a user writes it: `"L3H5"`, or its two numbers."""


def head_of(name: HeadName) -> Head:
    """A head by its label or its numbers.

    Raises:
        InputError: A label of no known form.
    """
    return parse_head(name) if isinstance(name, str) else Head(*name)


def parse_head(text: str) -> Head:
    """Read ``L3H5``, ``3.5``, ``A3.5`` or ``(3, 5)``.

    Raises:
        InputError: The text has none of these forms.
    """
    match = _HEAD.fullmatch(text)
    if match is None:
        raise InputError(f"expected a head such as L3H5, 3.5 or (3, 5), got {text!r}")
    layer, head = (int(number) for number in match.groups() if number is not None)
    return Head(layer, head)


OnProgress = Callable[[str], object]
"""Called with a short text before each stage of a long call; what it returns is ignored."""


def silent(_: str) -> None:
    """The `on_progress` of a call that reports nothing."""


def parse_numbers(text: str, *, what: str) -> tuple[int, ...]:
    """Read ``0,3,10-14``, ascending and each once.

    Args:
        what: What is numbered, for the message.

    Raises:
        InputError: Not such a list.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise InputError(f"expected {what} such as 0,3,10-14, got {text!r}")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not numbers:
        raise InputError(f"expected {what} such as 0,3,10-14, got {text!r}")
    return tuple(sorted(numbers))


def spell_numbers(numbers: Iterable[int]) -> str:
    """Write numbers as `parse_numbers` reads them, three or more in a row as ``10-14``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs
    )
