"""What every study owes: its document, tables, figures, and a page that passes one set of checks.

Each study is asked once, by its command, in the small way of the goldens; what its own numbers and
its own page say is the business of its own tests.
"""

import csv
import io
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.browser import Visit, started_browser, visit_in
from tests.test_golden import make

DOCUMENTS = {
    "compare": "results.json",
    "heads": "heads.json",
    "concepts": "quality.json",
    "ablate": "ablation.json",
    "boost": "boost.json",
    "follow": "follow.json",
}
LEVELS = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
KINDS = ("svg", "png")
SURFACE = "getComputedStyle(document.querySelector('section')).backgroundColor"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(29, 32, 38)"


@pytest.fixture(scope="module", params=DOCUMENTS)
def study(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a study writes."""
    place = tmp_path_factory.mktemp("contract") / study
    make(study, place)
    return place


@pytest.fixture
def paged(study: str, folder: Path) -> Path:
    """The folder of a study that makes a page."""
    if study == "concepts" and not (folder / "report.html").exists():
        pytest.skip("concepts makes no page")
    return folder


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    with started_browser() as started:
        yield started


def visit_page(browser: Any, folder: Path, **window: Any) -> Visit:
    """The page of a study, with everything on it unfolded."""
    visit = visit_in(browser, **window)
    visit.page.goto((folder / "report.html").as_uri())
    visit.page.wait_for_load_state("load")
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    return visit


def test_the_document_is_json_with_a_format_number(study: str, folder: Path):
    found = json.loads((folder / DOCUMENTS[study]).read_text(), parse_constant=pytest.fail)
    assert isinstance(found["format"], int)
    assert study == "compare" or found["kind"].startswith("tempo-")


def test_every_table_has_a_header_and_rows_of_its_width(folder: Path):
    files = sorted((folder / "tables").glob("*.csv"))
    assert files
    for file in files:
        header, *rows = csv.reader(io.StringIO(file.read_text(encoding="utf-8")))
        assert len(set(header)) == len(header), file.name
        assert {len(row) for row in rows} <= {len(header)}, file.name


def test_every_figure_is_drawn_twice(folder: Path):
    drawn = {kind: {one.stem for one in (folder / "figures").glob(f"*.{kind}")} for kind in KINDS}
    assert drawn["svg"] == drawn["png"] != set()
    for file in (folder / "figures").iterdir():
        if file.suffix == ".svg":
            assert len(list(ElementTree.parse(file).iter())) > 20, file.name
        else:
            assert file.read_bytes().startswith(b"\x89PNG"), file.name


def test_the_page_loads_without_a_complaint_and_asks_nobody(browser: Any, paged: Path):
    visit = visit_page(browser, paged)
    own = (paged / "report.html").as_uri()
    asked = [url for url in visit.requests if url.partition("#")[0] not in (own, "about:blank")]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == []
    assert visit.complaints == []
    policy = "document.querySelector('meta[http-equiv=Content-Security-Policy]').content"
    assert visit.page.evaluate(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert visit.page.title().startswith("tempo")
    visit.page.close()


def test_what_the_policy_of_the_page_forbids_does_not_run(browser: Any, paged: Path):
    visit = visit_page(browser, paged)
    visit.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
        }"""
    )
    assert not visit.page.evaluate("window.ran === true")
    assert any("Content Security Policy" in said for said in visit.complaints)
    visit.page.close()


# both widths and both schemes; the styles of a width and of a scheme do not meet
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_the_page_meets_wcag_aa_and_fits_its_window(
    browser: Any, paged: Path, width: int, scheme: str
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    sized = visit_page(browser, paged, width=width, scheme=scheme)
    report = axe.Axe().run(sized.page, options=LEVELS).response
    assert [(one["id"], one["nodes"][0]["html"][:160]) for one in report["violations"]] == []
    assert sized.page.evaluate("document.documentElement.scrollWidth") <= width
    sized.page.close()


def test_every_table_on_the_page_is_saved_as_the_file_beside_it(browser: Any, paged: Path):
    visit = visit_page(browser, paged)
    shown = visit.page.eval_on_selector_all(
        "table[data-name]", "all => all.map(t => t.dataset.name)"
    )
    assert shown
    assert set(shown) <= {file.stem for file in (paged / "tables").glob("*.csv")}
    for name in shown:
        file = paged / "tables" / f"{name}.csv"
        assert visit.saved(f"table {name.replace('_', ' ')}", "CSV") == file.read_bytes()
    visit.page.close()


def test_dark_and_light_can_be_switched_and_paper_is_light(browser: Any, paged: Path):
    visit = visit_page(browser, paged)
    assert visit.page.evaluate(SURFACE) == LIGHT
    visit.page.click("#theme")
    assert visit.page.evaluate(SURFACE) == DARK
    visit.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert visit.page.evaluate(SURFACE) == LIGHT
    visit.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert visit.page.evaluate(SURFACE) == DARK
    visit.page.close()
