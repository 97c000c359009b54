from collections.abc import Callable

import numpy as np
import pytest

from tempo.errors import InputError, LevelError, NoParallelSetsError
from tempo.testing.planted import favour_sets, noisy, planted_trace, with_sink
from tempo.trace.schema import tensor_name
from tempo.trace.trace import Trace
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.ratio import prompt_ratio
from tempo_analysis.parallel.relevance import (
    Relevance,
    observe_values,
    prompt_relevance,
    recorded_value_norms,
    relevance,
    value_weighted,
)

EXACT = 1e-6  # rows are stored in float32
WIDTHS = (2, 1, 3, 1)


def with_norms(trace: Trace, norm: Callable[[Trace], np.ndarray]) -> Trace:
    """The trace with a norm for each slot, the same in every head or one for each."""
    shape = (len(trace.layers), len(trace.heads), len(trace.slots))
    norms = np.broadcast_to(norm(trace), shape).astype(np.float32)
    added = {
        tensor_name(step, "value_norm"): norms[..., trace.slots.step == step]
        for step in range(trace.n_steps + 1)
    }
    return Trace(trace.header, dict(trace.tensors) | added)


def even(trace: Trace) -> np.ndarray:
    return np.full(len(trace.slots), 2.5)


def small_members(trace: Trace) -> np.ndarray:
    return np.where(trace.slots.width >= 2, 0.25, 1.0)


def drawn(trace: Trace) -> np.ndarray:
    shape = (len(trace.layers), len(trace.heads), len(trace.slots))
    return np.exp(np.random.default_rng(4).normal(0, 1, shape))


def combine(traces: list[Trace], greedy: list[Trace] | None = None, sink="without") -> Relevance:
    nulls = [None] * len(traces) if greedy is None else greedy
    prompts = [prompt_relevance(*pair) for pair in zip(traces, nulls, strict=True)]
    return relevance(prompts, sink=sink, layers=traces[0].layers, heads=traces[0].heads)


@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
@pytest.mark.parametrize("sink", ["with", "without"])
def test_even_rows_of_equal_norms_have_exactly_ratio_one(relation, sink):
    trace = with_norms(planted_trace(widths=WIDTHS, relation=relation), even)
    found = combine([trace] * 9, sink=sink)
    assert found.ratio.ratio.estimate == pytest.approx(1, rel=EXACT)
    assert found.sink_change.estimate == pytest.approx(0, abs=EXACT)


def test_small_values_of_members_are_found_where_attention_is_even():
    trace = with_norms(planted_trace(widths=WIDTHS), small_members)
    found = combine([trace] * 9)
    assert found.ratio.ratio.estimate == pytest.approx(0.25, rel=EXACT)
    assert np.exp(prompt_ratio(observe(trace)).without_sink.overall) == pytest.approx(1, rel=EXACT)


def test_attention_and_values_multiply():
    trace = with_norms(planted_trace(widths=WIDTHS, rows=favour_sets(3.0)), small_members)
    assert combine([trace] * 9).ratio.ratio.estimate == pytest.approx(0.75, rel=EXACT)


def test_a_sink_of_small_values_loses_its_share():
    def empty_sink(trace: Trace) -> np.ndarray:
        return np.where(np.arange(len(trace.slots)) == 0, 0.1, 1.0)

    trace = with_norms(planted_trace(widths=WIDTHS, rows=with_sink(0.8)), empty_sink)
    found = combine([trace] * 9)
    assert found.sink_mass.estimate == pytest.approx(0.8, rel=EXACT)
    assert found.sink_share.estimate == pytest.approx(0.08 / 0.28, rel=EXACT)
    assert found.sink_change.high < 0
    assert found.ratio.ratio.estimate == pytest.approx(1, rel=EXACT)


@pytest.mark.parametrize("level", ["weights", "qk"])
def test_a_row_is_its_definition_one_slot_at_a_time(level):
    plan = {"widths": WIDTHS, "rows": noisy(with_sink(0.3), 1.0), "relation": "visible"}
    trace = with_norms(planted_trace(**plan, level=level), drawn)
    norms = drawn(trace)
    for rows in observe_values(trace).steps:
        plain = trace.attention(rows.step).astype(float)
        for layer, head, query in np.ndindex(plain.shape[:3]):
            row, norm = plain[layer, head, query], norms[layer, head]
            moved = np.array([row[slot] * norm[slot] for slot in range(len(row))])
            found = rows.rows()[layer, head, query]
            np.testing.assert_allclose(found, moved / moved.sum(), rtol=1e-5)
        np.testing.assert_allclose(rows.mass.sum(-1), 1, rtol=EXACT)


def test_norms_are_those_of_every_slot_so_far():
    trace = with_norms(planted_trace(widths=WIDTHS), drawn)
    np.testing.assert_array_equal(
        recorded_value_norms(trace, 3), drawn(trace)[..., :11].astype(np.float32)
    )
    assert recorded_value_norms(trace, 0).shape == (2, 2, 5)


def test_a_row_whose_slots_move_nothing_is_left_out():
    weights = np.full((1, 1, 2, 3), 1 / 3)
    weights[0, 0, 0] = [1, 0, 0]
    found = value_weighted(weights, np.array([[[0.0, 1.0, 3.0]]]))
    np.testing.assert_allclose(found[0, 0], [[np.nan] * 3, [0, 0.25, 0.75]])
    trace = with_norms(planted_trace(widths=WIDTHS), lambda trace: np.zeros(len(trace.slots)))
    prompt = prompt_relevance(trace)
    assert np.isnan([prompt.sink_share, prompt.sink_mass]).all()


def test_the_null_is_value_weighted_too():
    def small_labelled(trace: Trace) -> np.ndarray:
        return np.where(np.isin(trace.slots.step, [1, 3]), 0.25, 1.0)

    arm = with_norms(planted_trace(widths=WIDTHS), small_members)
    plain = planted_trace(widths=(1,) * 4, relation="greedy")
    found = combine([arm] * 9, [with_norms(plain, small_labelled)] * 9)
    assert found.ratio.null.estimate == pytest.approx(0.25, rel=EXACT)
    assert found.ratio.over_null.estimate == pytest.approx(1, rel=EXACT)


# --- refusals


def test_a_trace_without_norms_is_refused():
    trace = with_norms(planted_trace(widths=WIDTHS), even)
    with pytest.raises(LevelError, match="expected a trace that holds 'value_norm'"):
        prompt_relevance(planted_trace(widths=WIDTHS))
    with pytest.raises(LevelError, match="expected a trace that holds 'value_norm'"):
        prompt_relevance(trace, planted_trace(widths=(1,) * 4, relation="greedy"))


def test_a_reduced_trace_is_refused():
    with pytest.raises(LevelError, match="level weights or qk"):
        prompt_relevance(with_norms(planted_trace(widths=WIDTHS, level="reduced"), even))


def test_a_null_with_wide_sets_is_refused():
    trace = with_norms(planted_trace(widths=WIDTHS), even)
    with pytest.raises(InputError, match="expected the null run to have one slot in each step"):
        prompt_relevance(trace, trace)


def test_without_any_set_the_question_has_no_answer():
    with pytest.raises(NoParallelSetsError, match="expected a row that sees a slot of a parallel"):
        combine([with_norms(planted_trace(widths=(1, 1)), even)])
