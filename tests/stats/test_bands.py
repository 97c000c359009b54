import numpy as np
import pytest
from scipy import stats

from tempo_analysis.stats.bands import BONFERRONI, MAX_T, band
from tempo_analysis.stats.intervals import INFINITE, RESAMPLES, SAME, curve, too_few

RNG = np.random.default_rng(7)
POINTS = 6
X = np.arange(POINTS)
EFFECT = RNG.normal(size=(40, 1))
TABLE = EFFECT + RNG.normal(0.3, 0.6, (40, POINTS))


def widths(found) -> np.ndarray:
    return found.high - found.low


def test_the_band_is_the_largest_t_over_the_points_in_resamples_of_whole_prompts():
    rng = np.random.default_rng(0)
    largest = np.empty(RESAMPLES)
    for number, drawn in enumerate(rng.multinomial(40, np.full(40, 1 / 40), RESAMPLES)):
        sample = np.repeat(TABLE, drawn, axis=0)
        error = sample.std(0, ddof=1) / np.sqrt(40)
        largest[number] = np.abs((sample.mean(0) - TABLE.mean(0)) / error).max()
    critical = np.sort(largest)[9499]
    error = TABLE.std(0, ddof=1) / np.sqrt(40)
    found = band(X, TABLE)
    np.testing.assert_allclose(found.low, TABLE.mean(0) - critical * error, rtol=1e-9)
    np.testing.assert_allclose(found.high, TABLE.mean(0) + critical * error, rtol=1e-9)
    assert found.methods == (MAX_T,) * POINTS


def test_a_band_says_that_it_is_simultaneous_and_a_curve_that_it_is_not():
    assert band(X, TABLE).simultaneous
    assert band(X, TABLE).exponentiated().simultaneous
    assert not curve(X, TABLE).simultaneous


def test_a_band_has_the_estimates_of_the_curve_and_is_wider_at_every_point():
    found, pointwise = band(X, TABLE), curve(X, TABLE)
    np.testing.assert_allclose(found.estimate, pointwise.estimate, rtol=1e-12)
    assert (found.low < pointwise.low).all()
    assert (found.high > pointwise.high).all()
    assert found.n.tolist() == pointwise.n.tolist()


def test_points_that_move_together_cost_less_than_bonferroni():
    together = EFFECT + RNG.normal(0, 0.01, (40, POINTS))
    bonferroni = stats.t.ppf(1 - 0.05 / 2 / POINTS, 39)
    single = widths(band(X[:1], together[:, :1]))[0]
    half = widths(band(X, together)) / 2 / (together.std(0, ddof=1) / np.sqrt(40))
    assert half.max() < 0.85 * bonferroni
    assert widths(band(X, together))[0] < 1.05 * single


def test_the_same_point_twice_costs_nothing():
    once, twice = band(X, TABLE), band(np.arange(2 * POINTS), np.tile(TABLE, 2))
    np.testing.assert_allclose(twice.low, np.tile(once.low, 2), rtol=1e-9)


def test_from_eight_to_twenty_nine_prompts_the_limits_are_bonferronis():
    found = band(X, TABLE[:29])
    half = stats.t.ppf(1 - 0.05 / 2 / POINTS, 28) * TABLE[:29].std(0, ddof=1) / np.sqrt(29)
    np.testing.assert_allclose(found.high, TABLE[:29].mean(0) + half, rtol=1e-12)
    kinds = [set(band(X, TABLE[:n]).methods) for n in (8, 29, 30)]
    assert kinds == [{BONFERRONI}, {BONFERRONI}, {MAX_T}]


def test_points_without_limits_say_why_and_leave_the_others_as_they_are():
    table = np.concatenate([TABLE, RNG.normal(size=(40, 4))], axis=1)
    table[:33, POINTS] = np.nan
    table[:, POINTS + 1] = np.nan
    table[3, POINTS + 2] = -np.inf
    table[:, POINTS + 3] = -0.7
    found, alone = band(np.arange(POINTS + 4), table), band(X, TABLE)
    np.testing.assert_array_equal(found.low[:POINTS], alone.low)
    assert found.methods[POINTS:] == (too_few(7), too_few(0), INFINITE, SAME)
    assert np.isnan(found.low[POINTS : POINTS + 3]).all()
    assert np.isnan(found.high[POINTS : POINTS + 3]).all()
    assert np.isnan(found.estimate[POINTS + 1])
    assert found.low[-1] == found.high[-1] == found.estimate[-1] == pytest.approx(-0.7)


def test_where_some_points_have_few_prompts_each_point_has_its_part_of_the_five_percent():
    table = TABLE.copy()
    table[12:, -1] = np.nan
    found = band(X, table)
    assert found.methods == (MAX_T,) * (POINTS - 1) + (BONFERRONI,)
    half = stats.t.ppf(1 - 0.05 / 2 / POINTS, 11) * TABLE[:12, -1].std(ddof=1) / np.sqrt(12)
    assert widths(found)[-1] == pytest.approx(2 * half)
    assert (widths(found)[:-1] > widths(band(X[:-1], TABLE[:, :-1]))).all()


def test_a_prompt_without_one_point_still_counts_at_the_others():
    table = TABLE.copy()
    table[0, 0] = np.nan
    found, complete = band(X, table), band(X, TABLE)
    assert found.n.tolist() == [39, 40, 40, 40, 40, 40]
    assert found.estimate[0] == pytest.approx(TABLE[1:, 0].mean())
    np.testing.assert_array_equal(found.estimate[1:], complete.estimate[1:])
    np.testing.assert_allclose(found.low[1:], complete.low[1:], atol=0.02)


def test_prompts_without_any_point_change_nothing():
    padded = np.concatenate([TABLE, np.full((5, POINTS), np.nan)])
    np.testing.assert_array_equal(band(X, padded).low, band(X, TABLE).low)


def test_a_point_that_a_resample_leaves_without_spread_has_bonferronis_limits():
    table = TABLE.copy()
    table[:, 0] = 0.0
    table[5, 0] = 1.0
    found = band(X, table)
    assert found.methods == (BONFERRONI,) + (MAX_T,) * (POINTS - 1)
    assert np.isfinite(found.low).all()


def test_a_band_moves_and_scales_with_its_data_point_by_point():
    scale, shift = np.geomspace(1e-3, 1e3, POINTS), np.linspace(-5, 5, POINTS)
    found, moved = band(X, TABLE), band(X, TABLE * scale + shift)
    np.testing.assert_allclose(moved.low, found.low * scale + shift, rtol=1e-9)
    np.testing.assert_allclose(moved.high, found.high * scale + shift, rtol=1e-9)


def test_the_seed_decides_the_resamples_of_a_band():
    np.testing.assert_array_equal(band(X, TABLE, seed=1).low, band(X, TABLE, seed=1).low)
    assert (band(X, TABLE, seed=1).low != band(X, TABLE, seed=2).low).all()


def test_no_points_make_an_empty_band():
    found = band(np.zeros(0, np.int64), np.zeros((40, 0)))
    assert (len(found.low), found.methods) == (0, ())
