"""Soft tokens: one slot with the weighted mean of several embeddings."""

import numpy as np
import pytest

from experiments.soft_tokens import SoftToken, soft_log_probabilities
from tempo.errors import InputError
from tempo.testing.tiny import FAMILIES, tiny_model
from tests.decoding import assert_same_logits, model_of, plain_forward, random_prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_token_of_one_token_is_that_token(family: str) -> None:
    model = model_of(family)
    ids = random_prompt(model, 13)
    plain = plain_forward(model, ids).logits[0].log_softmax(-1)
    soft = [*ids[:5], SoftToken((7, ids[5], 90), (0.0, 1.0, 0.0)), *ids[6:]]
    for slots in (ids, soft):
        got = soft_log_probabilities(model, slots)
        assert_same_logits(got, plain)
        np.testing.assert_allclose(np.exp(got).sum(-1), 1, atol=1e-5)
        assert_same_logits(soft_log_probabilities(model, slots, last=3), got[-3:], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_soft_token_is_the_mean_of_the_embeddings_and_later_slots_see_it(family: str) -> None:
    model = tiny_model(family)  # one of its own: its embeddings are changed below
    ids = random_prompt(model, 9)
    got = soft_log_probabilities(model, [*ids, SoftToken((30, 60), (0.25, 0.75)), 50])
    path = soft_log_probabilities(model, [*ids, 60, 50])
    table = model.hf.get_input_embeddings().weight.detach()
    unused = next(token for token in range(10, 90) if token not in {*ids, 30, 50, 60})
    table[unused] = 0.25 * table[30] + 0.75 * table[60]
    expected = plain_forward(model, [*ids, unused, 50]).logits[0].log_softmax(-1)
    assert_same_logits(got, expected)
    assert np.abs(got[: len(ids)] - path[: len(ids)]).max() < 1e-5
    assert np.abs(got[-1] - path[-1]).max() > 1e-3


def test_the_order_of_the_tokens_in_a_slot_does_not_matter() -> None:
    model = model_of("llama")
    one = soft_log_probabilities(model, [5, SoftToken((30, 60), (0.25, 0.75)), 50])
    other = soft_log_probabilities(model, [5, SoftToken((60, 30), (0.75, 0.25)), 50])
    assert_same_logits(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("token", "weight"),
    [((), ()), ((1, 2), (1.0,)), ((1, 2), (0.5, 0.6)), ((1, 2), (1.5, -0.5)), ((1,), (np.nan,))],
)
def test_weights_that_are_no_shares_are_refused(token: tuple, weight: tuple) -> None:
    with pytest.raises(InputError, match="expected"):
        SoftToken(token, weight)


def test_slots_that_are_none_or_unknown_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(InputError, match="of the slots"):
        soft_log_probabilities(model, [])
    with pytest.raises(InputError, match="1 to 3 of the slots"):
        soft_log_probabilities(model, [3, 4, 5], last=4)
    with pytest.raises(InputError, match="token ids from 0"):
        soft_log_probabilities(model, [3, SoftToken((5, 10**6), (0.5, 0.5))])
