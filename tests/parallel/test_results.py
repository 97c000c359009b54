import json

import numpy as np
import pytest

from tempo.errors import InputError
from tempo.testing.planted import (
    favour_sets,
    noisy,
    planted_run,
    random_readout,
    uniform,
    with_sink,
)
from tempo.trace.run import Run
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import arms_of, pair_name
from tempo_analysis.parallel.results import FORMAT, Results, analyze
from tempo_analysis.report.document import plain
from tests.planted_runs import marked

KEYS = ["name", "arm", "estimate", "low", "high", "n", "chance", "null", "verdict"]
WIDTHS = (2, 1, 3, 1)
GREEDY = {"widths": (1, 1, 1, 1), "relation": "greedy", "rows": noisy(with_sink(0.6), 0.05)}
ISOLATED = {"widths": WIDTHS, "rows": noisy(with_sink(0.6, favour_sets(0.5)), 0.05)}
VISIBLE = {"widths": WIDTHS, "relation": "visible", "rows": noisy(with_sink(0.6), 0.05)}


def other_readout(seed: int, step: int) -> np.ndarray:
    return random_readout(seed + 500, step)


def whole_run(n_prompts: int = 9, **changed) -> Run:
    replay = VISIBLE | {"readouts": other_readout}
    arms = {"isolated": ISOLATED, "visible": VISIBLE, "greedy": GREEDY, "visible@isolated": replay}
    arms = {name: plan | changed.get(name, {}) for name, plan in arms.items()}
    settings = {"replays": {"visible@isolated": "isolated"}, "seed": 0}
    return marked(planted_run(arms, n_prompts=n_prompts, settings=settings))


@pytest.fixture(scope="module")
def found() -> Results:
    return analyze(whole_run())


def row(results: Results, name: str, arm: str) -> dict:
    rows = results.document()["metrics"]
    return next(each for each in rows if (each["name"], each["arm"]) == (name, arm))


def test_the_planted_ratio_stands_beside_its_chance_value_its_null_and_a_verdict(found):
    metric = row(found, "attention_ratio_without_sink", "isolated")
    assert metric["estimate"] == pytest.approx(0.5, rel=0.05)
    assert metric["low"] < metric["estimate"] < metric["high"]
    assert (metric["n"], metric["chance"]) == (9, 1.0)
    assert metric["null"] == pytest.approx(1, rel=0.05)
    assert metric["verdict"].startswith("below chance by")
    assert "lower than the null by" in metric["verdict"]
    over = row(found, "attention_ratio_without_sink_over_null", "isolated")
    assert over["estimate"] == pytest.approx(0.5, rel=0.05)
    assert (over["chance"], over["null"]) == (None, 1.0)


def test_an_arm_without_down_weighting_is_told_from_the_sink_artefact(found):
    with_it = row(found, "attention_ratio_with_sink", "visible")
    without_it = row(found, "attention_ratio_without_sink", "visible")
    assert with_it["verdict"].startswith("below chance")
    assert with_it["null"] < 0.5
    assert without_it["verdict"] == "within 10 % of chance; within 10 % of the null"


def test_isolation_is_exact_and_visible_members_see_each_other(found):
    isolated = row(found, "sibling_mass", "isolated")
    assert (isolated["estimate"], isolated["low"], isolated["high"]) == (0, 0, 0)
    assert (isolated["chance"], isolated["verdict"]) == (0, "equal to chance")
    visible = row(found, "sibling_mass", "visible")
    assert 0 < visible["estimate"] < visible["chance"]


def test_replay_arms_serve_the_comparison_of_readouts_only(found):
    assert found.arms == ("isolated", "visible", "greedy")
    assert found.replays == {"visible@isolated": "isolated"}
    metric = row(found, "readout_js", "isolated|visible")
    assert 0 < metric["low"] < metric["high"] < np.log(2)
    assert (metric["chance"], metric["verdict"]) == (0, "the readouts differ")
    assert not any(each.arm == "visible@isolated" for each in found.metrics)


