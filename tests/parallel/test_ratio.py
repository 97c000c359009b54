from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tempo.errors import InputError, LevelError, NoParallelSetsError
from tempo.testing.planted import (
    PlantedPlace,
    favour_sets,
    noisy,
    planted_trace,
    uniform,
    with_sink,
)
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.ratio import (
    CHANCE,
    AttentionRatio,
    attention_ratio,
    labelled_ratio,
    paired_ratio,
    prompt_ratio,
)

EXACT = 1e-6  # rows are stored in float32
WIDTHS = st.lists(st.integers(1, 4), min_size=2, max_size=6).filter(lambda w: max(w[:-1]) >= 2)
RELATIONS = st.sampled_from(["isolated", "visible", "ordered"])


def ratios(trace: Trace) -> tuple[float, float]:
    found = prompt_ratio(observe(trace))
    return np.exp(found.with_sink.overall), np.exp(found.without_sink.overall)


def combine(arms: list[Trace], greedy: list[Trace] | None = None, sink="without") -> AttentionRatio:
    if greedy is None:
        prompts = [paired_ratio(observe(trace)) for trace in arms]
    else:
        prompts = [
            paired_ratio(observe(arm), observe(null), inherited_labels(arm.slots, null.slots))
            for arm, null in zip(arms, greedy, strict=True)
        ]
    return attention_ratio(prompts, sink=sink, layers=arms[0].layers, heads=arms[0].heads)


def by_hand(trace: Trace, *, sink: bool) -> float:
    """The definition, one weight at a time."""
    slots, above, below = trace.slots, [], []
    width = np.bincount(slots.step)
    for step in range(1, trace.n_steps + 1):
        rows, seen = trace.attention(step), trace.visible(step)
        for layer, head, query in np.ndindex(rows.shape[:3]):
            in_sets, others = [], []
            for slot in range(trace.n_slots(step)):
                written = slots.step[slot]
                if written == step or not seen[layer, query, slot] or (slot == 0 and not sink):
                    continue
                is_set = written > 0 and width[written] >= 2
                (in_sets if is_set else others).append(rows[layer, head, query, slot])
            if in_sets and others:
                above.append(np.mean(in_sets, dtype=np.float64))
                below.append(np.mean(others, dtype=np.float64))
    return float(np.mean(above) / np.mean(below))


@settings(derandomize=True, max_examples=30, deadline=None)
@given(widths=WIDTHS, relation=RELATIONS)
def test_even_attention_has_exactly_the_chance_value(widths, relation):
    trace = planted_trace(widths=widths, relation=relation, rows=uniform)
    assert ratios(trace) == pytest.approx((CHANCE, CHANCE), rel=EXACT)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(widths=WIDTHS, relation=RELATIONS, factor=st.floats(0.01, 100))
def test_a_planted_ratio_is_found_exactly(widths, relation, factor):
    trace = planted_trace(widths=widths, relation=relation, rows=favour_sets(factor))
    assert ratios(trace) == pytest.approx((factor, factor), rel=EXACT)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_sink_does_not_move_the_ratio_without_it(factor: float):
    trace = planted_trace(rows=with_sink(0.9, favour_sets(factor)))
    with_it, without_it = ratios(trace)
    assert without_it == pytest.approx(factor, rel=EXACT)
    assert with_it < 0.3 * factor


@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
@pytest.mark.parametrize("windows", [None, [None, 3]])
def test_the_ratio_is_its_definition_one_weight_at_a_time(relation, windows):
    trace = planted_trace(
        widths=(2, 1, 3, 1, 2),
        relation=relation,
        rows=noisy(with_sink(0.4), 1.0),
        windows=windows,
    )
    expected = by_hand(trace, sink=True), by_hand(trace, sink=False)
    assert ratios(trace) == pytest.approx(expected, rel=EXACT)


def test_numerator_and_denominator_are_averaged_before_they_are_divided():
    def two_heads(place: PlantedPlace) -> np.ndarray:
        """Ratio 4 in a head with little weight outside slot 0, ratio 1/4 in one with much."""
        light, heavy = with_sink(0.99, favour_sets(4.0)), with_sink(0.01, favour_sets(0.25))
        return np.stack([light(place), heavy(place)])[None]

    trace = planted_trace(widths=(2, 1), rows=two_heads, n_layers=1, n_heads=2)
    found = prompt_ratio(observe(trace)).without_sink
    np.testing.assert_allclose(np.exp(found.by_head), [[4.0, 0.25]], rtol=EXACT)
    assert np.exp(found.overall) == pytest.approx(by_hand(trace, sink=False), rel=EXACT)
    assert np.exp(found.overall) < 0.3  # neither 2.125, the mean, nor 1, the geometric mean


