import numpy as np
import pytest

from tempo.errors import LevelError, NoParallelSetsError
from tempo.testing.planted import Pattern, PlantedPlace, noisy, planted_trace, uniform, with_sink
from tempo.trace.trace import Trace
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.within_set import IntraStep, intra_step, prompt_intra_step

EXACT = 1e-6  # rows are stored in float32
WIDTHS = (3, 1, 2, 4)


def measured(*traces: Trace, sink="with") -> IntraStep:
    prompts = [prompt_intra_step(observe(trace)) for trace in traces]
    return intra_step(prompts, sink=sink, layers=traces[0].layers, heads=traces[0].heads)


def by_rank(weights: np.ndarray) -> Pattern:
    """Query rank and key rank get exactly these shares inside a set, earlier slots the rest."""

    def pattern(place: PlantedPlace) -> np.ndarray:
        rows, n = np.ones(place.visible.shape), len(place.queries)
        if n == 1 or place.step == 0:
            return rows
        inside = np.where(place.visible[:, place.queries], weights[:n, :n], 0.0)
        n_earlier = place.visible.sum(-1) - (inside > 0).sum(-1)
        rows[:] = ((1 - inside.sum(-1)) / n_earlier)[:, None]
        rows[:, place.queries] = inside
        return rows

    return pattern


@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
@pytest.mark.parametrize(("pattern", "sink"), [(uniform, "with"), (with_sink(0.7), "without")])
def test_even_attention_has_exactly_the_chance_value(relation, pattern, sink):
    traces = [planted_trace(widths=WIDTHS, relation=relation, rows=pattern)] * 9
    found = measured(*traces, sink=sink)
    np.testing.assert_allclose(found.weight, found.chance, rtol=EXACT)
    for part in (found.own, found.siblings):
        assert part.excess.estimate == pytest.approx(0, abs=EXACT)
        np.testing.assert_allclose(
            part.by_layer.estimate, part.chance_by_layer.estimate, rtol=EXACT
        )
    np.testing.assert_allclose(
        found.by_difference.estimate, found.chance_by_difference.estimate, rtol=EXACT
    )


def test_chance_counts_the_visible_slots():
    found = measured(planted_trace(widths=(2,), relation="visible"))  # 5 of the prompt and 2
    np.testing.assert_allclose(found.chance, 1 / 7, rtol=EXACT)
    free = measured(planted_trace(widths=(2,), relation="visible"), sink="without")
    np.testing.assert_allclose(free.chance, 1 / 6, rtol=EXACT)
    ordered = measured(planted_trace(widths=(2,), relation="ordered"))
    np.testing.assert_allclose(ordered.chance[0, 0], [[1 / 6, np.nan], [1 / 7, 1 / 7]], rtol=EXACT)


def test_a_planted_matrix_is_found_with_every_query_row():
    planted = np.array([[0.3, 0.2, 0.1], [0.05, 0.4, 0.15], [0.02, 0.04, 0.5]])
    trace = planted_trace(widths=(3, 1, 3), relation="visible", rows=by_rank(planted))
    found = measured(trace)
    np.testing.assert_allclose(found.weight, np.broadcast_to(planted, (2, 2, 3, 3)), rtol=1e-5)
    assert found.own.share.estimate == pytest.approx(1.2 / 3, rel=1e-5)
    assert found.siblings.share.estimate == pytest.approx(0.56 / 3, rel=1e-5)
    np.testing.assert_array_equal(found.by_difference.x, [-2, -1, 0, 1, 2])
    expected = [0.02, 0.09 / 2, 1.2 / 3, 0.35 / 2, 0.1]
    np.testing.assert_allclose(found.by_difference.estimate, expected, rtol=1e-5)


def test_an_ordered_set_has_the_lower_triangle_only():
    planted = np.array([[0.3, 9, 9], [0.1, 0.4, 9], [0.02, 0.04, 0.5]])
    found = measured(planted_trace(widths=(3,), relation="ordered", rows=by_rank(planted)))
    np.testing.assert_array_equal(np.isnan(found.weight[0, 0]), np.triu(np.ones((3, 3)), 1) > 0)
    np.testing.assert_allclose(found.siblings.share.estimate, 0.16 / 3, rtol=1e-5)
    assert np.isnan(found.by_difference.estimate[3:]).all()