def test_the_null_arm_is_described_and_not_compared_with_itself(found):
    names = [metric.name for metric in found.metrics if metric.arm == "greedy"]
    assert "attention_ratio_without_sink" not in names
    assert "sibling_mass" not in names
    metric = row(found, "mean_width", "greedy")
    assert (metric["estimate"], metric["null"]) == (1, None)
    assert metric["verdict"] == "this arm is the null"


def test_the_document_has_the_keys_of_the_contract(found):
    document = found.document()
    assert list(document) == ["format", "arms", "n_prompts", "metrics", "detail"]
    assert document["format"] == FORMAT == 1
    assert document["arms"] == ["isolated", "visible", "greedy"]
    assert document["n_prompts"] == 9
    assert all(list(metric) == KEYS for metric in document["metrics"])
    names = [(metric["name"], metric["arm"]) for metric in document["metrics"]]
    assert len(set(names)) == len(names)
    assert all(metric["verdict"] for metric in document["metrics"])
    assert set(document["detail"]["by_arm"]["isolated"]) == {
        "ratio",
        "entropy",
        "heads",
        "siblings",
        "widths",
    }


def test_the_document_is_json_and_the_same_for_the_same_run(found):
    assert json.loads(found.json()) == found.document()
    assert analyze(whole_run()).json() == found.json()
    assert "NaN" not in found.json()


def test_everything_but_finite_numbers_is_null_in_json():
    values = {1: [np.nan, np.inf, 1.5], "b": np.array([[np.nan, 2.0]]), "c": True, "d": None}
    assert plain(values) == {"1": [None, None, 1.5], "b": [[None, 2.0]], "c": True, "d": None}


def test_too_few_prompts_give_estimates_and_say_so():
    few = analyze(whole_run(3))
    metric = row(few, "attention_ratio_without_sink", "isolated")
    assert metric["estimate"] == pytest.approx(0.5, rel=0.1)
    assert (metric["low"], metric["high"], metric["n"]) == (None, None, 3)
    assert metric["verdict"] == "too few prompts for an interval (3 of 8)"
    assert row(few, "readout_js", "isolated|visible")["verdict"].startswith("too few prompts")


def test_reduced_traces_answer_what_they_can_and_refuse_the_rest():
    reduced = {"level": "reduced"}
    plan = dict.fromkeys(("isolated", "visible", "greedy", "visible@isolated"), reduced)
    some = analyze(whole_run(**plan))
    full = row(analyze(whole_run()), "attention_ratio_without_sink", "isolated")
    metric = row(some, "attention_ratio_without_sink", "isolated")
    assert metric["estimate"] == pytest.approx(full["estimate"], rel=1e-5)
    assert metric["null"] is None
    assert "no null: its traces were reduced" in metric["verdict"]
    assert some.by_arm["isolated"].heads is None
    questions = {(refusal.question, refusal.arm) for refusal in some.refusals}
    assert ("head_table", "isolated") in questions
    assert ("attention_ratio_null", "greedy") in questions


def test_a_run_without_greedy_has_no_null_and_says_so():
    found = analyze(planted_run({"isolated": ISOLATED}, n_prompts=9))
    metric = row(found, "attention_ratio_without_sink", "isolated")
    assert metric["null"] is None
    assert metric["verdict"].endswith("; no null: the run has no greedy arm")
    assert row(found, "mean_width", "isolated")["verdict"] == "no null: the run has no greedy arm"
    assert found.greedy is None


def test_an_arm_without_parallel_sets_has_no_ratio_and_no_zero():
    plans = {"isolated": ISOLATED | {"widths": (1, 1, 1)}, "greedy": GREEDY}
    found = analyze(planted_run(plans, n_prompts=9))
    metric = row(found, "attention_ratio_without_sink", "isolated")
    assert (metric["estimate"], metric["n"]) == (None, 0)
    assert metric["verdict"].startswith("no data: no row sees a slot of a parallel set")
    assert row(found, "sibling_mass", "isolated")["estimate"] is None
    assert found.by_arm["isolated"].ratio == {}
    assert "attention_ratio" in {refusal.question for refusal in found.refusals}


