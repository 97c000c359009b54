import numpy as np
import pytest
from scipy import stats

from tempo_analysis.stats.association import (
    EVEN_AREA,
    NO_CORRELATION,
    areas,
    mean_area,
    mean_rank_correlation,
    mean_slopes,
    rank_correlations,
    slopes,
)
from tempo_analysis.stats.intervals import STUDENT, estimate_with_interval, too_few

RNG = np.random.default_rng(21)
FIRST = RNG.normal(size=(12, 9))
SECOND = 0.5 * FIRST + RNG.normal(size=(12, 9))
PAIRS = np.repeat(np.arange(10), 2)[None].repeat(12, 0)


def tied(shape: tuple[int, ...]) -> np.ndarray:
    return RNG.integers(0, 4, shape).astype(float)


def apart(prompts: int, items: int) -> np.ndarray:
    """A different level for each prompt."""
    return np.linspace(-50, 50, prompts)[:, None] + np.zeros(items)


# --- rank correlation


def test_a_rank_correlation_is_spearmans_with_and_without_ties():
    for first, second in [(FIRST, SECOND), (tied((12, 9)), tied((12, 9)))]:
        expected = [stats.spearmanr(*rows).statistic for rows in zip(first, second, strict=True)]
        np.testing.assert_allclose(rank_correlations(first, second), expected, rtol=1e-12)


def test_only_the_order_of_the_values_counts():
    found = rank_correlations(FIRST, SECOND)
    np.testing.assert_allclose(rank_correlations(np.exp(FIRST), 3 * SECOND - 1), found)
    np.testing.assert_allclose(rank_correlations(-FIRST, SECOND), -found)


def test_items_without_a_value_are_no_items():
    first, second = FIRST.copy(), SECOND.copy()
    first[:, 0] = second[:, 3] = np.nan
    kept = np.delete(np.arange(9), [0, 3])
    expected = rank_correlations(FIRST[:, kept], SECOND[:, kept])
    np.testing.assert_array_equal(rank_correlations(first, second), expected)


def test_too_few_items_or_no_variation_have_no_rank_correlation():
    first = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [np.nan] * 3])
    second = np.tile([1.0, 2.0, 3.0], (4, 1))
    np.testing.assert_array_equal(rank_correlations(first, second), [np.nan, 1, np.nan, np.nan])


def test_differences_between_prompts_make_no_rank_correlation():
    first, second = RNG.normal(size=(2, 60, 20)) + apart(60, 20)
    pooled = stats.spearmanr(first.ravel(), second.ravel()).statistic
    found = mean_rank_correlation(first, second)
    assert pooled > 0.99
    assert found.low < NO_CORRELATION < found.high
    assert found.high - found.low < 0.2


def test_differences_between_groups_make_no_rank_correlation():
    levels = PAIRS * 10.0
    first, second = levels + RNG.normal(size=(12, 20)), levels + RNG.normal(size=(12, 20))
    assert rank_correlations(first, second).min() > 0.9
    assert abs(rank_correlations(first, second, PAIRS).mean()) < 0.3
    within = np.tile([0.0, 1.0], 10)
    np.testing.assert_allclose(rank_correlations(levels + within, levels - within, PAIRS), -1)


def test_a_rank_correlation_of_pairs_counts_those_in_the_same_order():
    first = np.tile([0.0, 1.0], 10)[None]
    second = first.copy()
    second[0, :6] = 1 - second[0, :6]
    found = rank_correlations(first + PAIRS[:1], second - PAIRS[:1], PAIRS[:1])
    assert found == pytest.approx((7 - 3) / 10)


# --- AUC


def test_an_area_is_the_mann_whitney_statistic_over_the_number_of_pairs():
    scores, positive = tied((12, 30)), RNG.random((12, 30)) < 0.4
    expected = [
        stats.mannwhitneyu(row[chosen], row[~chosen]).statistic / (chosen.sum() * (~chosen).sum())
        for row, chosen in zip(scores, positive, strict=True)
    ]
    np.testing.assert_allclose(areas(scores, positive), expected, rtol=1e-12)


def test_ties_count_one_half_and_missing_scores_do_not_count():
    scores = np.array([[2.0, 1.0, np.nan], [1.0, 1.0, 0.0], [0.0, 1.0, 9.0]])
    positive = np.array([[True, False, True], [True, False, False], [True, False, False]])
    np.testing.assert_array_equal(areas(scores, positive), [1.0, 0.75, 0.0])


def test_without_a_pair_to_compare_there_is_no_area():
    scores = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, np.nan]])
    positive = np.array([[True, True], [False, False], [True, False]])
    assert np.isnan(areas(scores, positive)).all()


def test_swapping_the_two_kinds_mirrors_the_area_at_one_half():
    scores, positive = tied((12, 30)), RNG.random((12, 30)) < 0.4
    mirrored = 2 * EVEN_AREA - areas(scores, positive)
    np.testing.assert_allclose(areas(scores, ~positive), mirrored, rtol=1e-12)


