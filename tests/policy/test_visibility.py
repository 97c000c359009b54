import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempo.errors import InputError
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import (
    ISOLATED,
    ORDERED,
    VISIBLE,
    BeforeSlot,
    BeforeStep,
    SameStep,
    Self,
    Window,
    visible_slots,
)
from tests.policy.test_slots import grown

widths = st.lists(st.integers(1, 4), min_size=1, max_size=4)
relations = st.sampled_from([BeforeStep(), SameStep(), BeforeSlot(), Self(), Window(2.0)])


def everyone(table: SlotTable) -> np.ndarray:
    return np.arange(len(table))


@given(widths=widths, one=relations, other=relations)
def test_relations_compose_like_sets(widths, one, other) -> None:
    table = grown(*widths)
    queries = everyone(table)
    left, right = one.sees(table, queries), other.sees(table, queries)
    assert ((one & other).sees(table, queries) == (left & right)).all()
    assert ((one | other).sees(table, queries) == (left | right)).all()
    assert ((~one).sees(table, queries) == ~left).all()
    assert ((~(one & other)).sees(table, queries) == (~one | ~other).sees(table, queries)).all()


@given(widths=widths)
def test_isolated_sees_its_past_and_itself_only(widths) -> None:
    table = grown(*widths)
    seen = visible_slots(ISOLATED, table, everyone(table))
    for slot in range(len(table)):
        own = (
            set(range(3)) & set(range(slot + 1))
            if slot < 3
            else set(np.flatnonzero(table.step < table.step[slot]))
        )
        assert set(np.flatnonzero(seen[slot])) == own | {slot}


@given(widths=widths)
def test_visible_adds_all_siblings_and_ordered_the_earlier_ones(widths) -> None:
    table = grown(*widths)
    queries = np.arange(3, len(table))
    isolated, visible, ordered = (
        visible_slots(see, table, queries) for see in (ISOLATED, VISIBLE, ORDERED)
    )
    assert (visible.sum(-1) - isolated.sum(-1) == table.width[queries] - 1).all()
    assert (ordered.sum(-1) - isolated.sum(-1) == table.rank[queries]).all()


def test_prompt_rows_are_causal_under_any_relation() -> None:
    table = grown(2)
    assert (
        visible_slots(Self(), table, np.arange(3))[:, :3] == np.tril(np.ones((3, 3), bool))
    ).all()


def test_windows_are_measured_in_positions_not_in_slots() -> None:
    table = grown(4, 1)  # positions 0 1 2 | 3 3 3 3 | 4
    seen = visible_slots(ISOLATED, table, np.array([7]), window=2)[0]
    assert np.flatnonzero(seen).tolist() == [3, 4, 5, 6, 7]


def test_the_dead_are_seen_up_to_the_step_they_died_at() -> None:
    table = grown(2, 1, 1)
    died = table.died_at_step.copy()
    died[4] = 2
    dead = SlotTable(
        **({name: getattr(table, name) for name in table.__slots__} | {"died_at_step": died})
    )
    seen = visible_slots(ISOLATED, dead, np.array([5, 6]))
    assert seen[:, 4].tolist() == [True, False]


def test_a_relation_that_hides_everything_is_refused() -> None:
    with pytest.raises(AssertionError, match="no slot"):
        visible_slots(Self() & ~Self(), grown(1), np.array([3]))


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        Window(0)
