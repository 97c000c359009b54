"""The page of a census in a real browser, and the roles on the page of a run."""

import copy
import csv
import io
import json
import re
from base64 import b64decode
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tempo import compare, open_run
from tempo.errors import OutputError
from tempo.testing.tiny import tiny_model
from tempo.trace.run import Run
from tempo_analysis.parallel.page import shown_axes
from tempo_analysis.parallel.page_charts import RoleMaps
from tempo_analysis.parallel.results import analyze
from tempo_analysis.report.page import save_page
from tempo_analysis.studies.heads.findings import SavedCensus
from tempo_analysis.studies.heads.page import census_page_text
from tempo_analysis.studies.heads.page_charts import run_role_maps
from tempo_analysis.studies.heads.result import (
    Document,
    label_of,
    roles_of,
    spectrum_of,
)
from tempo_analysis.studies.heads.tables import census_tables
from tests.browser import TIMEOUT_MS, Visit, started_browser, visit_in
from tests.planted_census import (
    COPIES,
    EMPTY,
    HEADS,
    LAYERS,
    OPPOSES,
    REFUSED,
    planted_census,
    planted_document,
)

DIGITS = 6e-3  # of three significant digits
SINGLE = 1e-6  # of float32
HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def document() -> Document:
    return planted_document()


@pytest.fixture(scope="module")
def folder(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("census")
    SavedCensus(document).save(place)
    return place


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    with started_browser() as started:
        yield started


@pytest.fixture(scope="module")
def visit(browser: Any) -> Visit:
    return visit_in(browser)


def load(visit: Visit, page: Path, fragment: str = "") -> Visit:
    visit.complaints.clear()
    visit.requests.clear()
    visit.page.goto("about:blank")
    visit.page.goto(f"{page.as_uri()}{fragment}")
    visit.page.wait_for_selector("#head-map svg", timeout=TIMEOUT_MS)
    return visit


@pytest.fixture
def opened(visit: Visit, folder: Path) -> Visit:
    return load(visit, folder / "report.html")


def digits(text: str) -> float:
    if text == "\u2013":
        return float("nan")
    return float(text.removeprefix("< ").replace("\u2212", "-"))


def saved_rows(visit: Visit, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(visit.saved(name, "CSV").decode())))


def dots(visit: Visit) -> set[tuple[int, int]]:
    """Heads of the map that are marked, by the cell that stands before each mark."""
    cells = "all => all.map(dot => { const c = dot.previousElementSibling.dataset; "
    found = visit.page.eval_on_selector_all(
        "#head-map .held", f"{cells} return [+c.row, +c.column]; }})"
    )
    return {tuple(cell) for cell in found}


def head_table(visit: Visit, number: int) -> dict[str, list[str]]:
    """A table of the head shown: first cell to the others."""
    rows = visit.page.eval_on_selector_all(
        f"#head-table table:nth-of-type({number}) tbody tr",
        "all => all.map(row => [...row.cells].map(cell => cell.textContent))",
    )
    return {first: rest for first, *rest in rows}


def test_every_role_has_a_map_with_its_scores_chance_null_and_holders(
    opened: Visit, document: Document
):
    for role in roles_of(document):
        opened.choose(measure=f"role_{role.role}")
        assert dots(opened) == set(role.holders()), role.role
        rows = saved_rows(opened, "head map")
        columns = {"value": role.score, "chance": role.column["chance"], "q": role.column["q"]}
        columns |= {"percentile": role.column["percentile"], "assigned": role.assigned}
        columns |= {"null": np.full((LAYERS, HEADS), role.null_p99)}
        for name, exact in columns.items():
            shown = np.array([float(row[name] or "nan") for row in rows]).reshape(LAYERS, HEADS)
            np.testing.assert_allclose(shown, exact, rtol=SINGLE, atol=1e-37, err_msg=name)


def test_the_rule_of_a_role_is_said_beside_its_map(opened: Visit, document: Document):
    role = next(one for one in roles_of(document) if one.role == "bos_sink")
    opened.choose(measure="role_bos_sink")
    said = opened.page.text_content("#rule")
    assert said.startswith("BOS sink, share of the row.")
    assert f"the {len(role.holders())} that hold the role: a score above 0.3" in said
    opened.choose(measure="spectrum_normalised")
    assert "No verdict is made of it" in opened.page.text_content("#rule")


