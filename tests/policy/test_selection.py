import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempo.errors import InputError
from tempo.policy.next_set import Choosing, choose
from tempo.policy.schedules import Constant, Linear
from tempo.policy.selection import Forced, Greedy, Threshold, TopK

P = np.array([0.05, 0.3, 0.2, 0.3, 0.15])
LOG = np.log(P).astype(np.float32)
logits = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=30)


def ids(choice) -> list[int]:
    return choice.token.tolist()


def test_a_threshold_keeps_what_reaches_it_best_first_ties_by_id() -> None:
    assert ids(Threshold(0.149).select(LOG, 1)) == [1, 3, 2, 4]
    assert ids(Threshold(0.16).select(LOG, 1)) == [1, 3, 2]


@given(logits, st.floats(0.01, 1.0))
def test_a_set_never_exceeds_one_over_tau_and_holds_exactly_what_passes(values, tau) -> None:
    log_p = np.array(values, np.float64)
    log_p = (log_p - np.logaddexp.reduce(log_p)).astype(np.float32)
    choice = Threshold(tau, max_width=1000).select(log_p, 1)
    passed = set(np.flatnonzero(np.exp(log_p) >= np.float32(tau)))
    assert set(ids(choice)) == passed or (not passed and len(choice.token) == 1)
    assert len(choice.token) <= 1 / tau + 1e-6 or len(choice.token) == 1
    assert (np.diff(choice.log_probability) <= 0).all()


def test_nothing_above_the_threshold_falls_back_to_the_top_token() -> None:
    assert ids(Threshold(0.9).select(LOG, 1)) == [1]


def test_tokens_cut_by_the_width_are_recorded() -> None:
    choice = Threshold(0.149, max_width=2).select(LOG, 1)
    assert ids(choice) == [1, 3]
    assert [(d.token, d.reason) for d in choice.dropped] == [(2, "max_width"), (4, "max_width")]


def test_the_margin_is_the_distance_of_the_nearest_probability() -> None:
    assert Threshold(0.19).select(LOG, 1).tau_margin == pytest.approx(0.01, abs=1e-6)
    assert np.isnan(Greedy().select(LOG, 1).tau_margin)


def test_a_scheduled_threshold_is_that_of_its_step_and_so_is_the_margin() -> None:
    rule = Threshold(Linear(0.29, 0.19, 2))
    assert [ids(rule.select(LOG, step)) for step in (1, 2, 9)] == [[1, 3], [1, 3, 2], [1, 3, 2]]
    margins = [rule.select(LOG, step).tau_margin for step in (1, 2)]
    assert margins == pytest.approx([0.01, 0.01], abs=1e-6)


@given(logits, st.floats(0.01, 1.0))
def test_a_constant_schedule_is_a_number(values, tau) -> None:
    log_p = np.array(values, np.float64)
    log_p = (log_p - np.logaddexp.reduce(log_p)).astype(np.float32)
    plain, scheduled = (Threshold(t).select(log_p, 3) for t in (tau, Constant(tau)))
    assert ids(plain) == ids(scheduled)
    assert plain.tau_margin == scheduled.tau_margin
    assert plain.dropped == scheduled.dropped


def test_of_a_long_cut_as_many_are_noted_as_a_trace_keeps_of_a_readout() -> None:
    flat = np.full(1000, -np.log(1000), np.float32)
    choice = Threshold(0.0005, max_width=3).select(flat, 1)
    assert ids(choice) == [0, 1, 2]
    assert [d.token for d in choice.dropped] == list(range(3, 3 + 256))


def test_top_k_and_greedy_break_ties_by_id() -> None:
    assert ids(TopK(1).select(LOG, 1)) == [1]
    assert ids(TopK(3).select(LOG, 1)) == [1, 3, 2]
    assert ids(TopK(99).select(LOG, 1)) == [1, 3, 2, 4, 0]
    assert ids(Greedy().select(LOG, 1)) == [1]


def test_forced_sets_keep_their_order_and_duplicates_and_know_their_end() -> None:
    rule = Forced(((4, 0, 4), (2,)))
    choice = rule.select(LOG, 1)
    assert ids(choice) == [4, 0, 4]
    np.testing.assert_allclose(np.exp(choice.log_probability), [0.15, 0.05, 0.15], rtol=1e-5)
    assert not rule.exhausted(2)
    assert rule.exhausted(3)


def test_forced_sets_may_bring_the_probabilities_they_were_chosen_with() -> None:
    rule = Forced(((4, 0),), ((-0.5, -2.0),))
    assert rule.select(LOG, 1).log_probability.tolist() == [-0.5, -2.0]
    with pytest.raises(InputError, match="all or none"):
        Forced(((4, 0),), ((-0.5,),))


def test_an_end_of_sequence_on_top_becomes_the_last_set_alone() -> None:
    choice = choose(Choosing(Threshold(0.1), eos_ids=(1,), eos="stop"), LOG, 1)
    assert ids(choice) == [1]
    assert choice.ends
    assert [(d.token, d.reason) for d in choice.dropped] == [(3, "eos"), (2, "eos"), (4, "eos")]


def test_an_end_of_sequence_below_the_top_is_left_out() -> None:
    choice = choose(Choosing(Threshold(0.1), eos_ids=(2,), eos="stop"), LOG, 1)
    assert ids(choice) == [1, 3, 4]
    assert not choice.ends
    assert [(d.token, d.reason) for d in choice.dropped] == [(2, "eos")]


def test_an_ignored_end_of_sequence_is_never_selected() -> None:
    choice = choose(Choosing(Greedy(), eos_ids=(1, 3), eos="ignore"), LOG, 1)
    assert ids(choice) == [2]
    assert ids(choose(Choosing(Threshold(0.9), eos_ids=(1, 3), eos="ignore"), LOG, 1)) == [2]


def test_forced_ends_are_fed_as_given() -> None:
    choice = choose(Choosing(Forced(((1, 2),)), eos_ids=(1,), eos="stop"), LOG, 1)
    assert ids(choice) == [1, 2]
    assert not choice.ends


@pytest.mark.parametrize("tau", [0, -0.1, 1.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(tau) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        Threshold(tau)


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(InputError, match="max_width"):
        Threshold(0.1, 0)
    with pytest.raises(InputError, match="k of at least 1"):
        TopK(0)
    with pytest.raises(InputError, match="no empty one"):
        Forced(((1,), ()))
    with pytest.raises(InputError, match="from 0 to 4"):
        Forced(((5,),)).select(LOG, 1)
