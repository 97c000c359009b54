"""The plain page: its text, and what it is in a real browser."""

import csv
import io
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tempo.errors import InputError, OutputError
from tempo_analysis.report.csv import csv_text
from tempo_analysis.report.figure_style import house_style, new_figure, save_figure
from tempo_analysis.report.inline_svg import inline_svg
from tempo_analysis.report.page import save_page
from tempo_analysis.report.predictions import (
    PredictionTable,
    PromptTokens,
    prediction_sheet,
    prediction_table,
    shift_sheet,
)
from tempo_analysis.report.study_page import (
    FIRST_SHIFTS,
    MOST_ROWS,
    SHORT_TABLE,
    Figure,
    signed,
    study_page_text,
)
from tempo_analysis.report.table import Column, Table
from tests.browser import Visit, started_browser, visit_in

VOCAB = 60
HOSTILE = {
    0: "<script>alert(1)</script>",
    1: "\"'><img src=x onerror=alert(1)>",
    2: "&lt;b&gt;&amp;",
    3: "\n",
    4: "\t",
    5: "\u05d0\u05d1",
    6: "\u202eevil",
    7: "{{ 7 * 7 }}",
    8: "</script>",
    9: "\x1b[2J",
}
NAME = '<i onclick="alert(1)">name</i> & "co"'
SHARED_ID = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="100" height="100">'
    '<style>* {{ fill: {colour} }}</style><defs><clipPath id="a"><rect x="{x}" width="50" '
    'height="100"/></clipPath></defs>'
    '<g clip-path="url(#a)"><rect class="ink" width="100" height="100"/></g></svg>'
)


def text_of(token: int) -> str:
    return HOSTILE.get(token, f" w{token}")


def predictions_of(number: int, category: str, tokens: tuple[str, ...], at: int) -> PredictionTable:
    """A condition that keeps the prediction, one that does not, one measured from another."""
    random = np.random.default_rng(number)
    target = random.normal(size=VOCAB)
    target[number] = 9
    moved = random.normal(size=VOCAB)
    moved[number + 10] = 9
    readouts = {"kept": target + 0.1 * random.normal(size=VOCAB), "moved": moved}
    readouts |= {"from moved": moved + random.normal(size=VOCAB), "same": target.copy()}
    return prediction_table(
        PromptTokens(f"p{number}", category, tokens, at),
        target,
        readouts,
        text_of=text_of,
        baseline={"from moved": "moved"},
    )


def number_table(name: str, n: int) -> Table:
    columns = (Column("layer", "layer", "count"), Column("kl", "KL, nats", "number"))
    rows = tuple({"layer": row, "kl": row / 7} for row in range(n))
    return Table(name, f"Table {name}", "First line.\nSecond line.", columns, rows)


def planted_figure(name: str, x: int, colour: str = "red") -> Figure:
    return Figure(name, f"Planted {name}", "n = 1.", SHARED_ID.format(x=x, colour=colour))


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    """Two figures of the house, with clip paths and text."""
    folder = tmp_path_factory.mktemp("figures")
    return [drawn_figure(folder, name, end) for name, end in (("first", 9), ("second", 5))]


def drawn_figure(folder: Path, name: str, end: int) -> Figure:
    with house_style():
        figure = new_figure(2.0)
        axes = figure.subplots()
        axes.plot(range(10), range(10))
        axes.set(xlim=(0, end), xlabel="layer", ylabel="KL, nats")
    save_figure(figure, folder, name)
    svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
    return Figure(name, f"The {name} figure", "A line; n = 10 layers.", svg)


@pytest.fixture(scope="module")
def predictions() -> list[PredictionTable]:
    return [
        predictions_of(12, "pairs", ("The", " salt", " and"), 2),
        predictions_of(13, "code", ("x", " =", " x", "\n"), 1),
        predictions_of(14, "pairs", ("alone",), 0),
    ]


@pytest.fixture(scope="module")
def parts(figures: list[Figure], predictions: list[PredictionTable]) -> dict[str, Any]:
    return {
        "title": "A study of heads",
        "sentences": ["Something was found.", "Nothing else was."],
        "facts": {"model": "planted", "n": "3"},
        "figures": figures,
        "tables": [number_table("small", SHORT_TABLE), number_table("large", MOST_ROWS + 1)],
        "predictions": predictions,
    }


