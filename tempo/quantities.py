"""Sizes and lists of numbers as a user writes them."""

import re

from tempo.errors import InputError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """Read a size such as ``2GB`` or ``500 MB``; decimal units.

    Raises:
        InputError: Not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"expected a size such as 2GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def parse_numbers(text: str | None, count: int, *, what: str) -> tuple[int, ...]:
    """Read ``0,3,10-14``; all `count` numbers where None..

    Raises:
        InputError: Not such a list, or a number out of range.
    """
    if text is None:
        return tuple(range(count))
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise InputError(f"expected {what} such as 0,3,10-14, got {text!r}")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not numbers or max(numbers) >= count:
        raise InputError(f"expected {what} from 0 to {count - 1}, got {text!r}")
    return tuple(sorted(numbers))
