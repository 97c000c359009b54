"""The page in a real browser: what it shows is what the traces hold."""

import csv
import io
import json
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tempo import compare, generate, open_run
from tempo.testing.planted import noisy, planted_run, uniform
from tempo.testing.tiny import tiny_model
from tempo.trace.run import Run
from tempo.trace.trace import Trace
from tempo_analysis.parallel.results import analyze
from tests.browser import Visit, started_browser, visit_in
from tests.planted_runs import marked

PROMPTS = ("The cat sat on the", "a dog ran in the", "is the mat")
TWINS = ("isolated", "visible", "unique", "greedy")
RELATIVE = 3e-4  # of the 16-bit logarithms; see analysis/page/packing.py
DIGITS = 6e-3  # of three significant digits
HOSTILE = {
    0: "<script>alert(1)</script>",
    1: '"><img src=x onerror=alert(1)>',
    2: "\u202eevil",
    3: "</script><script>",
    4: "\u200b",
    5: "{{ 7 * 7 }}",
    6: "&lt;b&gt;",
    7: "=1+1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paired comparison of a tiny model with grouped heads."""
    place = tmp_path_factory.mktemp("page") / "run"
    tiny = tiny_model("llama")
    options = {"threshold": 0.12, "steps": 4, "eos": "ignore"}
    run = compare(tiny, PROMPTS, arms=TWINS, paired=True, out=place, **options)
    analyze(run).save(place)
    return place


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    with started_browser() as started:
        yield started


@pytest.fixture(scope="module")
def visit(browser: Any) -> Visit:
    return visit_in(browser)


@pytest.fixture
def opened(visit: Visit, folder: Path) -> Visit:
    visit.complaints.clear()
    visit.requests.clear()
    visit.open(folder / "report.html")
    return visit


def trace_of(folder: Path, arm: str = "isolated", prompt: str = "p0000") -> Trace:
    return open_run(folder).trace(prompt, arm)


def rows_on_page(visit: Visit) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(visit.saved("attention", "CSV").decode())))


def weights_on_page(visit: Visit, trace: Trace, step: int) -> np.ndarray:
    """The weights of the head shown, `query slot`."""
    numbers = [float(row["weight"]) for row in rows_on_page(visit)]
    return np.array(numbers).reshape(len(trace.members(step)), -1)


def digits(text: str) -> float:
    return float(text.replace("\u2212", "-")) if text != "\u2013" else float("nan")


@pytest.mark.parametrize("arm", ["isolated", "visible@isolated", "unique@isolated", "greedy"])
def test_every_row_of_every_step_and_head_is_that_of_the_trace(
    opened: Visit, folder: Path, arm: str
):
    trace = trace_of(folder, arm)
    opened.choose(arm=arm)
    for step in range(trace.n_steps + 1):
        exact, visible = trace.attention(step), trace.visible(step)
        for layer in range(2):
            for head in range(4):
                place = {"step": step, "layer": layer, "head": head}
                opened.page.evaluate("change => page.choose(change)", place)
                rows = opened.page.evaluate("attentionRows(page)")
                weights = [[cell["weight"] for cell in row] for row in rows]
                seen = [[cell["visible"] for cell in row] for row in rows]
                np.testing.assert_array_equal(seen, visible[layer])
                np.testing.assert_allclose(weights, exact[layer, head], rtol=RELATIVE, atol=1e-12)


def test_the_slider_and_the_lists_choose_what_is_shown(opened: Visit, folder: Path):
    trace = trace_of(folder)
    for step, layer, head in ((1, 0, 3), (3, 1, 0), (4, 1, 2)):
        opened.to_step(step)
        opened.choose(layer=layer, head=head)
        said = opened.page.text_content("#attention-title")
        assert said == f"Attention of L{layer}H{head} at step {step}, isolated"
        shown = weights_on_page(opened, trace, step)
        np.testing.assert_allclose(shown, trace.attention(step)[layer, head], rtol=RELATIVE)


