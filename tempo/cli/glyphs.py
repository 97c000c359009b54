"""Makes every character of a model's text visible on one line of a terminal."""

import unicodedata

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
