import numpy as np
import pytest

from tempo.errors import InputError
from tempo_analysis.parallel.head_kinds import (
    KINDS,
    UNTYPED,
    index_effect,
    index_shares,
    kind_columns,
    kinds_by_index,
)

RNG = np.random.default_rng(5)
LAYERS, HEADS = 20, 6
NOISE = RNG.normal(size=(LAYERS, HEADS, 1))
BY_INDEX = np.arange(HEADS, dtype=float)[None, :, None]


def test_heads_in_the_same_order_everywhere_are_explained_by_their_number():
    found = index_effect(np.broadcast_to(BY_INDEX, (LAYERS, HEADS, 1)), permutations=499)
    assert found.share == pytest.approx(1)
    assert found.p == pytest.approx(1 / 500)
    np.testing.assert_allclose(found.index_mean[:, 0], BY_INDEX[0, :, 0] - 2.5)


def test_the_share_is_the_f_ratio_of_an_analysis_of_variance():
    centred = (NOISE - NOISE.mean(1, keepdims=True))[..., 0]
    means = centred.mean(0)
    by_hand = sum(LAYERS * mean**2 for mean in means) / sum(v**2 for v in centred.ravel())
    assert index_effect(NOISE, permutations=99).share == pytest.approx(by_hand)
    np.testing.assert_allclose(index_shares([NOISE[..., 0]]), [by_hand])


def test_a_layers_own_level_does_not_count():
    level = RNG.normal(size=(LAYERS, 1, 1)) * 100
    plain, moved = (index_effect(values, permutations=199) for values in (NOISE, NOISE + level))
    assert moved.share == pytest.approx(plain.share)
    assert moved.p == plain.p


def test_unrelated_heads_have_p_below_a_level_as_often_as_it_says():
    p = [
        index_effect(RNG.normal(size=(8, 5, 1)), permutations=199, seed=seed).p
        for seed in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10


def test_the_expected_share_of_permuted_heads_is_one_over_the_layers():
    shares = [index_effect(RNG.normal(size=(10, 4, 1)), permutations=9).share for _ in range(400)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.01)
    assert index_effect(NOISE, permutations=9).chance == 1 / LAYERS


def test_a_weak_effect_of_the_number_is_found():
    found = index_effect(NOISE + 0.4 * BY_INDEX, permutations=999)
    assert found.p < 0.01
    assert found.share > found.detectable > found.chance


def test_layers_with_a_head_without_data_are_left_out():
    holes = NOISE.copy()
    holes[3, 2] = np.nan
    found = index_effect(holes, permutations=9)
    assert found.n_layers == LAYERS - 1
    assert found.share == pytest.approx(index_effect(np.delete(NOISE, 3, 0), permutations=9).share)


def test_nothing_to_compare_is_refused():
    with pytest.raises(InputError, match="got 1 layers"):
        index_effect(NOISE[:1])
    with pytest.raises(InputError, match="got equal ones"):
        index_effect(np.ones((3, 4, 1)))
    assert np.isnan(index_shares([np.full((3, 4), np.nan), np.ones((3, 4))])).all()


def test_kinds_are_columns_and_counted_by_number():
    kind = np.array([[0, 2], [0, 4], [UNTYPED, 2]])
    columns = kind_columns(kind)
    assert columns.shape == (3, 2, len(KINDS))
    assert np.isnan(columns[2, 0]).all()
    np.testing.assert_array_equal(columns[1, 1], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(kinds_by_index(kind), [[2, 0, 0, 0, 0], [0, 0, 2, 0, 1]])


def test_kinds_that_follow_the_number_are_found():
    kind = np.broadcast_to(np.arange(HEADS) % 3, (LAYERS, HEADS)).copy()
    assert index_effect(kind_columns(kind), permutations=199).p == pytest.approx(1 / 200)
    mixed = RNG.integers(0, 3, (LAYERS, HEADS))
    assert index_effect(kind_columns(mixed), permutations=199).p > 0.01