def test_hovering_a_cell_says_its_token_position_weight_share_and_chance(
    opened: Visit, folder: Path
):
    trace = trace_of(folder)
    step = int(np.argmax(np.bincount(trace.slots.step)[1:])) + 1
    opened.page.evaluate("change => page.choose(change)", {"step": step, "layer": 1, "head": 1})
    exact, visible = trace.attention(step)[1, 1], trace.visible(step)[1]
    assert len(exact) >= 2
    for query, slot in np.ndindex(*exact.shape):
        opened.page.hover(f'#attention .cell[data-query="{query}"][data-slot="{slot}"]')
        said = opened.detail()
        assert f"(slot {slot}, position {trace.slots.position[slot]:g}," in said["reads"]
        if not visible[query, slot]:
            assert said["weight"] == "not visible to this query"
            continue
        assert digits(said["weight"]) == pytest.approx(exact[query, slot], rel=DIGITS)
        assert digits(said["share of the row"]) == pytest.approx(exact[query, slot], rel=DIGITS)
        chance = 1 / visible[query].sum()
        assert digits(said["chance"]) == pytest.approx(chance, rel=DIGITS)
        rest = exact[query, slot] / (1 - exact[query, 0]) if slot else float("nan")
        assert digits(said["share without slot 0"]) == pytest.approx(rest, rel=DIGITS, nan_ok=True)


def test_cells_of_siblings_are_outlined_and_no_others(opened: Visit, folder: Path):
    trace = trace_of(folder)
    step = int(np.argmax(np.bincount(trace.slots.step)[1:])) + 1
    opened.to_step(step)
    siblings = opened.page.eval_on_selector_all(
        "#attention .sibling", "cells => cells.map(c => [+c.dataset.query, +c.dataset.slot])"
    )
    members = trace.members(step).tolist()
    expected = [[q, s] for q, own in enumerate(members) for s in members if s != own]
    assert sorted(siblings) == sorted(expected)
    assert expected


def test_arcs_lead_to_what_the_query_reads_most(opened: Visit, folder: Path):
    trace = trace_of(folder)
    opened.to_step(2)
    opened.choose(layer=1, head=2)
    opened.page.hover('#attention .cell[data-query="0"][data-slot="1"]')
    found = opened.page.eval_on_selector_all(
        "#attention .arc",
        "arcs => arcs.map(a => [+a.dataset.slot, +a.getAttribute('stroke-width')])",
    )
    row = trace.attention(2)[1, 2, 0].copy()
    row[trace.members(2)[0]] = 0
    assert [slot for slot, _ in found] == np.argsort(-row, kind="stable")[: len(found)].tolist()
    widths = [width for _, width in found]
    assert widths == sorted(widths, reverse=True)


def test_the_arrow_keys_walk_over_cells_and_heads(opened: Visit):
    opened.to_step(2)
    opened.page.focus("#attention svg")
    for key in ("End", "ArrowLeft", "Home", "ArrowRight", "ArrowRight"):
        opened.page.keyboard.press(key)
    assert "(slot 2," in opened.detail()["reads"]
    opened.choose(layer=0, head=0)
    opened.page.focus("#head-map svg")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        opened.page.keyboard.press(key)
    assert "Attention of L1H2" in opened.page.text_content("#attention-title")
    assert "L1H2, KV head 1" in opened.page.text_content("#head-detail")


def test_a_cell_of_the_head_map_chooses_the_head(opened: Visit, folder: Path):
    opened.page.click('#head-map .head[data-row="1"][data-column="3"]')
    assert "Attention of L1H3" in opened.page.text_content("#attention-title")
    assert opened.page.input_value("#layer") == "1"
    assert opened.page.input_value("#head") == "3"
    results = analyze(open_run(folder))
    table = results.by_arm["isolated"].heads
    assert table is not None
    opened.choose(measure="sink")
    rows = list(csv.DictReader(io.StringIO(opened.saved("head map", "CSV").decode())))
    shown = np.array([float(row["value"]) for row in rows]).reshape(2, 4)
    np.testing.assert_allclose(shown, table.column("sink"), rtol=1e-6)
    assert [row["head"] for row in rows][:2] == ["L0H0", "L0H1"]


def test_the_difference_of_two_arms_is_theirs_on_the_same_tokens(opened: Visit, folder: Path):
    first, second = trace_of(folder), trace_of(folder, "visible@isolated")
    opened.choose(other="visible@isolated")
    assert opened.page.input_value("#view") == "difference"
    for step in range(1, first.n_steps + 1):
        opened.page.evaluate("change => page.choose(change)", {"step": step, "layer": 1, "head": 3})
        rows = rows_on_page(opened)
        exact = first.attention(step)[1, 3] - second.attention(step)[1, 3]
        shown = np.array([float(row["difference"]) for row in rows]).reshape(exact.shape)
        np.testing.assert_allclose(shown, exact, atol=2 * RELATIVE)
    assert np.abs(exact).max() > 0


