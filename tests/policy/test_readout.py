import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tempo.engine.next_distribution import (
    combined,
    distributions,
    invalid_rows,
    log_probability_rows,
)
from tempo.errors import InputError
from tempo.policy.readout import READOUTS, Last, Mixture, Product, Top, combine, parse_readout

ROWS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])).astype(np.float32)
LOG_P = np.log(np.array([0.3, 0.1])).astype(np.float32)


def test_a_mixture_is_the_weighted_average_of_probabilities() -> None:
    weights = Mixture().weights(LOG_P)
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(combine(ROWS, weights, mean="arithmetic")), [0.55, 0.225, 0.225], rtol=1e-5
    )


def test_a_product_is_the_weighted_geometric_mean_renormalised() -> None:
    expected = np.array([0.7**0.75 * 0.1**0.25, 0.2**0.75 * 0.3**0.25, 0.1**0.75 * 0.6**0.25])
    result = np.exp(combine(ROWS, Product().weights(LOG_P), mean="geometric"))
    np.testing.assert_allclose(result, expected / expected.sum(), rtol=1e-5)


def test_top_reads_the_first_member_and_last_the_last() -> None:
    assert Top().weights(LOG_P).tolist() == [1, 0]
    assert Last().weights(LOG_P).tolist() == [0, 1]
    np.testing.assert_allclose(
        combine(ROWS, Last().weights(LOG_P), mean="arithmetic"), ROWS[1], rtol=1e-6
    )


@given(st.integers(0, 1000), st.sampled_from(list(READOUTS)), st.integers(1, 5))
def test_torch_reads_what_the_definition_says(seed: int, name: str, n_members: int) -> None:
    random = np.random.default_rng(seed)
    rows = torch.from_numpy(random.normal(0, 5, (n_members, 17)).astype(np.float32)).log_softmax(-1)
    rule = READOUTS[name]
    weights = rule.weights(random.normal(0, 2, n_members).astype(np.float32))
    expected = combine(rows.numpy(), weights, mean=rule.mean)
    np.testing.assert_allclose(combined(rows, weights, rule), expected, atol=1e-4)


def test_a_summary_keeps_the_best_tokens_the_tail_and_the_whole_entropy() -> None:
    log_p = log_probability_rows(torch.log(torch.tensor([[0.1, 0.4, 0.1, 0.4]])))
    whole, short = distributions(log_p, None)[0], distributions(log_p, 2)[0]
    assert whole.token.tolist() == [1, 3, 0, 2]
    assert whole.tail_mass == 0
    assert short.token.tolist() == [1, 3]
    assert short.tail_mass == pytest.approx(0.2, abs=1e-6)
    assert short.entropy_nats == pytest.approx(-(0.8 * np.log(0.4) + 0.2 * np.log(0.1)), rel=1e-5)
    assert whole.top2_margin() == pytest.approx(0, abs=1e-6)
    assert whole.top2_margin(excluded=(1,)) == pytest.approx(np.log(4), rel=1e-5)


def test_impossible_tokens_add_nothing_to_the_entropy() -> None:
    log_p = log_probability_rows(torch.tensor([[0.0, float("-inf"), 0.0]]))
    assert not invalid_rows(log_p).any()
    assert distributions(log_p, None)[0].entropy_nats == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_are_noticed(bad: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, bad]])
    assert invalid_rows(log_probability_rows(logits)).tolist() == [False, True]


def test_an_unknown_readout_is_refused() -> None:
    with pytest.raises(InputError, match="mixture, product, top, last"):
        parse_readout("mean")