def test_the_measures_that_give_no_verdict_are_maps_as_well(opened: Visit, document: Document):
    opened.choose(measure="spectrum_normalised")
    value, _ = spectrum_of(document)["normalised"]
    shown = [float(row["value"]) for row in saved_rows(opened, "head map")]
    np.testing.assert_allclose(np.reshape(shown, value.shape), value, rtol=SINGLE)
    assert dots(opened) == set()
    groups = opened.page.eval_on_selector_all("#measure optgroup", "all => all.map(g => g.label)")
    assert groups == ["roles", "further roles", "spread of the rows", "other measures"]


def test_hovering_a_head_says_its_score_chance_null_and_whether_it_holds_the_role(opened: Visit):
    opened.choose(measure="role_induction")
    opened.page.hover('#head-map .head[data-row="4"][data-column="3"]')
    said = opened.page.text_content("#head-detail")
    assert said.startswith("L4H3, KV head 1, planted: induction 0.")
    assert "chance 0.1; null p99 0.1" in said
    assert said.endswith("; holds the role")
    opened.page.hover(f'#head-map .head[data-row="{EMPTY[0]}"][data-column="{EMPTY[1]}"]')
    said = opened.page.text_content("#head-detail")
    assert "induction \u2013" in said
    assert said.endswith("; does not hold the role")


def test_choosing_a_head_shows_everything_known_of_it(opened: Visit, document: Document):
    opened.page.click('#head-map .head[data-row="0"][data-column="1"]')
    assert opened.page.text_content("#head-title") == "L0H1, KV head 0"
    assert opened.page.text_content("#held") == "Holds: previous token, positional."
    roles = head_table(opened, 1)
    for role in roles_of(document):
        score, limits, chance, null, q, percentile, holds = roles[label_of(role.role)]
        column = {name: values[0, 1] for name, values in role.column.items()}
        assert digits(score) == pytest.approx(column["score"], rel=DIGITS)
        ends = [digits(end) for end in limits.split(" to ")]
        exact = [column["low"], column["high"]][: len(ends)]
        assert ends == pytest.approx(exact, rel=DIGITS, nan_ok=True)
        assert digits(chance) == pytest.approx(column["chance"], rel=DIGITS)
        assert digits(null) == pytest.approx(role.null_p99, rel=DIGITS)
        assert digits(q) == pytest.approx(column["q"], rel=DIGITS, abs=1e-30)
        assert digits(percentile) == pytest.approx(column["percentile"], rel=DIGITS)
        assert holds == ("yes" if role.assigned[0, 1] else "no")
    measures = head_table(opened, 2)
    for name, (value, chance) in spectrum_of(document).items():
        shown = [digits(text) for text in measures[label_of(name)]]
        assert shown == pytest.approx([value[0, 1], chance[0, 1]], rel=DIGITS, nan_ok=True)
    assert "sinks by head percent" in measures


def test_a_small_q_is_bounded_and_never_said_to_be_nothing(visit: Visit, tmp_path: Path):
    document = planted_document()
    for entry in document["roles"]["induction"]:
        entry["q"] = 1e-80
    load(visit, save_page(census_page_text(document, census_tables(document)), tmp_path))
    assert head_table(visit, 1)["induction"][4] == "< 1.00e\u221230"


def test_what_silencing_costs_is_said_and_what_was_not_silenced_too(
    opened: Visit, document: Document
):
    loss = document["detail"]["effects"]["heads"]["L4H3"]
    opened.page.evaluate("page.choose({ layer: 4, head: 3 })")
    said = opened.page.text_content("#loss")
    numbers = [float(text) for text in re.findall(r"\d\.\d+", said)]
    exact = [loss[name] for name in ("estimate", "low", "high")]
    assert numbers == pytest.approx(exact, rel=DIGITS)
    assert "8 texts of 64 tokens" in said
    opened.page.evaluate("page.choose({ layer: 4, head: 2 })")
    assert opened.page.text_content("#loss") == "It was not silenced."


