"""Makes every character of generated text visible on one line, control characters included."""

import unicodedata
from collections.abc import Callable

# Long enough for nearly all tokens, short enough for a column of a table.
LONGEST_TOKEN = 12
LONGEST_LINE = 400
EMPTY = "\u2205"
_NAMED = {"\n": "\u21b5", "\t": "\u21e5"}  # return arrow, tab arrow
_OPEN_BOX = "\u2423"
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters, marks and symbols without a visible shape, which Unicode does not class as spaces."""

Drawable = Callable[[str], bool]
"""Whether a font can draw a character that is neither a control nor a space."""


def is_hidden(character: str) -> bool:
    """Whether a character cannot be seen or changes how others are: controls, bidi, odd spaces."""
    # U+FE00 to U+FE0F select variants of the character before; they have no shape.
    if character in _BLANK or "\ufe00" <= character <= "\ufe0f":
        return True
    return character != " " and unicodedata.category(character).startswith(("C", "Z"))


def is_mark(character: str) -> bool:
    """Whether a character is drawn onto the one before it."""
    return unicodedata.category(character).startswith("M")


def escaped(character: str) -> str:
    r"""A character by its number, as ``\x07``, ``\u202e`` or ``\U000e0001``."""
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def token_glyphs(
    text: str, *, longest: int = LONGEST_TOKEN, drawable: Drawable | None = None
) -> str:
    """A token on one line: spaces, newlines and tabs as signs, invisible characters escaped.

    A mark that nothing carries is escaped as well. What does not fit ends in an ellipsis.
    """
    # One more than fits, so that a cut is seen; the rest of a long text is not looked at.
    shown = [_glyph(character, drawable) for character in text[: longest + 1]]
    shown = [_OPEN_BOX if glyph == " " else glyph for glyph in shown]
    # A mark is drawn onto the character before it, which would be a neighbour in the table.
    if text and is_mark(text[0]):
        shown[0] = escaped(text[0])
    return _cut(shown, longest) or EMPTY


def line_glyphs(text: str, *, longest: int = LONGEST_LINE) -> str:
    """A longer text on one line: its spaces stay as they are, the rest as in a token."""
    return _cut([_glyph(character, None) for character in text[: longest + 1]], longest)


def line_end(text: str, *, longest: int = LONGEST_LINE, drawable: Drawable | None = None) -> str:
    """As `line_glyphs`, but a long text keeps its end instead of its start."""
    # Reversed twice, so that the same cut takes from the front; glyphs of several characters
    # are reversed too, to come out readable.
    shown = [_glyph(character, drawable) for character in text[-longest - 1 :]]
    return _cut([glyph[::-1] for glyph in reversed(shown)], longest)[::-1]


def _glyph(character: str, drawable: Drawable | None) -> str:
    shown = _NAMED.get(character, character)
    if is_hidden(shown):
        return escaped(character)
    can_draw = drawable is None or shown == " " or drawable(shown)
    return shown if can_draw else escaped(character)


def _cut(glyphs: list[str], longest: int) -> str:
    """As many complete glyphs as fit."""
    whole = "".join(glyphs)
    if len(whole) <= longest:
        return whole
    kept = ""
    for glyph in glyphs:
        # Whole glyphs only: half an escape would name another character. One place for the
        # ellipsis.
        if len(kept) + len(glyph) > longest - 1:
            break
        kept += glyph
    return f"{kept}\u2026"
