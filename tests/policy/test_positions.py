import numpy as np
import pytest

from tempo.errors import InputError
from tempo.policy.positions import Depth, Given, Offset, Shared, Swapped, Unique, parse_place
from tempo.policy.slots import prompt_table


def test_shared_members_sit_together_and_the_next_set_one_further() -> None:
    assert Shared().positions(5, 3).tolist() == [5, 5, 5]
    assert Shared().next_base(5, 3) == 6


def test_offset_members_are_delta_apart_and_the_next_set_one_past_the_base() -> None:
    np.testing.assert_allclose(Offset(0.25).positions(5, 3), [5, 5.25, 5.5])
    assert Offset(0.25).next_base(5, 3) == 6


def test_unique_positions_are_never_shared() -> None:
    assert Unique().positions(5, 3).tolist() == [5, 6, 7]
    assert Unique().next_base(5, 3) == 8


def test_an_offset_that_float32_rounds_away_is_refused() -> None:
    Offset(0.001).check(100.0, "float32")
    with pytest.raises(InputError, match=r"at least 0\.00012"):
        Offset(1e-4).check(100.0, "float32")
    with pytest.raises(InputError, match="at least"):
        Offset(float("inf")).check(1.0, "float32")


@pytest.mark.parametrize("delta", [0, -0.5, float("nan")])
def test_an_offset_that_is_not_above_zero_is_refused(delta) -> None:
    with pytest.raises(InputError, match="above 0"):
        Offset(delta).check(1.0, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_fraction_in_half_precision_is_refused_and_a_whole_number_is_not(dtype: str) -> None:
    Offset(2).check(100.0, dtype)
    with pytest.raises(InputError, match="whole position offset"):
        Offset(0.5).check(100.0, dtype)


def test_places_are_read_by_name() -> None:
    assert parse_place("shared") == Shared()
    assert parse_place("unique") == Unique()
    assert parse_place("offset:-0.5") == Offset(-0.5)
    for text in ("offset", "offset:x", "near"):
        with pytest.raises(InputError, match="expected"):
            parse_place(text)


def test_swapped_positions_are_those_of_the_other_rule_reversed() -> None:
    assert Swapped(Unique()).positions(5, 3).tolist() == [7, 6, 5]
    assert Swapped(Unique()).next_base(5, 3) == 8
    assert parse_place("swapped-offset:0.5") == Swapped(Offset(0.5))


def test_given_positions_are_used_step_by_step() -> None:
    table = prompt_table([1, 2])
    place = Given(((2, 2), (9.5,)))
    parent = np.array([1, 1])
    assert place.of_set(table, 2, parent).tolist() == [2, 2]
    with pytest.raises(InputError, match="for each of 1 members of step 1, got 2"):
        place.of_set(table, 2, parent[:1])


def test_a_child_lies_one_past_its_parent() -> None:
    table = prompt_table([1, 2, 3])
    assert Depth().of_set(table, 3, np.array([2, 0])).tolist() == [3, 1]
    assert parse_place("depth") == Depth()
