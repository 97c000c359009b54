import numpy as np
import pytest

from tempo.policy.slots import SlotTable, prompt_table


def grown(*widths: int) -> SlotTable:
    table = prompt_table([7, 8, 9])
    for base, width in enumerate(widths, 3):
        table = table.with_set(
            token=np.arange(width),
            position=np.full(width, base, np.float32),
            probability=np.full(width, 0.5, np.float32),
            weight=np.full(width, 1 / width, np.float32),
        )
    return table


def test_a_prompt_is_one_chain_at_positions_from_zero() -> None:
    table = prompt_table([7, 8, 9])
    assert table.position.tolist() == [0, 1, 2]
    assert table.parent.tolist() == [-1, 0, 1]
    assert np.isnan(table.probability).all()
    assert table.n_prompt == 3
    assert table.n_steps == 0


def test_a_set_hangs_on_the_top_member_of_the_set_before() -> None:
    table = grown(2, 3, 1)
    assert table.parent[3:].tolist() == [2, 2, 3, 3, 3, 5]
    assert table.step[3:].tolist() == [1, 1, 2, 2, 2, 3]
    assert table.rank[3:].tolist() == [0, 1, 0, 1, 2, 0]
    assert table.width.tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 1]
    assert table.members(2).tolist() == [5, 6, 7]


def test_upto_gives_the_table_of_an_earlier_moment() -> None:
    table = grown(2, 3)
    earlier = table.upto(5)
    assert len(earlier) == 5
    assert earlier.n_steps == 1
    assert earlier.token.tolist() == table.token[:5].tolist()


def test_a_child_before_its_parent_is_a_broken_table() -> None:
    table = grown(1)
    columns = {name: getattr(table, name) for name in table.__slots__}
    with pytest.raises(AssertionError, match="parent"):
        SlotTable(**(columns | {"parent": np.array([-1, 0, 1, 3], np.int32)}))