def test_arms_that_hold_other_tokens_are_not_subtracted(opened: Visit):
    opened.page.evaluate("page.choose({ step: 4, other: 'greedy', view: 'difference' })")
    assert "nothing to subtract" in opened.page.text_content("#attention-note")
    assert opened.page.input_value("#view") == "share"
    assert "difference" not in opened.detail()


def test_the_sets_of_every_arm_stand_in_columns_by_step(opened: Visit, folder: Path):
    run = open_run(folder)
    boxes = opened.page.eval_on_selector_all(
        "#lattice .member",
        "all => all.map(b => [b.dataset.arm, +b.dataset.slot, +b.dataset.step, "
        "+b.querySelector('rect').getAttribute('x')])",
    )
    arms = dict.fromkeys(arm for arm, *_ in boxes)
    assert list(arms) == ["isolated", "visible@isolated", "unique@isolated", "greedy"]
    for arm in arms:
        slots = run.trace("p0000", arm).slots
        assert [(slot, step) for name, slot, step, _ in boxes if name == arm] == list(
            enumerate(slots.step.tolist())
        )
    columns = {(step, x) for _, _, step, x in boxes if step > 0}
    assert len(columns) == 4


def test_the_address_leads_back_to_what_was_shown(opened: Visit, folder: Path):
    opened.to_step(3)
    opened.choose(arm="visible@isolated", layer=1, head=2)
    fragment = opened.page.evaluate("location.hash")
    opened.open(folder / "report.html", fragment)
    title = opened.page.text_content("#attention-title")
    assert title == "Attention of L1H2 at step 3, visible@isolated"


def test_the_pruned_are_struck_and_the_path_goes_past_them(visit: Visit, tmp_path: Path):
    rules = {"threshold": 0.05, "prune": "attention:0.05", "steps": 5}
    run = generate(tiny_model("llama"), PROMPTS[0], out=tmp_path, **rules)
    analyze(run).save(tmp_path)
    visit.open(tmp_path / "report.html")
    slots = run[0].slots
    dead = np.flatnonzero(~slots.alive).tolist()
    assert dead
    struck = "all => all.map(line => +line.closest('.member').dataset.slot)"
    assert visit.page.eval_on_selector_all("#lattice .struck", struck) == dead
    titles = visit.page.eval_on_selector_all(
        "#lattice .member:has(.struck) title", "all => all.map(t => t.textContent)"
    )
    assert visit.page.locator("#lattice .path").count() == 5
    for slot, title in zip(dead, titles, strict=True):
        assert f"pruned at step {slots.died_at_step[slot]}" in title
    path = visit.page.evaluate("topPath(page.traces.get(page.arm))")
    texts = [run[0].token_text(slot) for slot in path[1:]]
    assert run[0].text() == PROMPTS[0] + "".join(texts)


def chart_on_page(visit: Visit, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(visit.saved(name, "CSV").decode())))


def test_the_curves_are_those_of_the_analysis(opened: Visit, folder: Path):
    results = analyze(open_run(folder))
    funnel = results.by_arm["isolated"].entropy.normalised_without_sink
    rows = chart_on_page(opened, "entropy by layer")
    own = [r for r in rows if r["series"] == "isolated" and r["panel"] == "without slot 0"]
    np.testing.assert_allclose([float(r["estimate"]) for r in own], funnel.estimate)
    by_step = results.by_arm["isolated"].ratio["without"].null_by_step
    rows = chart_on_page(opened, "ratio by step isolated")
    own = [r for r in rows if r["series"] == "null" and r["panel"] == "without slot 0"]
    kept = by_step.n > 0
    np.testing.assert_allclose([float(r["estimate"]) for r in own], by_step.estimate[kept])
    assert kept.any()


def test_the_bars_of_the_split_add_up_to_the_change_of_the_mass(opened: Visit, folder: Path):
    part = analyze(open_run(folder)).set_effects["without"].all_sets
    rows = [r for r in chart_on_page(opened, "split by layer") if r["panel"] == "all sets"]
    parts = {
        name: np.array([float(r["estimate"]) for r in rows if r["series"] == name])
        for name in ("score drift", "competition")
    }
    np.testing.assert_allclose(parts["score drift"], np.log(part.by_layer["drift"].estimate))
    np.testing.assert_allclose(parts["competition"], np.log(part.by_layer["competition"].estimate))
    total = sum(parts.values()).mean()
    assert total == pytest.approx(np.log(part.factor.total.estimate), abs=1e-6)
    assert opened.page.locator("#split_by_layer .bar").count() == 2 * 2 * 2