@pytest.mark.parametrize("level", ["qk", "reduced"])
def test_every_level_gives_the_same_ratio(level: str):
    plan = {"widths": (2, 1, 3, 1), "rows": noisy(with_sink(0.5), 1.0)}
    stored = ratios(planted_trace(**plan, level=level))
    assert stored == pytest.approx(ratios(planted_trace(**plan)), rel=1e-5)


def test_rows_that_see_no_set_or_no_other_slot_have_no_ratio():
    found = prompt_ratio(observe(planted_trace(widths=(1, 2, 1)))).without_sink
    np.testing.assert_array_equal(np.isnan(found.by_step), [True, True, False])
    alone = prompt_ratio(observe(planted_trace(widths=(2, 1), prompt_length=1)))
    assert np.isnan(alone.without_sink.overall)
    assert np.exp(alone.with_sink.overall) == pytest.approx(1, rel=EXACT)


def test_a_window_without_the_set_leaves_its_layer_without_data():
    plan = {"widths": (2, 1, 1, 1, 1), "n_layers": 2, "windows": [None, 2]}
    found = prompt_ratio(observe(planted_trace(**plan))).without_sink
    assert np.exp(found.by_step) == pytest.approx([np.nan, 1, 1, 1, 1], rel=EXACT, nan_ok=True)
    np.testing.assert_array_equal(np.isnan(found.by_head), [[False] * 2, [True] * 2])


def test_without_any_set_the_question_has_no_answer():
    with pytest.raises(NoParallelSetsError, match="expected a row that sees a slot of a parallel"):
        combine([planted_trace(widths=(1, 1, 1))] * 9)


def test_prompts_without_sets_are_left_out_and_counted():
    arms = [planted_trace(widths=(2, 1))] * 9 + [planted_trace(widths=(1, 1))] * 2
    found = combine(arms).ratio
    assert (found.n, found.n_dropped) == (9, 2)
    assert found.estimate == pytest.approx(1, rel=EXACT)


# --- the null


def test_the_sink_alone_makes_pseudo_sets_of_a_greedy_run_look_suppressed():
    arms = [planted_trace(widths=(2, 1, 3, 2), rows=with_sink(0.8), seed=n) for n in range(9)]
    plain = {"widths": (1,) * 4, "relation": "greedy", "rows": with_sink(0.8)}
    greedy = [planted_trace(**plain, seed=n) for n in range(9)]
    with_it, without_it = (combine(arms, greedy, sink) for sink in ("with", "without"))
    assert with_it.null.estimate < 0.4
    assert without_it.null.estimate == pytest.approx(1, rel=EXACT)
    assert without_it.over_null.estimate == pytest.approx(1, rel=EXACT)


def test_a_greedy_slot_inherits_the_label_of_the_set_of_its_step():
    arm = planted_trace(widths=(2, 1, 3, 1))
    greedy = planted_trace(widths=(1,) * 6, relation="greedy")
    labels = inherited_labels(arm.slots, greedy.slots)
    np.testing.assert_array_equal(labels, [False, True, False, True, False])


def test_the_null_weighs_labelled_slots_against_all_other_earlier_ones():
    factor = 5.0

    def favour_labelled(place: PlantedPlace) -> np.ndarray:
        return np.where(np.isin(place.table.step, [1, 3]), factor, 1.0) * np.ones(
            place.visible.shape
        )

    arm = planted_trace(widths=(2, 1, 3, 1, 1))
    greedy = planted_trace(widths=(1,) * 5, relation="greedy", rows=favour_labelled)
    found = combine([arm] * 9, [greedy] * 9)
    assert found.null.estimate == pytest.approx(factor, rel=EXACT)
    assert found.over_null.estimate == pytest.approx(1 / factor, rel=EXACT)
    np.testing.assert_allclose(found.null_by_step.estimate[1:], factor, rtol=EXACT)


def test_own_labels_give_the_ratio_of_the_groups():
    trace = planted_trace(widths=(1, 1, 1, 1), relation="greedy", rows=noisy(uniform, 1.0))
    labels = np.array([False, True, False, False, False])
    relabelled = labelled_ratio(observe(trace), labels, np.ones(4, np.int64)).without_sink
    expected = []
    for step in (2, 3, 4):
        rows = trace.attention(step).astype(np.float64)[:, :, 0]
        others = np.delete(rows[..., 1 : 4 + step], 4, axis=-1)
        expected.append(np.log(rows[..., 5].mean() / others.mean()))
    np.testing.assert_allclose(relabelled.by_step[1:], expected, rtol=1e-6)


