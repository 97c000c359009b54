"""Twins on identical tokens: planted effects, what changed, and every refusal."""

from dataclasses import replace

import numpy as np
import pytest

import tempo
from tempo.errors import TwinError
from tempo.testing.planted import favour_sets, noisy, random_readout, uniform, with_sink
from tempo.trace.run import Run
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import arms_of
from tempo_analysis.parallel.divergence import MEASURES, prompt_divergence
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.results import Results, analyze
from tempo_analysis.parallel.twins import OTHER_TOKENS, Twin, prompt_twin, row_numbers, twins_of
from tests.decoding import model_of
from tests.planted_runs import paired_run, with_fingerprint

TWIN = "visible@isolated"
FACTOR = 0.5
PROMPTS = [[11, 12, 13, 14, 15], [20, 21, 22, 23]]
ARMS = ["isolated", "visible", "unique", "duplicates:2", "greedy"]


def twin_of(run: Run, arm: str = TWIN) -> Twin:
    return twins_of(run, arms_of(run))[0][arm]


def metric(results: Results, name: str, arm: str = "isolated|visible"):
    found = [each for each in results.metrics if (each.name, each.arm) == (name, arm)]
    assert len(found) == 1, (name, arm)
    return found[0]


def with_trace(run: Run, key: tuple[str, str], trace: Trace | None) -> Run:
    traces = {name: one for name, one in run.traces.items() if name != key}
    return replace(run, traces=traces if trace is None else traces | {key: trace})


# --- planted truth


@pytest.mark.parametrize("sink", [lambda rows: rows, lambda rows: with_sink(0.6, rows)])
def test_a_planted_change_is_the_ratio_of_the_twin_over_its_reference(sink):
    plan = {"relation": "visible", "rows": sink(favour_sets(FACTOR))}
    run = paired_run(rows=sink(uniform), twins={TWIN: plan})
    ratio = twin_of(run).ratio["without"]
    assert ratio.estimate == pytest.approx(FACTOR, rel=1e-4)
    assert (ratio.n, ratio.low) == (9, pytest.approx(FACTOR, rel=1e-4))


def test_a_planted_sink_is_the_change_of_the_masses():
    plan = {"relation": "visible", "rows": with_sink(0.8)}
    mass = twin_of(paired_run(rows=with_sink(0.5), twins={TWIN: plan})).mass
    assert mass["sink"].estimate == pytest.approx(0.3, abs=1e-6)
    assert mass["sets"].estimate < -0.05


def test_a_twin_that_does_the_same_shows_no_difference():
    run = paired_run(rows=noisy(uniform, 0.3), twins={TWIN: {}})
    results = analyze(run)
    assert metric(results, "axes_changed").verdict == "nothing changed"
    for sink in ("without", "with"):
        row = metric(results, f"paired_ratio_{sink}_sink")
        assert (row.interval.estimate, row.chance) == (1.0, 1.0)
        assert row.verdict == "no difference beyond rounding"
    for name in ("readout_js", "readout_cosine", "readout_top_1_overlap", "sink_mass_change"):
        row = metric(results, name)
        assert row.interval.estimate == pytest.approx(row.chance)
        assert row.verdict == "no difference beyond rounding"


def test_readouts_are_those_of_the_divergence():
    other = {"relation": "visible", "readouts": lambda seed, step: random_readout(seed + 9, step)}
    run = paired_run(twins={TWIN: other})
    twin = twin_of(run)
    pairs = [prompt_divergence(*both) for _, both in run.pairs("isolated", TWIN)]
    means = np.mean([pair.overall() for pair in pairs], axis=0)
    for name, mean in zip(MEASURES, means, strict=True):
        assert twin.readouts[name].estimate == pytest.approx(mean)
    assert twin.by_step is not None
    assert twin.by_step.js.n[0] == 9


def test_readouts_before_the_first_set_do_not_count():
    other = {"readouts": lambda seed, step: random_readout(seed + 9 * (step < 3), step)}
    run = paired_run(widths=(1, 1, 2, 1), twins={TWIN: other})
    twin = twin_of(run)
    assert twin.by_step is not None
    assert twin.by_step.js.n.tolist() == [0, 0, 9, 9]
    assert twin.readouts["js"].estimate == pytest.approx(0, abs=1e-12)


def test_other_positions_are_compared_too():
    run = paired_run(twins={"unique@isolated": {"positions": "unique"}})
    twin = twin_of(run, "unique@isolated")
    assert (twin.axes, twin.pair) == (("positions",), "isolated|unique")
    assert twin.readouts["js"].n == 9
    row = metric(analyze(run), "axes_changed", "isolated|unique")
    assert row.verdict == "positions changed, nothing else"
    assert row.interval.estimate == 1


def test_reduced_traces_have_a_paired_ratio_too():
    plan = {"relation": "visible", "rows": favour_sets(FACTOR)}
    run = paired_run(twins={TWIN: plan}, level="reduced")
    assert twin_of(run).ratio["without"].estimate == pytest.approx(FACTOR, rel=1e-4)


