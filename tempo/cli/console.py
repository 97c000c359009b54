"""The two streams: results on stdout, everything said meanwhile on stderr."""

import json
import sys
import unicodedata
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

_NAMED = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """Newlines, control, bidirectional and other invisible characters shown, the rest as it is."""
    return "".join(_glyph(character) for character in text)


def _glyph(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character < " ":
        return chr(0x2400 + ord(character))  # Unicode's pictures of control characters
    is_shown = character == " " or not unicodedata.category(character).startswith(("C", "Z"))
    return character if is_shown else f"⟨{ord(character):04X}⟩"


_PIPE_COLUMNS = 200


def results() -> Console:
    """Stdout, as wide as it likes where it is not a terminal."""
    console = _console(stderr=False)
    return console if console.is_terminal else _console(stderr=False, width=_PIPE_COLUMNS)


def notes() -> Console:
    """Stderr."""
    return _console(stderr=True)


def is_terminal() -> bool:
    """Whether somebody looks at stdout."""
    return results().is_terminal


def say(line: str, *, style: str = "") -> None:
    """One line on stderr."""
    notes().print(Text(visible(line), style=style), soft_wrap=True)


def show(*renderables: RenderableType) -> None:
    """Something on stdout; text keeps its own lines."""
    console = results()
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, Text))


def show_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout, in ASCII so that no terminal can spoil it."""
    sys.stdout.write(json.dumps(document, allow_nan=False, indent=1) + "\n")


def busy(doing: str) -> AbstractContextManager[object]:
    """A spinner on stderr where that is a terminal, nothing elsewhere."""
    return notes().status(Text(visible(doing)), spinner="dots")


def _console(*, stderr: bool, width: int | None = None) -> Console:
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