@pytest.fixture(scope="module")
def page(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_page(study_page_text(**parts), tmp_path_factory.mktemp("study") / "new")


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    with started_browser() as started:
        yield started


@pytest.fixture(scope="module")
def visit(browser: Any) -> Visit:
    visit = visit_in(browser)
    visit.page.on("dialog", lambda dialog: visit.complaints.append(dialog.message))
    return visit


def load(visit: Visit, page: Path, fragment: str = "") -> Visit:
    visit.complaints.clear()
    visit.requests.clear()
    visit.page.goto("about:blank")
    visit.page.goto(f"{page.as_uri()}{fragment}")
    visit.page.wait_for_load_state("load")
    return visit


@pytest.fixture
def opened(visit: Visit, page: Path) -> Visit:
    return load(visit, page)


def written(folder: Path, **parts: Any) -> Path:
    return save_page(
        study_page_text(**{"title": "t", "sentences": [], "facts": {}} | parts), folder
    )


def cells(visit: Visit, prompt: int) -> list[list[str]]:
    """Every row of the table of a prompt: condition, then its cells."""
    rows = f"#prompt-{prompt} tbody tr"
    inside = "all => all.map(row => [...row.cells].map(cell => cell.textContent))"
    return visit.page.eval_on_selector_all(rows, inside)


def background(visit: Visit, selector: str) -> list[float]:
    """Red, green, blue as the browser paints them."""
    style = f"getComputedStyle(document.querySelector({selector!r})).backgroundColor"
    return [float(part) for part in re.findall(r"[\d.]+", visit.page.evaluate(style))][:3]


# --- the browser


def test_the_page_loads_without_a_complaint_and_asks_nobody(opened: Visit, page: Path):
    assert opened.complaints == []
    own = (page.as_uri(), "about:blank")
    asked = [url for url in opened.requests if url.partition("#")[0] not in own]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == []
    assert opened.page.title() == "tempo: A study of heads"
    assert opened.page.text_content("h1") == "A study of heads"
    found = opened.page.eval_on_selector_all("main li", "all => all.map(li => li.textContent)")
    assert found[:2] == ["Something was found.", "Nothing else was."]
    foot = opened.page.text_content("footer")
    assert "model" in foot
    assert "planted" in foot


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_t_is_blue_and_the_token_before_it_yellow_and_both_are_named(
    browser: Any, page: Path, scheme: str
):
    visit = load(visit_in(browser, scheme=scheme), page)
    red, green, blue = background(visit, "#prompt-0 summary .at")
    assert blue > max(red, green) + 30
    red, green, blue = background(visit, "#prompt-0 summary .before")
    assert min(red, green) > blue + 40
    texts = "all => all.map(token => token.textContent)"
    shown = visit.page.eval_on_selector_all("#prompt-0 .tokens bdi", texts)
    assert shown == ["The", "\u2423saltt\u22121", "\u2423andt"]
    visit.page.close()


def test_t_is_marked_wherever_it_stands(opened: Visit):
    found = {
        kind: opened.page.eval_on_selector_all(
            f"details.prompt .tokens .{kind}",
            "all => all.map(token => [token.closest('details').id, token.firstChild.data])",
        )
        for kind in ("at", "before")
    }
    # Categories are together on the page: the third prompt stands second.
    assert found["at"] == [
        ["prompt-0", "\u2423and"],
        ["prompt-1", "alone"],
        ["prompt-2", "\u2423="],
    ]
    assert found["before"] == [["prompt-0", "\u2423salt"], ["prompt-2", "x"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_kept_prediction_is_green_and_signed_and_another_is_neither(
    browser: Any, page: Path, scheme: str
):
    visit = load(visit_in(browser, scheme=scheme), page)
    red, green, blue = background(visit, "#prompt-0 .same")
    assert green > max(red, blue) + 20
    rows = {row[0].partition(" against")[0].strip(): row[1] for row in cells(visit, 0)}
    assert rows["target"] == "\u2423w12"
    assert rows["kept"] == rows["same"] == "\u2713same: \u2423w12"
    assert rows["moved"] == "\u2260other: \u2423w22"
    inside = visit.page.eval_on_selector_all(
        "#prompt-0 .other", "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert set(inside) == {"rgba(0, 0, 0, 0)"}
    visit.page.close()


def test_every_row_shows_the_numbers_of_its_condition(
    opened: Visit, predictions: list[PredictionTable]
):
    shown = cells(opened, 0)
    assert len(shown) == len(predictions[0].rows)
    assert shown[0][2:] == ["\u2013"] * 5
    for row, (name, _, *numbers, up, down) in zip(
        predictions[0].conditions, shown[1:], strict=True
    ):
        assert name.split()[0] == row.condition.split()[0]
        exact = (row.logit, row.log_probability, row.mean_logit)
        assert numbers == [signed(value) for value in exact]
        for said, shifts in ((up, row.up), (down, row.down)):
            places = [said.find(f"{signed(s.logit)} {signed(s.log_probability)}") for s in shifts]
            assert -1 not in places
            assert places == sorted(places)
    assert "against moved" in shown[3][0]
    assert "against" not in shown[1][0]
    assert shown[4][5:] == ["no logit changed"] * 2


def test_a_list_opens_to_all_of_its_twenty(opened: Visit):
    def seen() -> int:
        tokens = opened.page.locator("#prompt-0 tbody tr:nth-child(2) .moved li")
        return sum(tokens.nth(n).is_visible() for n in range(tokens.count()))

    assert opened.page.locator("#prompt-0 tbody tr:nth-child(2) .moved li").count() == 40
    assert seen() == 2 * FIRST_SHIFTS
    opened.page.get_by_role("button", name="Show whole lists").click()
    assert seen() == 40


def test_the_first_prompt_lies_open_and_a_button_opens_every_other(opened: Visit):
    folds = "[...document.querySelectorAll('details.prompt')].map(fold => fold.open)"
    assert opened.page.evaluate(folds) == [True, False, False]
    button = opened.page.get_by_role("button", name="Open every prompt")
    button.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate(folds) == [True] * 3
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate(folds) == [False] * 3


def test_the_contents_lead_by_category_to_each_prompt(opened: Visit, page: Path):
    names = opened.page.eval_on_selector_all("nav strong", "all => all.map(one => one.textContent)")
    assert names == ["pairs", "code"]
    link = opened.page.get_by_role("link", name="x\u2423=\u2423x\u21b5")
    link.focus()
    opened.page.keyboard.press("Enter")
    opened.wait_until("document.getElementById('prompt-2').open")
    again = load(opened, page, "#prompt-1")
    assert again.page.evaluate("document.getElementById('prompt-1').open")
    assert load(opened, page, "#nothing").complaints == []


@pytest.mark.parametrize("name", ["predictions", "prediction_shifts"])
def test_the_sheets_of_the_predictions_are_saved_whole(
    opened: Visit, predictions: list[PredictionTable], name: str
):
    sheets = {
        sheet.name: sheet for sheet in (prediction_sheet(predictions), shift_sheet(predictions))
    }
    saved = opened.saved(name.replace("_", " "), "CSV").decode()
    assert saved == csv_text(sheets[name])
    assert len(list(csv.reader(io.StringIO(saved, newline="")))) == 1 + len(sheets[name].rows)


def test_every_table_is_saved_as_its_file_and_a_long_one_is_cut_on_the_page(
    opened: Visit, parts: dict[str, Any]
):
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    for table in parts["tables"]:
        assert opened.saved(f"table {table.name}", "CSV").decode() == csv_text(table)
    rows = "all => all.map(table => [table.dataset.name, table.tBodies[0].rows.length])"
    shown = opened.page.eval_on_selector_all("table[data-name]", rows)
    assert shown == [["small", SHORT_TABLE], ["large", MOST_ROWS]]
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 1} rows" in opened.page.text_content("main")


def test_a_short_table_lies_open_and_a_long_one_closed(opened: Visit):
    folds = "[...document.querySelectorAll('table[data-name]')].map(t => t.closest('details').open)"
    assert opened.page.evaluate(folds) == [True, False]


def test_figures_have_a_name_a_caption_and_a_white_card_in_the_dark(browser: Any, page: Path):
    visit = load(visit_in(browser, scheme="dark"), page)
    image = visit.page.get_by_role("img", name="The second figure")
    assert image.evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(255, 255, 255)"
    captions = visit.page.eval_on_selector_all("figcaption", "all => all.map(c => c.textContent)")
    assert captions[1] == "The second figure. A line; n = 10 layers."
    visit.page.close()


def test_every_figure_is_saved_as_svg_and_png(opened: Visit):
    root = ElementTree.fromstring(opened.saved("second", "SVG"))
    assert len(list(root.iter())) > 20
    assert root.get("viewBox")
    assert opened.saved("second", "PNG").startswith(b"\x89PNG")


def test_ids_of_several_figures_do_not_meet(opened: Visit):
    ids = opened.page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) > 40
    assert len(set(ids)) == len(ids)
    pointed = opened.page.evaluate(
        """() => [...document.querySelectorAll("svg *")].flatMap(one => {
          const at = one.getAttribute("href") ?? one.getAttribute("clip-path");
          const id = at && at.match(/#([^)]+)/)[1];
          return id ? [one.closest("svg").contains(document.getElementById(id))] : [];
        })"""
    )
    assert len(pointed) > 20
    assert all(pointed)


def test_a_figure_is_cut_by_its_own_clip_path_and_coloured_by_its_own_style(
    visit: Visit, tmp_path: Path
):
    """Both planted figures name their clip path `a`; one shows its left half, one its right."""
    both = [planted_figure("left", 0, "red"), planted_figure("right", 50, "blue")]
    load(visit, written(tmp_path, figures=both))
    found = visit.page.evaluate(
        """() => [...document.querySelectorAll("#figures svg")].map(svg => {
          const box = svg.getBoundingClientRect();
          const at = (share) => document.elementFromPoint(
            box.x + share * box.width, box.y + box.height / 4).getAttribute("class");
          return [at(0.2), at(0.8), getComputedStyle(svg.querySelector(".ink")).fill];
        })"""
    )
    assert found == [["ink", None, "rgb(255, 0, 0)"], [None, "ink", "rgb(0, 0, 255)"]]


def test_hostile_texts_are_text_and_nothing_else(visit: Visit, tmp_path: Path):
    tokens = tuple(HOSTILE[number] for number in range(10))
    hostile = [predictions_of(number, NAME, tokens, number) for number in range(10)]
    table = Table("t", NAME, NAME, (Column("a", NAME, "text"),), ({"a": HOSTILE[0]},))
    svg = SHARED_ID.format(x=0, colour="red").replace("<defs>", "<script>alert(1)</script><defs>")
    page = written(
        tmp_path,
        title=NAME,
        sentences=[NAME],
        facts={NAME: HOSTILE[0]},
        figures=[Figure("f", NAME, NAME, svg)],
        tables=[table],
        predictions=hostile,
    )
    assert page.read_text(encoding="utf-8").count("</script>") == 2
    load(visit, page)
    visit.page.get_by_role("button", name="Open every prompt").click()
    assert visit.complaints == []
    assert visit.page.locator("script").count() == 2
    assert visit.page.locator("img, i").count() == 0
    assert visit.page.text_content("h1") == NAME
    assert visit.page.text_content("nav strong") == NAME
    shown = visit.page.eval_on_selector_all(
        "#prompt-0 .tokens bdi", "all => all.map(token => token.firstChild.data)"
    )
    assert shown[2:] == [
        *("&lt;b&gt;&amp;", "\u21b5", "\u21e5", "\u05d0\u05d1", "\\u202eevil"),
        *("{{\u24237\u2423*\u24237\u2423}}", "</script>", "\\x1b[2J"),
    ]
    assert shown[0] == "<script>alert(1)</scrip\u2026"
    assert visit.saved("table t", "CSV").decode() == csv_text(table)


def test_letters_that_run_from_right_to_left_move_no_number(visit: Visit, tmp_path: Path):
    """A Hebrew token stands left of its change although numbers follow it."""
    target = np.zeros(VOCAB)
    moved = target.copy()
    moved[5] = 3
    table = prediction_table(
        PromptTokens("p", "", ("a", "\u05d0\u05d1", "\u05d2"), 1),
        target,
        {"c": moved},
        text_of=text_of,
    )
    load(visit, written(tmp_path, predictions=[table]))
    edges = visit.page.evaluate(
        """() => {
          const item = document.querySelector(".moved li");
          return [item.querySelector("bdi"), item.querySelector("small")]
            .map(one => one.getBoundingClientRect().left);
        }"""
    )
    assert edges[0] < edges[1]
    places = visit.page.eval_on_selector_all(
        ".tokens bdi", "all => all.map(token => token.getBoundingClientRect().left)"
    )
    assert places == sorted(places)


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark")])
def test_the_page_meets_wcag_aa_and_fits_its_window(
    browser: Any, page: Path, width: int, scheme: str
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    sized = load(visit_in(browser, width=width, scheme=scheme), page)
    sized.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    levels = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    report = axe.Axe().run(sized.page, options=levels).response
    assert [(one["id"], one["nodes"][0]["html"][:160]) for one in report["violations"]] == []
    assert sized.page.evaluate("document.documentElement.scrollWidth") <= width
    sized.page.close()


def test_on_a_phone_every_cell_says_what_it_is(browser: Any, page: Path):
    phone = load(visit_in(browser, width=400), page)
    labels = phone.page.eval_on_selector_all(
        "#prompt-0 tbody tr:nth-child(2) td",
        "all => all.map(cell => getComputedStyle(cell, '::before').content)",
    )
    heads = ("predicted", "\u0394 logit", "\u0394 log-prob", "\u0394 mean logit")
    assert [label.strip('" ').split('"')[0] for label in labels] == [
        *heads,
        *("20 most up", "20 most down"),
    ]
    assert phone.page.get_by_role("rowheader", name="kept").first.is_visible()
    phone.page.close()


def test_without_a_script_everything_can_still_be_read(browser: Any, page: Path):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(page.as_uri())
    assert plain.locator("#prompt-0 tbody tr").count() == 5
    assert plain.locator("#figures svg").first.is_visible()
    assert not plain.locator("#theme").is_visible()
    context.close()


def test_a_page_of_sentences_alone_has_no_empty_part(visit: Visit, tmp_path: Path):
    load(visit, written(tmp_path, sentences=["One."], facts={"model": "m"}))
    assert visit.complaints == []
    titles = visit.page.eval_on_selector_all("h2", "all => all.map(title => title.textContent)")
    assert titles == ["What was found", "How this was made"]


# --- its text


def test_the_page_is_the_same_for_the_same_study_and_names_no_other_place(parts: dict[str, Any]):
    text = study_page_text(**parts)
    assert text == study_page_text(**parts)
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_sheets_of_predictions_are_no_tables_of_the_page(predictions: list[PredictionTable]):
    sheets = [prediction_sheet(predictions), shift_sheet(predictions)]
    parts = {"title": "t", "sentences": [], "facts": {}, "tables": sheets}
    assert 'data-name="predictions"' not in study_page_text(**parts, predictions=predictions)
    assert 'data-name="predictions"' in study_page_text(**parts)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.234, "+1.23"), (-0.5, "\u22120.5"), (0.0, "+0"), (float("nan"), "\u2013")],
)
def test_a_change_has_its_sign(value: float, shown: str):
    assert signed(value) == shown


