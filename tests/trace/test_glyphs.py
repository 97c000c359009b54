import pytest

from tempo.trace.glyphs import is_hidden, line_end, line_glyphs, token_glyphs


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" cat", "␣cat"),
        ("a b", "a␣b"),
        ("\n\t", "↵⇥"),
        ("\x07\x1b[2J", "\\x07\\x1b[2J"),
        ("\u202eabc", "\\u202eabc"),
        ("a\u200bb", "a\\u200bb"),
        ("\u00a0", "\\xa0"),
        ("\U000e0041", "\\U000e0041"),
        ("\u3164", "\\u3164"),
        ("\u0301x", "\\u0301x"),
        ("e\u0301", "e\u0301"),
        ("\u4e2d\u6587", "\u4e2d\u6587"),
        ("", "∅"),
        ("<script>", "<script>"),
    ],
)
def test_a_token_is_on_one_line_and_hides_nothing(text: str, shown: str):
    assert token_glyphs(text) == shown


def test_no_character_is_hidden_once_shown():
    numbers = [*range(0xD800), *range(0xE000, 0x10000), *range(0xE0000, 0xE0200)]
    shown = token_glyphs("".join(map(chr, numbers)), longest=10**6)
    assert len(shown) > len(numbers)
    assert not any(is_hidden(character) for character in set(shown))
    assert " " not in shown


@pytest.mark.parametrize("longest", [3, 6, 9])
@pytest.mark.parametrize("text", ["extraordinarily", "\u202e" * 9, "ab\u202ecd", "a" * 100_000])
def test_what_does_not_fit_ends_in_an_ellipsis_and_no_escape_is_cut(text: str, longest: int):
    shown = token_glyphs(text, longest=longest)
    assert len(shown) <= longest
    assert shown.endswith("…")
    assert (
        shown[:-1].replace("\\u202e", "\u202e") == text[: len(shown[:-1].replace("\\u202e", "x"))]
    )


def test_a_token_that_just_fits_is_left_whole():
    assert token_glyphs("a" * 12) == "a" * 12
    assert token_glyphs("a" * 13) == "a" * 11 + "…"


def test_what_cannot_be_drawn_is_escaped():
    assert token_glyphs("a\u4e2d", drawable=str.isascii) == "a\\u4e2d"


def test_a_line_keeps_its_spaces():
    assert line_glyphs("the cat\nsat\u202e on") == "the cat↵sat\\u202e on"
    assert line_glyphs("the cat sat", longest=8) == "the cat…"


def test_the_end_of_a_line_can_be_what_is_kept():
    assert line_end("the cat sat") == "the cat sat"
    assert line_end("the cat sat", longest=8) == "…cat sat"
    assert line_end("ab\u202ecd", longest=9) == "…\\u202ecd"