def test_isolated_members_pay_each_other_exactly_nothing():
    found = measured(planted_trace(widths=WIDTHS, rows=noisy(uniform, 2.0)))
    assert found.siblings.share.estimate == found.siblings.chance.estimate == 0
    off = ~np.eye(4, dtype=bool)
    assert np.isnan(found.weight[..., off]).all()
    assert not np.isnan(found.weight[..., ~off]).any()


def test_the_sink_does_not_move_the_shares_without_it():
    plan = {"widths": WIDTHS, "relation": "visible"}
    rows = noisy(uniform, 1.0)
    plain = measured(planted_trace(**plan, rows=with_sink(0.1, rows)), sink="without")
    sunk = measured(planted_trace(**plan, rows=with_sink(0.9, rows)), sink="without")
    np.testing.assert_allclose(sunk.weight, plain.weight, rtol=1e-5)
    with_it = measured(planted_trace(**plan, rows=with_sink(0.9, rows)))
    np.testing.assert_allclose(with_it.weight, plain.weight / 10, rtol=1e-5)


def test_the_shares_are_their_definition_one_row_at_a_time():
    trace = planted_trace(widths=WIDTHS, relation="visible", rows=noisy(with_sink(0.3), 1.0))
    own, siblings = [], []
    for step in (1, 3, 4):
        rows, members = trace.attention(step).astype(float), trace.members(step)
        for query, slot in enumerate(members):
            row = rows[:, :, query] / rows[:, :, query, 1:].sum(-1, keepdims=True)
            own.append(row[..., slot])
            siblings.append(row[..., np.setdiff1d(members, [slot])].sum(-1))
    found = measured(trace, sink="without")
    assert found.own.share.estimate == pytest.approx(np.mean(own), rel=EXACT)
    np.testing.assert_allclose(
        found.siblings.by_layer.estimate, np.mean(siblings, axis=(0, 2)), rtol=EXACT
    )


def test_the_planted_head_stands_out():
    def one_head(place: PlantedPlace) -> np.ndarray:
        rows = np.ones((2, 2, *place.visible.shape))
        rows[1, 0] = np.where(place.is_group("siblings"), 20.0, 1.0)
        return rows

    found = measured(planted_trace(widths=(3, 3), relation="visible", rows=one_head))
    towards_next = found.weight[..., 0, 1]
    assert np.unravel_index(towards_next.argmax(), (2, 2)) == (1, 0)
    assert found.siblings.by_layer.estimate[1] > found.siblings.by_layer.estimate[0] + 0.2


def test_prompts_are_averaged_with_intervals_whatever_their_widths():
    plan = {"relation": "visible", "rows": noisy(uniform, 0.5)}
    traces = [planted_trace(widths=(2, 1 + n % 3), seed=n, **plan) for n in range(9)]
    traces += [planted_trace(widths=(1, 1), seed=50, **plan)]
    found = measured(*traces)
    assert found.weight.shape == (2, 2, 3, 3)
    assert (found.own.share.n, found.own.share.n_dropped) == (9, 1)
    assert found.own.excess.low < found.own.excess.high
    assert found.by_difference.n.tolist() == [3, 9, 9, 9, 3]


def test_rows_of_the_sink_alone_are_left_out():
    traces = [planted_trace(widths=(2,), relation="visible", rows=with_sink(s)) for s in (1.0, 0.5)]
    found = measured(*traces, sink="without")
    assert (found.own.share.n, found.own.share.n_dropped) == (1, 1)


def test_without_a_set_there_is_no_answer():
    with pytest.raises(NoParallelSetsError, match="expected a set of width >= 2, got none"):
        measured(planted_trace(widths=(1, 1)))


def test_a_reduced_trace_is_refused():
    with pytest.raises(LevelError, match="level weights or qk"):
        prompt_intra_step(observe(planted_trace(level="reduced")))