def test_an_area_with_groups_compares_only_inside_them():
    positive = np.tile([True, False], 10)[None].repeat(12, 0)
    scores = PAIRS * 100.0 + np.where(positive, 1.0, 0.0)
    np.testing.assert_allclose(areas(scores, positive, PAIRS), 1.0)
    np.testing.assert_allclose(areas(scores, positive), 0.55)


# --- slopes


def test_slopes_are_those_of_least_squares_with_an_intercept():
    x = np.stack([FIRST, RNG.normal(3, 2, (12, 9))], axis=-1)
    for number, found in enumerate(slopes(SECOND, x)):
        design = np.column_stack([np.ones(9), x[number]])
        np.testing.assert_allclose(found, np.linalg.lstsq(design, SECOND[number])[0][1:])


def test_slopes_with_groups_are_those_with_an_intercept_for_each_group():
    x, y = RNG.normal(size=(12, 20, 2)), RNG.normal(size=(12, 20))
    design = np.column_stack([x[4], PAIRS[4][:, None] == np.arange(10)])
    np.testing.assert_allclose(slopes(y, x, PAIRS)[4], np.linalg.lstsq(design, y[4])[0][:2])


def test_planted_slopes_of_rank_and_log_p_are_told_apart():
    log_p = RNG.normal(-2, 1, (60, 20))
    in_pair = np.where(log_p.reshape(60, 10, 2).argsort(-1) == 0, 2.0, 1.0).reshape(60, 20)
    levels = 10 * RNG.normal(size=(60, 10)).repeat(2, -1)
    y = levels - 0.3 * in_pair + 0.5 * log_p + RNG.normal(0, 0.2, (60, 20))
    pairs = np.repeat(np.arange(10), 2)[None].repeat(60, 0)
    rank, log_p_slope = mean_slopes(y, np.stack([in_pair, log_p], axis=-1), pairs)
    assert rank.low < -0.3 < rank.high < 0
    assert 0 < log_p_slope.low < 0.5 < log_p_slope.high
    alone = mean_slopes(y, log_p[..., None], pairs)[0]
    assert alone.low > log_p_slope.high


def test_differences_between_prompts_make_no_slope():
    x, y = RNG.normal(size=(2, 60, 20))
    pooled = stats.linregress((x + apart(60, 20)).ravel(), (y + apart(60, 20)).ravel())
    found = mean_slopes(y + apart(60, 20), (x + apart(60, 20))[..., None])[0]
    assert pooled.slope > 0.99
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.2


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_unit_of_a_predictor_scales_its_slope_and_nothing_else(scale: float):
    x = np.stack([FIRST, RNG.normal(size=(12, 9))], axis=-1)
    found, scaled = slopes(SECOND, x), slopes(SECOND, x * np.array([scale, 1.0]))
    np.testing.assert_allclose(scaled, found / np.array([scale, 1.0]), rtol=1e-6)


def test_prompts_that_cannot_tell_the_slopes_have_none():
    x, y = RNG.normal(size=(6, 5, 2)), RNG.normal(size=(6, 5))
    x[1, :, 1] = 0.1
    x[2, :, 1] = 2 * x[2, :, 0] - 7
    x[3, 2:, 0] = np.nan
    x[4, 0, 0] = -np.inf
    y[5] = np.nan
    found = slopes(y, x)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()


def test_slopes_need_one_item_more_than_intercepts_and_predictors():
    x, y = RNG.normal(size=(1, 6, 2)), RNG.normal(size=(1, 6))
    three = np.array([[0, 0, 1, 1, 2, 2]])
    assert np.isfinite(slopes(y, x, three)).all()
    assert np.isnan(slopes(y[:, :5], x[:, :5], three[:, :5])).all()


# --- intervals over prompts


def test_the_intervals_are_over_the_values_of_the_prompts():
    positive = FIRST > 0
    x = FIRST[..., None]
    pairs = [
        (mean_rank_correlation(FIRST, SECOND), rank_correlations(FIRST, SECOND)),
        (mean_area(SECOND, positive), areas(SECOND, positive)),
        (mean_slopes(SECOND, x)[0], slopes(SECOND, x)[:, 0]),
    ]
    for found, values in pairs:
        assert found == estimate_with_interval(values)
        assert (found.n, found.method) == (12, STUDENT)
        assert found.low < found.estimate < found.high


def test_prompts_without_a_value_are_counted_and_too_few_are_refused():
    first = FIRST.copy()
    first[:5, 1:] = np.nan
    found = [
        mean_rank_correlation(first, SECOND),
        mean_area(np.where(np.arange(12)[:, None] < 5, np.nan, FIRST), SECOND > 0),
        *mean_slopes(SECOND, np.stack([first, FIRST**2], axis=-1)),
    ]
    assert [(each.n, each.n_dropped, each.method) for each in found] == [(7, 5, too_few(7))] * 4
    assert np.isnan([(each.low, each.high) for each in found]).all()
    assert np.isfinite([each.estimate for each in found]).all()
