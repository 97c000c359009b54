import numpy as np
import pytest

from tempo.errors import InputError
from tempo.policy.biases import Boost, LogPosterior, LogWeight, MassNeutral, parse_bias, total_bias
from tempo.policy.slots import SlotTable, prompt_table
from tempo.policy.visibility import ISOLATED, VISIBLE, visible_slots
from tests.policy.test_slots import grown


def test_boost_acts_on_members_of_sets_and_on_later_queries() -> None:
    table = grown(2, 1, 2)
    queries = np.arange(3, len(table))
    seen = visible_slots(VISIBLE, table, queries)
    later = total_bias((Boost(2.0),), table, queries, seen)
    assert later[0].tolist() == [0.0] * 8  # its own set
    assert later[2].tolist() == [0, 0, 0, 2, 2, 0, 0, 0]
    assert later[4].tolist() == [0, 0, 0, 2, 2, 0, 0, 0]
    own = total_bias((Boost(2.0, own_set=True),), table, queries, seen)
    assert own[0].tolist() == [0, 0, 0, 2, 2, 0, 0, 0]


def test_log_weights_of_a_set_are_its_renormalised_probabilities() -> None:
    table = grown(4, 1)
    scores = total_bias(
        (LogWeight(),), table, np.array([7]), visible_slots(ISOLATED, table, np.array([7]))
    )[0]
    np.testing.assert_allclose(scores, [0, 0, 0, *[np.log(0.25)] * 4, 0], rtol=1e-6)


def test_mass_neutral_counts_what_the_row_sees() -> None:
    table = grown(3, 1)
    queries = np.array([3, 6])
    isolated = total_bias((MassNeutral(),), table, queries, visible_slots(ISOLATED, table, queries))
    np.testing.assert_allclose(isolated[0], 0)
    np.testing.assert_allclose(isolated[1], [0, 0, 0, *[-np.log(3)] * 3, 0], rtol=1e-6)
    visible = total_bias((MassNeutral(),), table, queries, visible_slots(VISIBLE, table, queries))
    np.testing.assert_allclose(visible[0, 3:6], -np.log(3), rtol=1e-6)


def superposed() -> SlotTable:
    """Two members of weights 0.75 and 0.25; then 0.2 and 0.6 for x, 0.5 and 0.1 for y; then z."""
    table = prompt_table([1, 2])
    for weight, evidence in (
        ((0.75, 0.25), ((0.3,), (0.1,))),
        ((0.5, 0.5), ((0.2, 0.6), (0.5, 0.1))),
        ((1.0,), ((0.9, 0.3),)),
    ):
        n = len(weight)
        table = table.with_set(
            token=np.arange(n),
            position=np.full(n, table.n_steps + 2, np.float32),
            probability=np.asarray(weight, np.float32),
            weight=np.asarray(weight, np.float32),
            evidence=np.log(np.asarray(evidence, np.float32)),
        )
    return table


def shares(table: SlotTable, query: int) -> np.ndarray:
    queries = np.array([query])
    seen = visible_slots(ISOLATED, table, queries)
    return np.exp(total_bias((LogPosterior(),), table, queries, seen)[0])


def test_the_posterior_of_a_set_follows_bayes_for_each_query_of_the_next() -> None:
    table = superposed()
    np.testing.assert_allclose(shares(table, 4)[2:4], [0.5, 0.5], rtol=1e-5)  # .75*.2 = .25*.6
    np.testing.assert_allclose(shares(table, 5)[2:4], [0.9375, 0.0625], rtol=1e-5)
    assert shares(table, 4)[[0, 1, 4, 5]].tolist() == [1, 1, 1, 1]


def test_the_posterior_passes_through_the_sets_in_between() -> None:
    after = shares(superposed(), 6)
    np.testing.assert_allclose(after[4:6], [0.75, 0.25], rtol=1e-5)  # .5*.9 against .5*.3
    first = 0.75 * 0.5 + 0.25 * 0.9375
    np.testing.assert_allclose(after[2:4], [first, 1 - first], rtol=1e-5)


def test_a_dead_member_leaves_its_share_to_the_others() -> None:
    table = superposed().mark_pruned([2], 2)
    assert shares(table, 6)[3] == pytest.approx(1)


def test_a_posterior_without_evidence_is_refused() -> None:
    table = grown(2, 1)
    with pytest.raises(InputError, match="evidence of every set"):
        shares(table, 5)


@pytest.mark.parametrize(
    ("text", "biases"),
    [
        ("boost:0.5", (Boost(0.5),)),
        ("log-weight", (LogWeight(),)),
        ("mass-neutral+boost:-1", (MassNeutral(), Boost(-1.0))),
        ("posterior", (LogPosterior(),)),
    ],
)
def test_biases_are_read(text: str, biases: tuple) -> None:
    assert parse_bias(text) == biases


@pytest.mark.parametrize("text", ["", "boost", "boost:x", "loud"])
def test_anything_else_is_no_bias(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse_bias(text)