@pytest.mark.parametrize("what", ["figures", "tables"])
def test_two_parts_of_one_name_are_refused(tmp_path: Path, what: str):
    twice = {"figures": planted_figure("a", 0), "tables": number_table("a", 1)}[what]
    with pytest.raises(InputError, match=f"expected {what} of different names, got a, a"):
        written(tmp_path / "new", **{what: [twice, twice]})
    assert not (tmp_path / "new").exists()


def test_two_tables_of_one_prompt_are_refused(tmp_path: Path, predictions: list[PredictionTable]):
    with pytest.raises(InputError, match="one prediction table for each prompt"):
        written(tmp_path, predictions=[predictions[0]] * 2)


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        written(tmp_path / "file")


# --- SVG


@pytest.mark.parametrize(
    "svg", ["", "<svg", "no drawing", "<html/>", "<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_a_figure_that_is_no_svg_is_refused(svg: str):
    with pytest.raises(InputError, match="expected"):
        inline_svg(svg, label="x", prefix="p-")


def test_every_kind_of_reference_follows_its_id():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'viewBox="0 0 1 1"><metadata>who</metadata><style>.a, g > b { fill: url(#x) } '
        'c { r: 1 }</style><g id="x" style="clip-path: url(\'#x\'); mask: url(#y)"/>'
        '<use xlink:href="#x"/><use href="#y"/><a href="http://example.org/#x">t</a></svg>'
    )
    root = ElementTree.fromstring(inline_svg(svg, label='a "label"', prefix="p-"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}metadata") is None
    assert root.find(f"{space}title").text == root.get("aria-label") == 'a "label"'
    assert root.get("role") == "img"
    group = root.find(f"{space}g")
    assert group.get("id") == "p-x"
    assert group.get("style") == "clip-path: url(#p-x); mask: url(#p-y)"
    assert [use.get("href") for use in root.findall(f"{space}use")] == ["#p-x", "#p-y"]
    assert root.find(f"{space}a").get("href") == "http://example.org/#x"
    style = " ".join(root.find(f"{space}style").text.split())
    assert style == "#p-svg .a, #p-svg g > b { fill: url(#p-x) }#p-svg c { r: 1 }"