def test_sets_without_any_weight_give_no_interval_and_no_warning():
    plan = {"relation": "visible", "rows": favour_sets(0.0)}
    ratio = twin_of(paired_run(twins={TWIN: plan})).ratio["without"]
    assert ratio.estimate == 0
    assert np.isnan(ratio.low)
    same = twin_of(paired_run(rows=favour_sets(0.0), twins={TWIN: plan})).ratio["without"]
    assert (same.n, same.n_dropped) == (0, 9)


# --- refusals


def test_a_twin_in_which_more_changes_is_refused_on_any_prompt():
    run = paired_run()
    both = {"relation": "visible", "positions": "unique"}
    broken = paired_run(twins={TWIN: both})
    key = ("p0003", TWIN)
    results = analyze(with_trace(run, key, broken.traces[key]))
    (refusal,) = (each for each in results.refusals if each.question == "twin")
    assert refusal.arm == "isolated|visible"
    assert refusal.reason.startswith("on 1 of 9 prompts: expected 'visible@isolated' to differ")
    assert "in relation only, got positions, relation" in refusal.reason
    assert results.twins == {}
    assert [each.name for each in results.metrics if "|" in each.arm] == ["axes_changed"]
    row = metric(results, "axes_changed")
    assert (row.interval.n, row.verdict) == (0, f"refused: {refusal.reason}")


def test_another_model_is_another_axis():
    run = paired_run()
    reference, twin = (run.traces["p0000", arm] for arm in ("isolated", TWIN))
    with pytest.raises(TwinError, match="got model, relation"):
        prompt_twin(
            reference,
            with_fingerprint(twin, "another"),
            allowed=["relation"],
            rows=row_numbers(observe(reference)),
        )


def test_other_tokens_get_no_number_but_words():
    run = tempo.compare(model_of("llama"), PROMPTS, arms=ARMS, threshold=0.05, steps=4, paired=True)
    twins, refusals = twins_of(run, arms_of(run))
    copied = twins["duplicates:2@isolated"]
    assert (copied.axes, copied.n_prompts) == (("tokens", "weights"), 2)
    assert (copied.ratio, copied.mass, copied.readouts, copied.by_step) == ({}, {}, {}, None)
    assert [(one.question, one.arm, one.reason) for one in refusals] == [
        ("paired_ratio", "isolated|duplicates:2", OTHER_TOKENS)
    ]
    names = [each.name for each in analyze(run).metrics if each.arm == "isolated|duplicates:2"]
    assert names == ["axes_changed"]


def test_too_few_prompts_have_no_interval_and_say_so():
    results = analyze(paired_run(3))
    row = metric(results, "paired_ratio_without_sink")
    assert row.interval.n == 3
    assert np.isnan(row.interval.low)
    assert row.verdict == "too few prompts for an interval (3 of 8)"
    assert metric(results, "axes_changed").verdict == "relation changed, nothing else"


def test_a_trace_that_was_not_decoded_to_its_end_counts_as_absent():
    run = paired_run()
    key = ("p0003", TWIN)
    header = replace(run.traces[key].header, stopped="running")
    assert twin_of(with_trace(run, key, replace(run.traces[key], header=header))).n_prompts == 8
    assert twin_of(with_trace(run, key, None)).n_prompts == 8


def test_a_twin_without_any_trace_is_refused():
    run = paired_run(1)
    twins, refusals = twins_of(with_trace(run, ("p0000", TWIN), None), arms_of(run))
    assert twins == {}
    assert [(one.question, one.reason) for one in refusals] == [
        ("twin", "no prompt has both traces")
    ]


# --- the parts of the arms


def test_twins_are_no_free_arms():
    run = paired_run()
    arms = arms_of(run)
    assert (arms.free, arms.greedy, arms.alone) == (("isolated", "greedy"), "greedy", "isolated")
    assert arms.axes == {TWIN: ("relation",)}
    results = analyze(run)
    assert set(results.by_arm) == {"isolated", "greedy"}
    assert not any(each.arm.startswith(("alone", "visible@")) for each in results.metrics)


def test_a_run_from_before_axes_were_recorded_may_change_the_relation_only():
    run = paired_run()
    settings = {name: value for name, value in run.settings.items() if name != "axes"}
    assert twin_of(replace(run, settings=settings)).axes == ("relation",)


def test_traces_are_opened_prompt_by_prompt():
    run = paired_run(4)
    asked: list[str] = []

    class Watched(dict):
        def get(self, key, default=None):
            asked.append(key[0])
            return super().get(key, default)

    twins_of(replace(run, traces=Watched(run.traces)), arms_of(run))
    assert asked == sorted(asked)


# --- a tiny model


def test_a_paired_comparison_of_a_model_says_what_changed():
    prompts = [[10 + n, 12, 13, 14, 15] for n in range(9)]
    run = tempo.compare(
        model_of("llama"),
        prompts,
        arms=["isolated", "visible", "unique", "greedy"],
        threshold=0.05,
        steps=3,
        paired=True,
    )
    results = analyze(run)
    for name, axis in {"visible": "relation", "unique": "positions"}.items():
        pair = f"isolated|{name}"
        assert metric(results, "axes_changed", pair).verdict == f"{axis} changed, nothing else"
        assert metric(results, "readout_js", pair).interval.low > 0
        assert metric(results, "paired_ratio_without_sink", pair).interval.n >= 8
    assert not [each for each in results.refusals if each.question in ("twin", "split")]
