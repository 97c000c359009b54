import numpy as np
import pytest

from tempo.policy.slots import group_of
from tempo.testing.planted import (
    favour_sets,
    noisy,
    planted_run,
    planted_trace,
    random_readout,
    with_sink,
)
from tempo.vocabulary import GROUPS


@pytest.mark.parametrize("level", ["weights", "qk"])
@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
def test_rows_sum_to_one_and_are_zero_where_nothing_is_seen(level, relation):
    trace = planted_trace(level=level, relation=relation, rows=noisy(with_sink(0.3), 2.0))
    for step in range(trace.n_steps + 1):
        rows, seen = trace.attention(step), trace.visible(step)
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)
        assert (rows[~np.broadcast_to(seen[:, None], rows.shape)] == 0).all()
        assert seen[..., trace.members(step)].any(-1).all()


@pytest.mark.parametrize(
    ("relation", "sees"),
    [
        ("isolated", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("visible", [[1, 1, 1]] * 3),
        ("ordered", [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
    ],
)
def test_siblings_see_each_other_as_their_relation_says(relation, sees):
    trace = planted_trace(widths=(3,), prompt_length=4, relation=relation)
    np.testing.assert_array_equal(trace.visible(1)[0, :, 4:], sees)
    assert trace.visible(1)[..., :4].all()


def test_members_of_earlier_sets_get_their_factor():
    trace = planted_trace(widths=(2, 1), rows=favour_sets(3.0))
    row = trace.attention(2)[0, 0, 0]
    group = group_of(trace.slots, trace.members(2))[0]
    in_sets = group == GROUPS.index("earlier_sets")
    np.testing.assert_allclose(row[in_sets] / row[0], 3.0, rtol=1e-6)
    np.testing.assert_allclose(row[~in_sets] / row[0], 1.0, rtol=1e-6)


def test_positions_are_shared_or_unique():
    shared, unique = (planted_trace(positions=place).slots for place in ("shared", "unique"))
    assert shared.position[5:].tolist() == [5, 5, 6, 7, 7, 7]
    assert unique.position[5:].tolist() == [5, 6, 7, 8, 9, 10]


def test_readouts_hold_the_whole_distribution():
    readout = planted_trace(seed=4).readout(2)
    whole = random_readout(4, 2)
    assert np.exp(readout.log_probability).sum() + readout.tail_mass == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(np.exp(readout.log_probability), whole[readout.token], rtol=1e-5)
    assert readout.entropy_nats == pytest.approx(-(whole * np.log(whole)).sum(), rel=1e-6)


def test_the_same_prompt_has_the_same_tokens_under_every_arm():
    run = planted_run({"isolated": {}, "visible": {"relation": "visible"}}, n_prompts=3)
    for _, (first, second) in run.pairs("isolated", "visible"):
        np.testing.assert_array_equal(first.slots.token, second.slots.token)
    assert len({tuple(trace.slots.token) for trace in run}) == 3


def test_a_reduced_trace_holds_the_sums_of_its_rows():
    plan = {"rows": noisy(with_sink(0.4), 1.0), "relation": "visible"}
    full, reduced = planted_trace(**plan), planted_trace(**plan, level="reduced")
    for step in range(4):
        np.testing.assert_allclose(reduced.group_mass(step), full.group_mass(step), atol=1e-6)
        np.testing.assert_allclose(reduced.entropy_nats(step), full.entropy_nats(step), atol=1e-5)
        np.testing.assert_allclose(reduced.max_weight(step), full.max_weight(step), rtol=1e-6)