def test_the_offset_profile_of_the_head_is_drawn_beside_even_rows(
    opened: Visit, document: Document
):
    opened.page.evaluate("page.choose({ layer: 0, head: 1 })")
    assert opened.page.get_attribute("#profile svg", "aria-label") == "Offset profile of L0H1"
    rows = saved_rows(opened, "offset profile")
    assert "sequences" in rows[0]
    for series, name in (("this head", "profile"), ("even rows", "even")):
        shown = [float(row["estimate"]) for row in rows if row["series"] == series]
        exact = [each for each in document["detail"]["offsets"][name][0][1] if each is not None]
        np.testing.assert_allclose(shown, exact, rtol=SINGLE)
    titles = opened.page.eval_on_selector_all(
        "#profile .point title", "all => all.map(t => t.textContent)"
    )
    assert "this head, 1: 0.8" in titles


def test_the_arrow_keys_and_lists_walk_over_the_heads(opened: Visit):
    opened.choose(layer=2, head=1)
    opened.page.focus("#head-map svg")
    for key in ("ArrowDown", "ArrowRight"):
        opened.page.keyboard.press(key)
    assert opened.page.text_content("#head-title") == "L3H2, KV head 1"
    assert (opened.page.input_value("#layer"), opened.page.input_value("#head")) == ("3", "2")


def test_the_address_leads_back_to_what_was_shown(opened: Visit, folder: Path):
    opened.choose(measure="role_ov_copying", layer=3, head=1)
    fragment = opened.page.evaluate("location.hash")
    load(opened, folder / "report.html", fragment)
    assert opened.page.input_value("#measure") == "role_ov_copying"
    assert opened.page.text_content("#head-title") == "L3H1, KV head 0"
    load(opened, folder / "report.html", "#measure=nothing&layer=99&head=x")
    assert opened.complaints == []
    assert opened.page.text_content("#head-title").startswith("L0H")


def test_scores_below_zero_have_the_other_colour(opened: Visit):
    opened.choose(measure="role_ov_copying")
    fills = [
        opened.page.get_attribute(f'.head[data-row="{row}"][data-column="{column}"]', "fill")
        for row, column in (COPIES, OPPOSES, (0, 0))
    ]
    assert len(set(fills)) == 3
    assert fills[2] == "rgb(255, 255, 255)"


def test_roles_stand_by_depth_with_their_intervals(opened: Visit, document: Document):
    rows = saved_rows(opened, "depth of roles")
    assert len(rows) == 2 * len(document["depth"])
    for name, found in document["depth"].items():
        kinds = (("centroid", found["centroid"]), ("median", found["median_of_best"]))
        for kind, exact in kinds:
            (row,) = [r for r in rows if (r["role"], r["measure"]) == (label_of(name), kind)]
            assert float(row["depth"]) == exact["estimate"]
            low = float("nan") if exact["low"] is None else exact["low"]
            assert float(row["low"] or "nan") == pytest.approx(low, nan_ok=True)
    held = [row["assigned"] != "0" for row in rows]
    assert held == sorted(held, reverse=True)
    centroids = [float(r["depth"]) for r in rows if r["measure"] == "centroid"]
    n_held = sum(held) // 2
    assert centroids[:n_held] == sorted(centroids[:n_held])
    assert opened.page.locator("#depth_of_roles .depth-mark").count() == len(rows) + 2


def test_entropy_by_depth_counts_heads_and_not_prompts(opened: Visit, document: Document):
    rows = saved_rows(opened, "entropy by depth")
    value, _ = spectrum_of(document)["normalised_without_sink"]
    own = [row for row in rows if row["panel"] == "without slot 0"]
    np.testing.assert_allclose([float(row["estimate"]) for row in own], value.mean(1))
    limits = np.percentile(value, (10, 90), axis=1)
    np.testing.assert_allclose([float(row["low"]) for row in own], limits[0])
    np.testing.assert_allclose([float(row["high"]) for row in own], limits[1])
    assert {row["heads"] for row in rows} == {str(HEADS)}
    title = opened.page.text_content("#entropy_by_depth .point title")
    assert "middle 80 % of the heads" in title
    assert "prompt" not in title


def test_activations_name_the_channel_that_is_largest(opened: Visit, document: Document):
    rows = saved_rows(opened, "massive activations")
    exact = document["detail"]["activations"]["largest_over_median"]
    np.testing.assert_allclose([float(row["estimate"]) for row in rows], exact)
    said = opened.page.text_content("#massive_activations figcaption")
    assert "channel 7 (behind 0 to 1), 3 (behind 2 to 6)" in said


