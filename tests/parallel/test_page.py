"""The page without a browser: what is packed, what is written where."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tempo_analysis
from tempo.errors import OutputError
from tempo.testing.planted import noisy, planted_run, planted_trace, with_sink
from tempo_analysis.parallel.page import MOST_BYTES, SCRIPTS, prompt_document, write_page
from tempo_analysis.parallel.results import analyze
from tempo_analysis.parallel.tables import tables_of
from tempo_analysis.report.packing import CODES, pack_weights, unpack_weights
from tempo_analysis.report.study_page import STUDY_SCRIPTS
from tempo_analysis.studies.heads.page import CENSUS_SCRIPTS
from tests.planted_runs import marked

SKEWED = noisy(with_sink(0.6), 1.5)


def drawn(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.exp(-np.minimum(rng.exponential(4, n), 20)).astype(np.float32)


@given(seed=st.integers(0, 1000), n=st.integers(0, 200))
def test_packed_weights_come_back_within_the_error_they_state(seed: int, n: int):
    weights = drawn(seed, n)
    weights[::3] = 0
    packed = pack_weights([weights], most_bytes=10**9)
    found = unpack_weights(packed)
    assert packed.relative_error < 2.2e-4
    np.testing.assert_array_equal(found == 0, weights == 0)
    np.testing.assert_allclose(found, weights, rtol=1.001 * packed.relative_error)


def test_a_weight_too_small_to_tell_apart_is_not_taken_for_nothing():
    found = unpack_weights(pack_weights([np.array([1e-30, 0, 1], np.float32)], most_bytes=99))
    np.testing.assert_allclose(found, [2.0**-40, 0, 1], rtol=1e-6)


def test_weights_are_rounded_more_only_where_they_would_take_too_much():
    weights = [drawn(1, 50_000)]
    fine = pack_weights(weights, most_bytes=10**9)
    coarse = pack_weights(weights, most_bytes=fine.n_bytes - 1)
    assert (fine.levels, coarse.levels) == (CODES[0][0], CODES[1][0])
    assert coarse.n_bytes < fine.n_bytes
    assert pack_weights(weights, most_bytes=0).levels == CODES[-1][0]
    found = unpack_weights(coarse)
    np.testing.assert_allclose(found, weights[0], rtol=1.001 * coarse.relative_error)


def test_a_trace_without_rows_has_none_on_the_page():
    run = marked(planted_run({"isolated": {"level": "reduced"}}, n_prompts=1))
    found = prompt_document(run, "p0000", ["isolated"])
    assert found["arms"]["isolated"]["rows"] is None
    assert len(found["arms"]["isolated"]["slots"]["token"]) == 11


@pytest.mark.parametrize(
    ("widths", "levels"),
    [((1, 2, 3, 2, 1) * 4, CODES[0][0]), ((8,) * 20, CODES[-1][0])],
    ids=["usual sets", "widest sets"],
)
def test_twenty_sets_of_thirty_layers_of_nine_heads_take_less_than_5_mb(
    tmp_path: Path, widths: tuple[int, ...], levels: int
):
    plan = {"widths": widths, "n_layers": 30, "n_heads": 9, "rows": SKEWED, "prompt_length": 12}
    run = marked(planted_run({"isolated": plan}, n_prompts=1))
    results = analyze(run)
    page = write_page(run, results, tables_of(run, results), tmp_path)
    assert page.stat().st_size < 5_000_000
    assert not (tmp_path / "page").exists()
    (embedded,) = re.findall(r'class="prompt"[^>]*>(.*?)</script>', page.read_text())
    rows = json.loads(embedded)["arms"]["isolated"]["rows"]
    assert len(rows["data"]) <= MOST_BYTES
    assert rows["levels"] == levels


def test_what_an_earlier_page_left_beside_it_goes(tmp_path: Path):
    run = marked(planted_run({"isolated": {}}, n_prompts=1))
    results = analyze(run)
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "p0099.js").write_text("old")
    write_page(run, results, tables_of(run, results), tmp_path)
    assert not (tmp_path / "page").exists()


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path):
    run = marked(planted_run({"isolated": {}}, n_prompts=1))
    results = analyze(run)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_page(run, results, tables_of(run, results), tmp_path / "file")


def test_nothing_of_a_prompt_can_end_the_script_that_holds_it(tmp_path: Path):
    words = dict.fromkeys(range(400), "</script><script>alert(1)</script>")
    run = marked(planted_run({"isolated": {"words": words}}, n_prompts=1))
    results = analyze(run)
    text = write_page(run, results, tables_of(run, results), tmp_path).read_text()
    assert text.count("</script>") == 3
    assert "alert(1)</script>" not in text


def test_the_page_names_no_other_place(tmp_path: Path):
    run = marked(planted_run({"isolated": {}}, n_prompts=1))
    results = analyze(run)
    text = write_page(run, results, tables_of(run, results), tmp_path).read_text()
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) == {"http://www.w3.org/2000/svg"}


def test_scripts_are_short_and_leave_nothing_for_later():
    known = {*SCRIPTS, *CENSUS_SCRIPTS, *STUDY_SCRIPTS}
    assert set(Path(tempo_analysis.__file__).parent.rglob("*.js")) == known
    for script in known:
        text = script.read_text()
        assert len(text.splitlines()) <= 300
        assert not re.search(r"TODO|FIXME|innerHTML|document\.write|eval\(", text)


def test_the_pruned_are_marked_in_the_slots_of_the_page():
    trace = planted_trace()
    run = marked(planted_run({"isolated": {}}, n_prompts=1))
    slots = prompt_document(run, "p0000", ["isolated"])["arms"]["isolated"]["slots"]
    assert slots["died_at_step"] == [-1] * len(trace.slots)
    assert slots["probability"][:5] == [None] * 5
