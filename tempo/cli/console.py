"""The two output streams: results on stdout, progress and messages on stderr.

So stdout can be piped or parsed while progress is shown.
"""

import json
import sys
import unicodedata
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

# The three that occur in texts get a sign of their own; all others their code point.
_NAMED = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """Text with newlines, control, bidirectional and other invisible characters made visible."""
    return "".join(_glyph(character) for character in text)


def _glyph(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character < " ":
        return chr(0x2400 + ord(character))  # Unicode's pictures of control characters
    # Categories C (control, format, unassigned) and Z (separators): a model can generate a
    # bidirectional override, which would reorder the rest of the line.
    is_shown = character == " " or not unicodedata.category(character).startswith(("C", "Z"))
    return character if is_shown else f"⟨{ord(character):04X}⟩"


# rich assumes 80 columns where there is no terminal and would cut tables in a pipe.
_PIPE_COLUMNS = 200


def results() -> Console:
    """Stdout; `_PIPE_COLUMNS` wide where it is not a terminal."""
    console = _console(stderr=False)
    return console if console.is_terminal else _console(stderr=False, width=_PIPE_COLUMNS)


def notes() -> Console:
    """Stderr."""
    return _console(stderr=True)


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return results().is_terminal


def say(line: str, *, style: str = "") -> None:
    """One line on stderr."""
    notes().print(Text(visible(line), style=style), soft_wrap=True)


def show(*renderables: RenderableType) -> None:
    """Print on stdout; text is not wrapped."""
    console = results()
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, Text))


def show_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document on stdout, in ASCII, which every terminal encoding has."""
    # NaN is not JSON: a document that contains one must fail here, not in the reader.
    sys.stdout.write(json.dumps(document, allow_nan=False, indent=1) + "\n")


def busy(doing: str) -> AbstractContextManager[object]:
    """A spinner on stderr where that is a terminal, nothing elsewhere."""
    return notes().status(Text(visible(doing)), spinner="dots")


def _console(*, stderr: bool, width: int | None = None) -> Console:
    # Generated text may contain [bold] or :smile:; neither is markup of ours.
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