def test_everything_known_of_a_head_is_saved_with_all_digits(opened: Visit, document: Document):
    opened.page.evaluate("page.choose({ layer: 1, head: 2 })")
    rows = {row["measure"]: row for row in saved_rows(opened, "head")}
    role = next(one for one in roles_of(document) if one.role == "previous_token")
    row = rows["previous token"]
    assert (row["head"], row["assigned"], row["n"]) == ("L1H2", "1", "12")
    assert float(row["value"]) == pytest.approx(role.score[1, 2], rel=SINGLE)
    assert float(row["null_p99"]) == pytest.approx(role.null_p99, rel=SINGLE)


def test_every_table_is_saved_as_the_file_beside_the_page(opened: Visit, folder: Path):
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    shown = opened.page.eval_on_selector_all(
        "table[data-name]", "all => all.map(t => t.dataset.name)"
    )
    assert shown == ["roles", "role_heads", "silenced", "spectrum"]
    for name in shown:
        file = folder / "tables" / f"{name}.csv"
        assert opened.saved(f"table {name.replace('_', ' ')}", "CSV") == file.read_bytes()


@pytest.mark.parametrize("figure", ["head map", "offset profile", "depth of roles"])
def test_every_figure_is_saved_as_svg_and_png(opened: Visit, figure: str):
    svg = opened.saved(figure, "SVG")
    assert len(list(ElementTree.fromstring(svg).iter())) > 20
    assert b"var(" not in svg
    assert opened.saved(figure, "PNG").startswith(b"\x89PNG")


def test_the_foot_says_how_it_was_made_and_what_was_refused(opened: Visit):
    foot = opened.page.text_content("footer")
    for said in ("planted texts", "1" * 64, "0" * 64, r"'\n\n'"):
        assert said in foot
    assert f"retrieval: {REFUSED['retrieval']}" in opened.page.text_content("main")


def test_a_census_of_roles_alone_shows_what_it_has(visit: Visit, tmp_path: Path):
    document = planted_document()
    document["detail"] = {"battery": document["detail"]["battery"]}
    load(visit, save_page(census_page_text(document, census_tables(document)), tmp_path))
    assert visit.complaints == []
    assert not visit.page.locator("#profile").is_visible()
    assert visit.page.locator("#depth_of_roles svg").is_visible()
    assert visit.page.locator("#entropy_by_depth").count() == 0


def test_a_census_that_answered_nothing_says_so(visit: Visit, tmp_path: Path):
    document = planted_document()
    nothing = {"roles": {}, "more_roles": {}, "depth": {}, "detail": {}}
    page = save_page(census_page_text(document | nothing, ()), tmp_path)
    visit.complaints.clear()
    visit.page.goto(page.as_uri())
    assert visit.complaints == []
    assert not visit.page.locator("#drawn").is_visible()
    assert not visit.page.locator(".controls").is_visible()
    assert REFUSED["retrieval"] in visit.page.text_content("main")


def test_hostile_names_are_text_and_nothing_else(visit: Visit, tmp_path: Path):
    document = copy.deepcopy(planted_document(name=HOSTILE))
    document["refused"] = {HOSTILE: HOSTILE}
    document["detail"]["battery"]["corpus"] = HOSTILE
    visit.page.on("dialog", lambda dialog: visit.complaints.append(dialog.message))
    page = save_page(census_page_text(document, census_tables(document)), tmp_path)
    assert page.read_text().count("</script>") == 2
    load(visit, page)
    assert visit.complaints == []
    assert visit.page.locator("script").count() == 2
    assert HOSTILE in visit.page.text_content("h1")


def test_the_page_is_the_same_for_the_same_census_and_names_no_other_place(document: Document):
    tables = census_tables(document)
    text = census_page_text(document, tables)
    assert text == census_page_text(json.loads(json.dumps(document)), tables)
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) == {"http://www.w3.org/2000/svg"}