def test_the_foot_says_how_the_run_was_made(opened: Visit, folder: Path):
    run = open_run(folder)
    foot = opened.page.text_content("footer")
    facts = run.settings["model_facts"]
    versions = run.settings["versions"]
    for said in (facts["fingerprint"], facts["tokenizer_hash"], *versions.values()):
        assert str(said) in foot
    assert json.loads((folder / "run.json").read_text())["configuration_hash"] in foot


def test_the_path_of_a_tree_goes_from_child_to_parent(visit: Visit, tmp_path: Path):
    run = generate(
        tiny_model("llama"), PROMPTS[0], policy="tree", steps=5, eos="ignore", out=tmp_path
    )
    analyze(run).save(tmp_path)
    visit.open(tmp_path / "report.html")
    path = visit.page.evaluate("topPath(page.traces.get(page.arm))")
    parents = run[0].slots.parent
    assert all(parents[child] == parent for parent, child in pairwise(path))
    texts = [run[0].token_text(slot) for slot in path[1:]]
    assert run[0].text() == PROMPTS[0] + "".join(texts).replace("<pad>", "")


def test_an_address_that_means_nothing_shows_the_page_all_the_same(opened: Visit, folder: Path):
    nonsense = "#step=99&layer=abc&head=-1&arm=nobody&view=toString&measure=constructor&prompt=no"
    opened.complaints.clear()
    opened.open(folder / "report.html", nonsense)
    assert opened.page.text_content("#attention-title").endswith("at step 4, isolated")
    assert opened.page.locator("#attention .cell").count() > 0
    assert opened.complaints == []


def test_a_long_prompt_is_drawn_in_part_and_says_so(visit: Visit, tmp_path: Path):
    run = generate(tiny_model("llama"), "the cat sat " * 60, steps=1, layers="0", out=tmp_path)
    analyze(run).save(tmp_path)
    visit.open(tmp_path / "report.html", "#step=0")
    n_prompt = run[0].slots.n_prompt
    assert n_prompt**2 > 16000
    assert 0 < visit.page.locator("#attention .cell").count() <= 16000
    assert f"of {n_prompt} queries are drawn" in visit.page.text_content("#attention-note")
    assert len(rows_on_page(visit)) == n_prompt**2


def test_a_run_that_was_stopped_says_so(visit: Visit, tmp_path: Path):
    run = planted_run({"isolated": {"stopped": "running"}}, n_prompts=2)
    analyze(marked(run)).save(tmp_path)
    visit.open(tmp_path / "report.html")
    assert "Not finished: 2 of 2 traces" in visit.page.text_content("header")


@pytest.mark.parametrize("figure", ["lattice", "head map", "attention", "entropy by layer"])
def test_every_figure_is_saved_as_svg_and_png(opened: Visit, figure: str):
    svg = opened.saved(figure, "SVG")
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert len(list(root.iter())) > 20
    assert b"var(" not in svg
    assert opened.saved(figure, "PNG").startswith(b"\x89PNG")


def test_every_table_is_saved_as_the_file_beside_the_page(opened: Visit, folder: Path):
    files = sorted((folder / "tables").glob("*.csv"))
    assert len(files) >= 6
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    for file in files:
        assert opened.saved(f"table {file.stem.replace('_', ' ')}", "CSV") == file.read_bytes()


def hostile_run() -> Run:
    plans = {
        "isolated": {"widths": (3, 2), "words": HOSTILE, "rows": noisy(uniform, 0.3)},
        "greedy": {"widths": (1, 1), "relation": "greedy", "words": HOSTILE},
    }
    tokens = {"isolated": [0, 1, 2, 3, 4, 5, 6, 7, 0, 1], "greedy": [0, 1, 2, 3, 4, 5, 6]}
    for arm, ids in tokens.items():
        plans[arm]["tokens"] = ids
    return marked(planted_run(plans, n_prompts=2))


def test_hostile_tokens_are_text_and_nothing_else(visit: Visit, tmp_path: Path):
    run = hostile_run()
    analyze(run).save(tmp_path)
    visit.complaints.clear()
    visit.page.on("dialog", lambda dialog: visit.complaints.append(dialog.message))
    visit.open(tmp_path / "report.html")
    assert visit.complaints == []
    assert visit.page.locator("img").count() == 0
    assert visit.page.locator("script").count() == 4  # the run, two prompts, the page's own
    texts = visit.page.eval_on_selector_all("#lattice text", "all => all.map(t => t.textContent)")
    assert "<script>alert\u2026" in texts
    assert "\\u{202e}evil" in texts
    assert "\\u{200b}" in texts
    assert "{{\u00b77\u00b7*\u00b77\u00b7}}" in texts
    assert "&lt;b&gt;" in texts
    assert not any("\u202e" in text for text in texts)
    lattice = visit.saved("lattice", "CSV").decode()
    assert ",'=1+1," in lattice