def test_arm_and_null_are_compared_over_the_steps_that_both_have():
    def late_sets_loud(place: PlantedPlace) -> np.ndarray:
        factor = 9.0 if place.step >= 4 else 2.0
        return favour_sets(factor)(place)

    arm = planted_trace(widths=(2, 1, 1, 1, 1), rows=late_sets_loud)
    greedy = planted_trace(widths=(1, 1, 1), relation="greedy")
    found = combine([arm] * 9, [greedy] * 9)
    assert found.over_null.estimate == pytest.approx(2, rel=EXACT)
    assert found.ratio.estimate > 2.5


def test_a_null_with_wide_sets_is_refused():
    arm = planted_trace(widths=(2, 1))
    with pytest.raises(InputError, match="expected the null run to have one slot in each step"):
        inherited_labels(arm.slots, arm.slots)


def test_a_reduced_run_cannot_be_labelled():
    greedy = planted_trace(widths=(1, 1), relation="greedy", level="reduced")
    with pytest.raises(LevelError, match="level weights or qk"):
        labelled_ratio(observe(greedy), np.array([False, True, False]), np.ones(2, np.int64))


def test_without_a_greedy_run_the_null_has_no_data():
    found = combine([planted_trace(widths=(2, 1))] * 9)
    assert found.null.n == found.over_null.n == 0
    assert np.isnan(found.log_null_by_head).all()
    assert np.isnan(found.q_value_by_head).all()


# --- heads


def test_the_planted_head_stands_out_of_its_null():
    def one_head(place: PlantedPlace) -> np.ndarray:
        rows = np.broadcast_to(uniform(place), (2, 3, *place.visible.shape)).copy()
        rows[1, 2] = favour_sets(0.2)(place)
        return rows

    shape = {"n_layers": 2, "n_heads": 3}
    arms = [planted_trace(rows=noisy(one_head, 0.3), seed=n, **shape) for n in range(20)]
    plain = {"widths": (1, 1, 1), "relation": "greedy", "rows": noisy(uniform, 0.3)}
    greedy = [planted_trace(**plain, seed=100 + n, **shape) for n in range(20)]
    found = combine(arms, greedy)
    assert np.unravel_index(np.nanargmin(found.log_ratio_by_head), (2, 3)) == (1, 2)
    assert np.unravel_index(np.nanargmin(found.q_value_by_head), (2, 3)) == (1, 2)
    assert np.exp(found.log_ratio_by_head[1, 2]) == pytest.approx(0.2, rel=0.2)
    assert found.heads_off_null()[0] >= 1
    assert found.heads_off_null()[2] == 6


def test_sets_without_any_weight_have_ratio_zero_and_no_interval():
    found = combine([planted_trace(widths=(2, 1), rows=favour_sets(0.0))] * 9)
    assert found.ratio.estimate == 0
    assert np.isnan(found.ratio.low)


def test_arm_and_null_weigh_the_steps_alike() -> None:
    """Where sets change nothing, the null is the arm: a step counts once for each member."""
    trace = planted_trace(widths=(1, 1, 1, 1), relation="greedy", rows=noisy(uniform, 1.0))
    labels = np.array([False, True, False, False, False])
    observed = observe(trace)
    repeats = np.array([1, 3, 1, 2])
    steps = [
        replace(
            step,
            queries=np.repeat(step.queries, times),
            visible=np.repeat(step.visible, times, axis=1),
            weights=np.repeat(step.rows(), times, axis=2),
            mass=np.repeat(step.mass, times, axis=2),
            count=np.repeat(step.count, times, axis=1),
        )
        for step, times in zip(observed.steps, repeats, strict=True)
    ]
    repeated = labelled_ratio(
        replace(observed, steps=tuple(steps)), labels, np.ones(4, np.int64)
    ).without_sink
    weighted = labelled_ratio(observed, labels, repeats).without_sink
    assert weighted.overall == pytest.approx(repeated.overall, rel=1e-12)
    np.testing.assert_allclose(weighted.by_head, repeated.by_head, rtol=1e-12)
    plain = labelled_ratio(observed, labels, np.ones(4, np.int64)).without_sink
    assert abs(plain.overall - weighted.overall) > 1e-6
