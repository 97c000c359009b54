import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tempo.testing.planted import planted_run, planted_trace
from tempo.trace.glyphs import line_glyphs
from tempo.trace.notebook import (
    MOST_MEMBERS,
    MOST_PROMPTS,
    MOST_STEPS,
    luminance,
    probability_style,
    trace_markup,
)
from tempo.trace.run import Prompt, Run

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202eright to left",
    "\u200b",
    "' onmouseover='x",
    "&lt;b&gt;",
    "</td></table>",
    "javascript:x",
)
EMPTY_ELEMENTS = {"br"}


class Page(HTMLParser):
    """Elements, attributes and text of a fragment, and whether every element is closed."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(markup)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY_ELEMENTS:
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.opened[-1], data))

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.texts)

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


def hostile_trace(**plan):
    n = plan.pop("prompt_length", 8) + sum(plan.setdefault("widths", (8, 1)))
    tokens = [number % len(HOSTILE) for number in range(n)]
    return planted_trace(
        words=dict(enumerate(HOSTILE)), tokens=tokens, prompt_length=n - sum(plan["widths"]), **plan
    )


def assert_is_inert(page: Page) -> None:
    allowed = {"div", "p", "b", "span", "bdi", "table", "thead", "tbody", "tr", "th", "td", "s"}
    assert {tag for tag, _ in page.elements} <= allowed | EMPTY_ELEMENTS
    names = {name for _, attributes in page.elements for name in attributes}
    assert names <= {"style", "title", "scope", "role", "tabindex", "aria-label", "dir"}
    styles = "".join(attributes.get("style") or "" for _, attributes in page.elements)
    assert "url(" not in styles
    assert "@" not in styles


def test_hostile_tokens_are_shown_as_text():
    markup = hostile_trace()._repr_html_()
    page = Page(markup)
    assert_is_inert(page)
    assert "<script>alert(1)</script>" in page.text
    assert "\\u202eright to left" in page.text
    assert "\\u200b" in page.of("bdi")
    assert not any(character in markup for character in "\u202e\u200b")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_text(name: str):
    trace = planted_trace(prompt_id=name, arm=name)
    run = Run((Prompt(name, ""),), (name,), {}, {(name, name): trace})
    for page in (Page(trace._repr_html_()), Page(run._repr_html_())):
        assert_is_inert(page)
        assert line_glyphs(name) in page.text
    region = Page(trace._repr_html_()).elements[0][1]
    assert region["aria-label"] == f"Trace {line_glyphs(name)}, {line_glyphs(name)}"


def test_every_member_stands_in_the_column_of_its_step_and_the_row_of_its_rank():
    trace = planted_trace(widths=(2, 1, 3))
    rows = re.findall(r"<tr.*?</tr>", trace._repr_html_())
    cells = [[Page(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]
    assert cells[0] == ["rank", "step 1", "step 2", "step 3"]
    for rank in range(3):
        assert cells[rank + 1][0] == str(rank)
        for step in (1, 2, 3):
            members = trace.members(step)
            shown = cells[rank + 1][step]
            if rank >= len(members):
                assert shown == ""
                continue
            slot = int(members[rank])
            token = trace.token_text(slot).replace(" ", "␣")
            assert shown == f"{token}{trace.slots.probability[slot]:.2f}"


def test_a_pruned_member_is_struck_and_says_when_it_died():
    trace = planted_trace(widths=(2, 1))
    alive = Page(trace._repr_html_())
    word = trace.token_text(6).strip()
    markup = trace_markup(trace.header, trace.slots.mark_pruned([6], 2))
    dead = Page(markup)
    assert "s" not in {tag for tag, _ in alive.elements}
    assert "pruned" not in alive.text
    titles = [str(one["title"]) for tag, one in dead.elements if tag == "td" and "title" in one]
    assert [": slot 6" in title for title in titles] == ["pruned after step 2" in t for t in titles]
    assert [tag for tag, _ in dead.elements].count("s") == 1
    assert re.search(r"<s>(.*?)</s>", markup)[1] == f'<bdi dir="ltr">\u2423{word}</bdi>'
    assert "1 pruned" in dead.text


def test_slot_0_is_the_one_that_is_marked():
    trace = planted_trace()
    page = Page(trace._repr_html_())
    marked = [one for tag, one in page.elements if tag == "bdi" and "title" in one]
    assert len(marked) == 1
    assert "outline" in str(marked[0]["style"])
    tokens = [
        trace.token_text(slot).replace(" ", "\u2423" if slot == 0 else " ") for slot in range(5)
    ]
    assert page.of("bdi")[:5] == tokens
    assert next(one for tag, one in page.elements if tag == "bdi") == marked[0]


def test_the_facts_are_those_of_the_trace():
    text = Page(planted_trace(widths=(2, 1, 3), n_layers=3)._repr_html_()).text
    assert "p0000, isolated: 3 sets, the widest of 3; 11 slots; 3 layers x 2 heads" in text


def test_a_trace_without_sets_says_so():
    trace = planted_trace(widths=())
    page = Page(trace._repr_html_())
    assert_is_inert(page)
    assert "No set was written." in page.text
    assert "table" not in {tag for tag, _ in page.elements}


def test_a_trace_of_which_nothing_was_written_is_shown():
    trace = planted_trace()
    unwritten = replace(trace, header=replace(trace.header, last_step=-1))
    assert len(unwritten.slots) == 0
    assert "0 sets; 0 slots" in Page(unwritten._repr_html_()).text
    assert "0 steps" in repr(unwritten)


def test_members_without_a_probability_have_a_dash_and_grey():
    trace = planted_trace(widths=(1,))
    slots = replace(trace.slots, probability=np.full(len(trace.slots), np.nan, np.float32))
    markup = trace_markup(trace.header, slots)
    assert "–" in Page(markup).text
    assert "nan" not in markup
    assert probability_style(float("nan")).background in markup


def test_what_is_long_is_cut_and_counted():
    trace = hostile_trace(widths=(20, *(1,) * 200), prompt_length=3000)
    markup = trace._repr_html_()
    page = Page(markup)
    assert len(markup) < 100_000
    assert f"{201 - MOST_STEPS} later steps are not shown." in page.text
    assert f"+{20 - MOST_MEMBERS}" in page.text
    assert "… 2960 slots …" in page.text
    assert len(repr(trace)) < 1000
    assert len(repr(trace).splitlines()) == 2


class Watched(dict):
    """Knows which traces were read."""

    def __init__(self, traces):
        super().__init__(traces)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


def test_of_a_long_run_only_the_first_prompts_are_read_and_the_others_counted():
    plans = {"isolated": {"widths": (6,) * 12}, "greedy": {"widths": (1,), "relation": "greedy"}}
    whole = planted_run(plans, n_prompts=40)
    run = replace(whole, traces=Watched(whole.traces))
    page = Page(run._repr_html_())
    assert_is_inert(page)
    assert "Not shown: 34 more prompts." in page.text
    assert "p0005" in page.text
    assert "p0006" not in page.text
    assert "… 4 more" in page.text
    assert " +2" in page.text
    assert len(repr(run)) < 5000
    assert "and 34 more prompts" in repr(run)
    first = [f"p{number:04d}" for number in range(MOST_PROMPTS)]
    assert run.traces.read == {(prompt, arm) for prompt in first for arm in plans}


def test_an_arm_that_was_not_decoded_says_so():
    run = planted_run(
        {"isolated": {}, "greedy": {"widths": (1,), "relation": "greedy"}}, n_prompts=1
    )
    kept = {key: trace for key, trace in run.traces.items() if key[1] == "isolated"}
    assert "not decoded" in Page(replace(run, traces=kept)._repr_html_()).text


def test_text_on_every_colour_holds_the_contrast_of_wcag_aa():
    for probability in np.linspace(0, 1, 501):
        style = probability_style(float(probability))
        text = 1.0 if style.text == "#fff" else 0.0
        behind = luminance(list(bytes.fromhex(style.background[1:])))
        light, dark = max(text, behind), min(text, behind)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_colours_are_viridis():
    from matplotlib import colormaps

    for probability in np.linspace(0, 1, 101):
        rgb = (
            np.array(list(bytes.fromhex(probability_style(float(probability)).background[1:])))
            / 255
        )
        np.testing.assert_allclose(rgb, colormaps["viridis"](probability)[:3], atol=0.02)


@pytest.mark.parametrize(("rgb", "value"), [((0, 0, 0), 0.0), ((255, 255, 255), 1.0)])
def test_black_has_luminance_0_and_white_1(rgb: tuple[int, int, int], value: float):
    assert luminance(rgb) == pytest.approx(value)


def test_nothing_but_coloured_cells_brings_a_colour_of_its_own():
    """Whatever has no background of its own takes the colour of the notebook, light or dark."""
    page = Page(planted_trace()._repr_html_())
    for _, attributes in page.elements:
        style = attributes.get("style") or ""
        own = re.findall(r"(?:^|;)background:#", style)
        assert len(re.findall(r"(?:^|;)color:#", style)) == len(own)