def test_a_run_of_a_hundred_prompts_loads_each_on_demand(visit: Visit, tmp_path: Path):
    plan = {"widths": (2, 3, 1, 4), "n_layers": 30, "n_heads": 9, "rows": noisy(uniform, 1.0)}
    run = marked(planted_run({"isolated": plan}, n_prompts=100))
    analyze(run).save(tmp_path)
    assert len(list((tmp_path / "page").glob("*.js"))) == 99
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    visit.complaints.clear()
    visit.requests.clear()
    visit.open(tmp_path / "report.html")
    assert visit.page.locator("#prompt option").count() == 100
    assert not any("/page/" in url for url in visit.requests)
    visit.choose(prompt="p0057")
    visit.wait_until("page.prompt === 'p0057'")
    assert [url for url in visit.requests if "/page/" in url] == [
        (tmp_path / "page" / "p0057.js").as_uri()
    ]
    trace = run.trace("p0057", "isolated")
    visit.page.evaluate("page.choose({ step: 4, layer: 29, head: 7 })")
    shown = weights_on_page(visit, trace, 4)
    np.testing.assert_allclose(shown, trace.attention(4)[29, 7], rtol=RELATIVE)
    assert visit.complaints == []
    (tmp_path / "page" / "p0058.js").unlink()
    visit.choose(prompt="p0058")
    visit.wait_until("document.getElementById('status').textContent.includes('p0058.js')")
    assert visit.page.input_value("#prompt") == "p0057"
    assert "keep the folder with the page" in visit.page.text_content("#status")


def test_a_reduced_run_shows_its_sets_and_says_that_it_has_no_rows(visit: Visit, tmp_path: Path):
    run = generate(tiny_model("llama"), PROMPTS[0], steps=3, capture="reduced", out=tmp_path)
    analyze(run).save(tmp_path)
    visit.open(tmp_path / "report.html")
    assert "it holds no rows" in visit.page.text_content("#attention-note")
    assert not visit.page.locator("#attention").is_visible()


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_windows_and_learned_sinks_are_read_right(visit: Visit, tmp_path: Path, family: str):
    run = generate(tiny_model(family), "The cat sat on the mat", steps=3, out=tmp_path)
    analyze(run).save(tmp_path)
    visit.open(tmp_path / "report.html")
    trace = run[0]
    for layer in range(4):
        place = {"step": 3, "layer": layer, "head": 1}
        visit.page.evaluate("change => page.choose(change)", place)
        rows = visit.page.evaluate("attentionRows(page)")
        exact, seen = trace.attention(3)[layer, 1], trace.visible(3)[layer]
        shown = [[cell["weight"] for cell in row] for row in rows]
        np.testing.assert_allclose(shown, exact, rtol=RELATIVE, atol=1e-12)
        shares = [[cell["share"] for cell in row] for row in rows]
        whole = exact / exact.sum(-1, keepdims=True)
        np.testing.assert_allclose(shares, whole, rtol=2 * RELATIVE, atol=1e-12)
        chances = [[cell["chance"] for cell in row] for row in rows]
        np.testing.assert_allclose(chances, seen / seen.sum(-1, keepdims=True))


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark")])
def test_the_page_meets_wcag_aa_and_fits_its_window(
    browser: Any, folder: Path, width: int, scheme: str
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    sized = visit_in(browser, width=width, scheme=scheme)
    sized.open(folder / "report.html")
    sized.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    levels = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    report = axe.Axe().run(sized.page, options=levels).response
    assert [(one["id"], one["nodes"][0]["html"][:160]) for one in report["violations"]] == []
    assert sized.page.evaluate("document.documentElement.scrollWidth") <= width
    sized.page.close()


def test_dark_and_light_can_be_switched_and_paper_is_light(opened: Visit):
    page = opened.page
    surface = "getComputedStyle(document.querySelector('section')).backgroundColor"
    assert page.evaluate(surface) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.evaluate(surface) == "rgb(29, 32, 38)"
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(surface) == "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.locator("#attention svg").is_visible()
    page.emulate_media(media="screen")
