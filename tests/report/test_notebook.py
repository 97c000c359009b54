from dataclasses import replace

import pytest

from tempo.testing.planted import planted_run
from tempo_analysis.parallel.results import Results, analyze, results_markup
from tempo_analysis.report.notebook import MOST_ROWS
from tempo_analysis.stats.intervals import Interval, Unanswered
from tests.planted_runs import marked
from tests.trace.test_notebook import HOSTILE, Page

NAN = float("nan")


@pytest.fixture(scope="module")
def results() -> Results:
    plans = {"isolated": {}, "greedy": {"widths": (1, 1, 1), "relation": "greedy"}}
    return analyze(marked(planted_run(plans, n_prompts=9)))


def test_every_number_stands_beside_its_interval_chance_null_and_verdict(results: Results):
    page = Page(results._repr_html_())
    assert "Results of 9 prompts." in page.text
    assert page.of("td").count("isolated") == sum(one.arm == "isolated" for one in results.metrics)
    for metric in results.metrics:
        assert metric.name in page.of("th")
        assert metric.verdict in page.of("td")
    headings = ["metric", "arm", "estimate (95 %)", "prompts", "chance", "null", "verdict"]
    assert page.of("th")[:7] == headings


def test_no_data_is_a_dash_and_an_estimate_without_limits_stands_alone(results: Results):
    nothing, few = Interval(NAN, NAN, NAN, 0, "no data"), Interval(0.5, NAN, NAN, 3, "too few")
    metrics = [replace(results.metrics[0], interval=one, null=NAN) for one in (nothing, few)]
    cells = Page(results_markup(metrics, (), n_prompts=3)).of("td")
    assert cells[1::6] == ["–", "0.5"]
    assert cells[4::6] == ["–", "–"]


def test_what_was_refused_is_said(results: Results):
    assert results.refusals
    items = Page(results._repr_html_()).of("li")
    assert items == [f"{one.question}, {one.arm}: {one.reason}" for one in results.refusals]
    assert "Not answered" not in Page(results_markup(results.metrics, (), n_prompts=9)).text


def test_hostile_names_and_reasons_are_shown_as_text(results: Results):
    metrics = [replace(results.metrics[0], arm=text, verdict=text) for text in HOSTILE]
    refusals = [Unanswered("split", text, text) for text in HOSTILE]
    markup = results_markup(metrics, refusals, n_prompts=1)
    page = Page(markup)
    allowed = {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert {tag for tag, _ in page.elements} <= allowed
    names = {name for _, attributes in page.elements for name in attributes}
    assert names <= {"style", "scope", "role", "tabindex", "aria-label"}
    assert page.text.count(HOSTILE[0]) == 4
    assert not any(character in markup for character in "\u202e\u200b")


def test_a_long_table_is_cut_and_counted(results: Results):
    metrics = results.metrics[:1] * (MOST_ROWS + 5)
    refusals = [Unanswered("split", "isolated", "no data")] * (MOST_ROWS + 7)
    page = Page(results_markup(metrics, refusals, n_prompts=9))
    assert page.text.count(metrics[0].name) == MOST_ROWS
    assert "5 more numbers are in metrics." in page.text
    assert "and 7 more, in refusals" in page.text


def test_results_print_in_one_line_however_many_numbers_they_hold(results: Results):
    assert repr(results).startswith("Results(arms=('isolated', 'greedy')")
    assert "n_prompts=9" in repr(results)
    assert len(repr(results)) < 300
