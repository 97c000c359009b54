"""The split of a paired run: planted truth, the verdict over it, refusals, table and figure."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tempo
from tempo.cli.run_results import headlines, refusals_of_pairs
from tempo.testing.planted import both, by_token, favour_sets, uniform
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import arms_of
from tempo_analysis.parallel.figures import split_figure
from tempo_analysis.parallel.report import report_text
from tempo_analysis.parallel.results import Results, analyze
from tempo_analysis.parallel.set_effect import UNPAIRED, decomposition, prompt_split, set_effects
from tempo_analysis.parallel.tables import tables_of
from tests.decoding import model_of
from tests.planted_runs import paired_run

FACTOR = 0.5
ENOUGH = 50
WIDE = (2, 2, 3, 2, 1)  # four sets that a query reads: enough for a claim
PLANTED = {"widths": WIDE, "n_layers": 2, "n_heads": 1}


def metric(results: Results, name: str, arm: str = "isolated"):
    (found,) = (each for each in results.metrics if (each.name, each.arm) == (name, arm))
    return found


def without_twin(run: Run, prompt_id: str, name: str) -> Run:
    key = (prompt_id, f"alone@isolated/{name}")
    return replace(run, traces={k: trace for k, trace in run.traces.items() if k != key})


@pytest.fixture(scope="module")
def diluted() -> Results:
    return analyze(paired_run(ENOUGH, rows=by_token(), **PLANTED))


@pytest.fixture(scope="module")
def weighted_run() -> Run:
    return paired_run(ENOUGH, rows=both(by_token(), favour_sets(FACTOR)), **PLANTED)


@pytest.fixture(scope="module")
def weighted(weighted_run: Run) -> Results:
    return analyze(weighted_run)


# --- planted truth


def test_independent_odds_are_dilution_and_nothing_else(diluted: Results):
    for name in ("score_drift", "mass_elsewhere", "first_score_drift", "score_drift_with_sink"):
        row = metric(diluted, name)
        assert row.interval.estimate == pytest.approx(1, abs=1e-4)
        assert row.verdict == "within 10 % of a token alone"
    competition = metric(diluted, "competition").interval
    predicted = metric(diluted, "dilution_predicted").interval
    assert competition.estimate == pytest.approx(predicted.estimate, rel=1e-4)
    assert competition.high < 0.99
    assert metric(diluted, "set_gain").interval.low > 1
    assert metric(diluted, "parallel_verdict").verdict.startswith("dilution only (mass lower by")


def test_planted_down_weighting_is_the_drift_and_the_verdict(weighted: Results):
    row = metric(weighted, "score_drift")
    assert row.interval.estimate == pytest.approx(FACTOR, rel=1e-4)
    assert row.verdict == "lower than a token alone by 50 %"
    text = metric(weighted, "parallel_verdict").verdict
    assert text.startswith("down-weighted by 50 % (beyond the 10 % margin); row ratio")


def test_the_numbers_are_those_of_the_decomposition(weighted: Results, weighted_run: Run):
    for sink, suffix in (("without", ""), ("with", "_with_sink")):
        splits = [
            prompt_split(
                weighted_run.trace(prompt.id, "isolated"),
                weighted_run.alone(prompt.id),
                reference=sink,
            )
            for prompt in weighted_run.prompts
        ]
        found = decomposition(splits)
        effect = weighted.set_effects[sink]
        assert (effect.n_sets, effect.n_members, effect.n_left_out) == (200, 50 * 9, 0)
        for prefix, split in (("", found.all_sets), ("first_", found.first)):
            expected = split.interval.competition.exponentiated()
            assert metric(weighted, f"{prefix}competition{suffix}").interval == expected


def test_parts_multiply_to_the_gain_of_a_member(weighted: Results):
    values = {
        name: metric(weighted, name).interval.estimate
        for name in ("member_gain", "score_drift", "competition", "dilution_predicted")
    }
    elsewhere = metric(weighted, "mass_elsewhere").interval.estimate
    assert values["member_gain"] == pytest.approx(values["score_drift"] * values["competition"])
    assert values["competition"] == pytest.approx(values["dilution_predicted"] * elsewhere)
    assert metric(weighted, "parallel_verdict").interval.estimate == values["member_gain"]


def test_the_bands_by_layer_hold_all_layers_at_once(weighted: Results):
    part = weighted.set_effects["without"].all_sets
    assert set(part.by_layer) == {"drift", "competition", "predicted"}
    for curve in part.by_layer.values():
        assert curve.simultaneous
        assert curve.x.tolist() == [0, 1]
    np.testing.assert_allclose(part.by_layer["drift"].estimate, FACTOR, rtol=1e-4)


def test_heads_with_a_drift_are_counted(weighted: Results):
    part = weighted.set_effects["without"].all_sets
    down = np.array([[-0.5], [0.5]])
    assert replace(
        part, drift_by_head=down, q_value_by_head=np.array([[0.01], [0.2]])
    ).heads_off_alone() == (1, 0, 2)
    assert replace(
        part, drift_by_head=down, q_value_by_head=np.array([[np.nan], [0.01]])
    ).heads_off_alone() == (0, 1, 1)


def test_every_row_has_a_chance_a_verdict_and_no_twin_of_its_name(weighted: Results):
    rows = [each for each in weighted.metrics if each.unit == "factor" and each.arm == "isolated"]
    assert len(rows) == 21
    assert len({each.name for each in rows}) == 21
    assert all(each.chance == 1 and each.verdict for each in rows)


# --- refusals


def test_a_run_that_was_not_paired_is_refused_in_words():
    run = paired_run()
    settings = dict(run.settings) | {"alone_of": None}
    unpaired = replace(
        run,
        settings=settings,
        arms=tuple(arm for arm in run.arms if arm != "alone@isolated"),
        traces={key: one for key, one in run.traces.items() if not key[1].startswith("alone")},
    )
    results = analyze(unpaired)
    (refusal,) = (each for each in results.refusals if each.question == "split")
    assert (refusal.arm, refusal.reason) == ("isolated", UNPAIRED)
    assert results.set_effects == {}
    assert not any(each.name == "parallel_verdict" for each in results.metrics)
    assert refusals_of_pairs(results) == []
    assert "which this run does not hold" in report_text(unpaired, results, ())


def test_no_parallel_set_is_refused_in_words():
    results = analyze(paired_run(widths=(1, 1, 1)))
    row = metric(results, "parallel_verdict")
    assert row.interval.n == 0
    assert np.isnan(row.interval.estimate)
    assert row.verdict.startswith("no verdict: expected a set of width 2 or more")
    (line,) = refusals_of_pairs(results)
    assert line.startswith("not answered: split, isolated: expected a set of width 2 or more")


def test_a_twin_that_differs_by_more_than_siblings_is_refused():
    run = paired_run()
    other = paired_run(rows=uniform, prompt_length=4)
    key = ("p0000", "alone@isolated/01.0")
    broken = replace(run, traces=dict(run.traces) | {key: other.traces[key]})
    results = analyze(broken)
    (refusal,) = (each for each in results.refusals if each.question == "split")
    assert "that differs by its missing siblings only" in refusal.reason
    assert results.set_effects == {}
    assert metric(results, "parallel_verdict").verdict == f"no verdict: {refusal.reason}"


def test_reduced_traces_cannot_be_split():
    results = analyze(paired_run(level="reduced"))
    assert "'weights'" in metric(results, "parallel_verdict").verdict
    assert results.set_effects == {}


def test_a_set_that_lacks_a_twin_is_left_out_and_counted():
    run = paired_run()
    effects, refusals = set_effects(without_twin(run, "p0000", "03.1"), arms_of(run))
    assert (effects["without"].n_sets, effects["without"].n_left_out) == (17, 1)
    key = ("p0001", "alone@isolated/03.0")
    header = replace(run.traces[key].header, stopped="running")
    cut = replace(run.traces[key], header=header)
    unfinished = replace(run, traces=dict(run.traces) | {key: cut})
    effects, _ = set_effects(unfinished, arms_of(run))
    assert (effects["without"].n_sets, effects["without"].n_left_out) == (17, 1)
    assert refusals == []
    text = report_text(unfinished, analyze(unfinished), ())
    assert "1 sets lack a twin and were left out" in text


def test_too_few_prompts_give_estimates_and_no_verdict():
    results = analyze(paired_run(3, rows=by_token()))
    row = metric(results, "score_drift")
    assert row.interval.estimate == pytest.approx(1, abs=1e-4)
    assert np.isnan(row.interval.low)
    assert row.verdict == "too few prompts for an interval (3 of 8)"
    assert metric(results, "parallel_verdict").verdict.startswith("no verdict: row ratio over its")


def test_a_few_dozen_prompts_are_too_few_for_a_claim():
    text = metric(analyze(paired_run(9, rows=by_token())), "parallel_verdict").verdict
    assert text == "too little data for a claim (9 of 50 prompts, 18 of 200 sets)"


def test_without_a_null_there_is_no_verdict():
    text = metric(analyze(paired_run(greedy=False)), "parallel_verdict").verdict
    assert text == "no verdict: no null: the run has no greedy arm"


def test_a_prompt_of_one_token_has_no_reference_without_slot_0():
    results = analyze(paired_run(prompt_length=1, rows=by_token()))
    assert metric(results, "score_drift").verdict == "no data"
    assert metric(results, "score_drift_with_sink").interval.n == 9


# --- report, table, figure


def test_the_report_tells_what_changed_and_what_a_set_does(
    weighted: Results, weighted_run: Run, tmp_path: Path
):
    weighted.save(tmp_path)
    path = tmp_path / "report.md"
    text = path.read_text()
    assert "\n## Twins: the same tokens, one thing changed\n" in text
    assert "| visible@isolated | relation changed, nothing else | 50 |" in text
    assert "\n## What a set does to the attention its members get\n" in text
    assert f"**{metric(weighted, 'parallel_verdict').verdict}**" in text
    assert "200 sets with 450 members were split." in text
    assert "| score drift, without slot 0 | 0.5 (0.5 to 0.5) | 50 | 0.5 (0.5 to 0.5) | 50 |" in text
    assert (tmp_path / "figures" / "split_by_layer.png").stat().st_size > 5000
    assert "nan" not in text.lower()


def test_a_refused_twin_stands_in_the_table():
    plan = {"relation": "visible", "positions": "unique"}
    run = paired_run(twins={"visible@isolated": plan})
    results = analyze(run)
    text = report_text(run, results, ())
    assert "| visible@isolated | refused, see above | 0 |" in text
    assert "- twin, isolated|visible: on 9 of 9 prompts: expected 'visible@isolated'" in text
    assert refusals_of_pairs(results)[0].startswith("not answered: twin, isolated|visible: on 9")


def test_the_table_of_the_split_shows_both_references(weighted_run: Run, weighted: Results):
    tables = {table.name: table for table in tables_of(weighted_run, weighted)}
    names = [row["name"] for row in tables["split"].rows]
    assert len(names) == len(set(names)) == 10
    assert names[1] == "score drift, without slot 0"
    assert names[7] == "score drift, with slot 0"


def test_the_figure_draws_what_was_found(weighted: Results):
    effect = weighted.set_effects["without"]
    figure = split_figure(effect)
    assert [axes.get_title() for axes in figure.axes] == [
        "isolated, first sets",
        "isolated, all sets",
    ]
    drawn = [line.get_ydata() for line in figure.axes[1].lines]
    for curve in effect.all_sets.by_layer.values():
        assert any(np.array_equal(y, curve.estimate) for y in drawn)
    assert "all layers at once" in figure.get_suptitle()
    few = analyze(paired_run(3)).set_effects["without"]
    assert "too few prompts for bands" in split_figure(few).get_suptitle()


def test_the_terminal_shows_the_paired_rows_and_the_verdict(weighted: Results):
    shown = [(each.name, each.arm) for each in headlines(weighted.metrics)]
    assert ("parallel_verdict", "isolated") in shown
    assert ("axes_changed", "isolated|visible") in shown
    assert ("readout_js", "isolated|visible") in shown


# --- a tiny model


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Run:
    prompts = [[10 + n, 12, 13, 14, 15] for n in range(9)]
    return tempo.compare(
        model_of("llama"),
        prompts,
        arms=["isolated", "visible", "greedy"],
        threshold=0.05,
        steps=3,
        paired=True,
        out=tmp_path_factory.mktemp("paired") / "run",
    )


def test_a_model_has_no_drift_at_its_first_layer(on_disk: Run):
    """Isolated members have the queries, keys and offsets there that they have alone."""
    results = analyze(on_disk)
    effect = results.set_effects["without"]
    for part in (effect.first, effect.all_sets):
        assert part.by_layer["drift"].estimate[0] == pytest.approx(1, abs=1e-4)
        predicted = part.by_layer["predicted"].estimate[0]
        assert part.by_layer["competition"].estimate[0] == pytest.approx(predicted, abs=1e-4)
    assert metric(results, "competition").interval.high < 1
    assert effect.n_left_out == 0


def test_no_more_than_the_traces_of_a_prompt_are_held(on_disk: Run, monkeypatch):
    held: list[int] = []
    alone = Run.alone

    def counting(self: Run, prompt_id: str):
        found = alone(self, prompt_id)
        held.append(len(found))
        return found

    monkeypatch.setattr(Run, "alone", counting)
    set_effects(on_disk, arms_of(on_disk))
    assert len(held) == 9
    assert sum(held) == sum(arm.startswith("alone@") for _, arm in on_disk.traces)


def test_the_results_of_a_run_on_disk_are_the_same_each_time(on_disk: Run):
    assert analyze(on_disk).json() == analyze(tempo.open_run(str(on_disk.folder))).json()