def test_replayed_tokens_that_differ_are_refused_and_the_rest_is_answered():
    found = analyze(whole_run(**{"visible@isolated": {"widths": (1, 2, 3, 1)}}))
    assert found.divergence == {}
    refusal = next(each for each in found.refusals if each.question == "twin")
    assert refusal.arm == "isolated|visible"
    assert "on 9 of 9 prompts: expected 'visible@isolated' to differ from 'isolated'" in (
        refusal.reason
    )
    assert row(found, "axes_changed", "isolated|visible")["verdict"].startswith("refused: on 9 of")
    assert row(found, "attention_ratio_without_sink", "isolated")["n"] == 9


def test_a_killed_run_is_analysed_as_far_as_it_goes():
    run = whole_run(10)
    traces = dict(run.traces)
    del traces["p0009", "isolated"], traces["p0008", "greedy"]
    cut = Run(run.prompts, run.arms, run.policies, traces, run.settings)
    found = analyze(cut)
    metric = row(found, "attention_ratio_without_sink", "isolated")
    over = row(found, "attention_ratio_without_sink_over_null", "isolated")
    assert (metric["n"], over["n"]) == (9, 8)
    assert row(found, "sink_mass", "greedy")["n"] == 9


def test_the_seed_of_the_run_decides_the_bootstrap():
    plan = ISOLATED | {"widths": (2, 1), "n_layers": 1, "n_heads": 1}
    runs = [
        planted_run({"isolated": plan}, n_prompts=30, settings={"seed": seed}) for seed in (5, 6)
    ]
    lows = [row(analyze(run), "sink_mass", "isolated")["low"] for run in runs]
    assert lows[0] != lows[1]


def test_a_run_without_traces_is_refused():
    run = planted_run({"isolated": ISOLATED}, n_prompts=1)
    empty = Run(run.prompts, run.arms, run.policies, {}, {})
    with pytest.raises(InputError, match="got a run without a decoded trace"):
        analyze(empty)


def test_traces_of_different_shape_are_refused():
    plans = {"isolated": ISOLATED, "greedy": GREEDY | {"n_heads": 3}}
    with pytest.raises(InputError, match="same layers and heads, got 2 different choices"):
        analyze(planted_run(plans, n_prompts=2))


def test_arms_get_their_parts_from_the_data():
    arms = arms_of(whole_run(1))
    assert (arms.parallel, arms.greedy) == (("isolated", "visible"), "greedy")
    assert pair_name("isolated", "visible@isolated") == "isolated|visible"
    renamed = planted_run({"plain": GREEDY, "isolated": ISOLATED}, n_prompts=1)
    assert arms_of(renamed).greedy == "plain"


def test_each_trace_is_read_once():
    class Counting(dict):
        asked = 0

        def __getitem__(self, name):
            Counting.asked += name.endswith("/weights")
            return super().__getitem__(name)

    plans = {"isolated": ISOLATED, "visible": VISIBLE, "greedy": GREEDY}
    run = planted_run(plans, n_prompts=2)
    traces = {key: Trace(t.header, Counting(t.tensors)) for key, t in run.traces.items()}
    analyze(Run(run.prompts, run.arms, run.policies, traces, {}))
    assert Counting.asked == sum(trace.n_steps for trace in run)


def test_even_attention_is_judged_even():
    plans = {"isolated": {"rows": noisy(uniform, 1e-9)}, "greedy": GREEDY | {"rows": uniform}}
    found = analyze(planted_run(plans, n_prompts=30))
    metric = row(found, "attention_ratio_without_sink", "isolated")
    assert metric["verdict"] == "within 10 % of chance; within 10 % of the null"