def test_a_page_that_cannot_be_written_says_so(document: Document, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_page(census_page_text(document, ()), tmp_path / "file")


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark")])
def test_the_page_meets_wcag_aa_and_fits_its_window(
    browser: Any, folder: Path, width: int, scheme: str
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    sized = load(visit_in(browser, width=width, scheme=scheme), folder / "report.html")
    sized.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    levels = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    report = axe.Axe().run(sized.page, options=levels).response
    assert [(one["id"], one["nodes"][0]["html"][:160]) for one in report["violations"]] == []
    assert sized.page.evaluate("document.documentElement.scrollWidth") <= width
    sized.page.close()


# --- the page of a run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model, and beside it a planted census that names that model."""
    place = tmp_path_factory.mktemp("run") / "run"
    options = {"threshold": 0.12, "steps": 3, "eos": "ignore"}
    prompts = ("The cat sat on the", "a dog ran in the")
    compare(tiny_model("llama"), prompts, arms=("isolated", "greedy"), out=place, **options)
    return place


def write_with_roles(run: Run, place: Path) -> None:
    """As the commands do: the page of a run with the roles of `heads.json` beside it."""
    results = analyze(run)
    replace(results, role_maps=run_role_maps(run, shown_axes(results))).save(place, force=True)


def census_of(run: Run) -> Document:
    fingerprint = next(iter(run)).header.model["fingerprint"]
    return planted_census(fingerprint=fingerprint).document()


def test_the_page_of_a_run_offers_the_roles_of_its_heads_for_every_arm(
    visit: Visit, run_folder: Path
):
    run = open_run(run_folder)
    document = census_of(run)
    SavedCensus(document).save_document(run_folder)
    write_with_roles(run, run_folder)
    visit.complaints.clear()
    visit.open(run_folder / "report.html")
    role = next(one for one in roles_of(document) if one.role == "previous_token")
    for arm in ("isolated", "greedy"):
        visit.choose(arm=arm)
        visit.choose(measure="role_previous_token")
        rows = saved_rows(visit, "head map")
        shown = np.reshape([float(row["value"]) for row in rows], (2, 4))
        np.testing.assert_allclose(shown, role.score[:2, :4], rtol=SINGLE)
        nulls = [float(row["null"]) for row in rows]
        assert nulls == pytest.approx([role.null_p99] * 8, rel=SINGLE)
        assert dots(visit) == {(0, 1), (1, 2)}
        visit.page.hover('#head-map .head[data-row="1"][data-column="2"]')
        said = visit.page.text_content("#head-detail")
        assert said.startswith("L1H2, KV head 1, heads.json: role: previous token 0.")
        assert said.endswith("holds the role")
    visit.choose(measure="sink")
    assert dots(visit) == set()
    assert visit.complaints == []


def test_a_census_of_another_model_is_refused_on_the_page_of_a_run(run_folder: Path):
    SavedCensus(planted_document(fingerprint="another")).save_document(run_folder)
    run = open_run(run_folder)
    write_with_roles(run, run_folder)
    text = (run_folder / "report.html").read_text()
    assert "roles of heads, all arms: expected a census of the model of this run" in text
    assert "role_previous_token" not in text


def test_a_damaged_census_is_refused_on_the_page_of_a_run(run_folder: Path):
    (run_folder / "heads.json").write_text("{")
    run = open_run(run_folder)
    axes = {"layers": (0, 1), "heads": (0, 1, 2, 3)}
    roles = run_role_maps(run, axes)
    assert roles.maps == ()
    (refusal,) = roles.refusals
    assert refusal.reason.startswith("expected JSON in")


def test_heads_that_the_census_does_not_have_are_no_data(run_folder: Path):
    run = open_run(run_folder)
    SavedCensus(census_of(run)).save_document(run_folder)
    roles = run_role_maps(run, {"layers": (1, 40), "heads": (2, 77)})
    assert roles.refusals == ()
    shown = roles.maps[0]["value"]
    found = np.frombuffer(b64decode(shown), "<f4").reshape(2, 2)
    assert not np.isnan(found[0, 0])
    assert np.isnan(found).sum() == 3


def test_a_run_without_a_census_offers_no_roles(run_folder: Path):
    run = replace(open_run(run_folder), folder=None)
    assert run_role_maps(run, {"layers": (0,), "heads": (0,)}) == RoleMaps()
    assert run_role_maps(open_run(run_folder), {}) == RoleMaps()
