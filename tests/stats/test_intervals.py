import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tempo.errors import TooFewPromptsError
from tempo_analysis.stats.intervals import (
    BOOTSTRAP,
    INFINITE,
    MARGIN,
    RESAMPLES,
    SAME,
    STUDENT,
    Interval,
    benjamini_hochberg,
    curve,
    equivalent,
    estimate_with_interval,
    interval,
    p_values,
    paired_difference,
)

RNG = np.random.default_rng(3)
FORTY = RNG.normal(0.4, 1.0, 40)
TWELVE = RNG.normal(-0.2, 0.3, 12)


def test_from_thirty_prompts_on_the_interval_is_scipys_bca_bootstrap():
    expected = stats.bootstrap(
        (FORTY,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    found = interval(FORTY)
    assert found.method == BOOTSTRAP
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.estimate == pytest.approx(FORTY.mean())


def test_from_eight_to_twenty_nine_prompts_the_interval_is_students_t():
    expected = stats.ttest_1samp(TWELVE, 0).confidence_interval(0.95)
    found = interval(TWELVE)
    assert found.method == STUDENT
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert [interval(FORTY[:n]).method for n in (8, 29, 30)] == [STUDENT, STUDENT, BOOTSTRAP]


def test_fewer_than_eight_prompts_with_data_are_refused():
    values = np.where(np.arange(12) < 7, TWELVE, np.nan)
    with pytest.raises(TooFewPromptsError, match="expected at least 8 prompts with data"):
        interval(values)


def test_too_few_prompts_still_have_an_estimate_and_say_why_there_is_no_interval():
    found = estimate_with_interval(np.array([1.0, 2.0, np.nan]))
    assert found.estimate == 1.5
    assert np.isnan([found.low, found.high]).all()
    assert (found.n, found.n_dropped) == (2, 1)
    assert found.method == "too few prompts for an interval (2 of 8)"


def test_no_data_is_nan_and_never_zero():
    found = estimate_with_interval(np.full(9, np.nan))
    assert np.isnan([found.estimate, found.low, found.high]).all()
    assert (found.n, found.n_dropped) == (0, 9)


@pytest.mark.parametrize("n", [10, 40])
def test_prompts_without_data_are_dropped_and_counted(n: int):
    padded = np.concatenate([FORTY[:n], [np.nan] * 3])
    alone, with_gaps = interval(FORTY[:n]), interval(padded)
    assert (with_gaps.low, with_gaps.high, with_gaps.n) == (alone.low, alone.high, n)
    assert with_gaps.n_dropped == 3


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("value", [0.0, -0.7, 1e9])
def test_without_spread_the_interval_is_the_value_itself(n: int, value: float):
    found = interval(np.full(n, value))
    assert (found.estimate, found.low, found.high, found.method) == (value, value, value, SAME)


def test_rounding_is_no_spread():
    values = np.log(0.5) + np.tile([0.0, 1e-16], 20)
    assert interval(values).method == SAME


def test_a_single_deviating_prompt_gives_finite_limits():
    values = np.zeros(40)
    values[7] = 1.0
    found = interval(values)
    assert found.low <= found.estimate <= found.high


def test_infinite_values_have_no_interval():
    found = estimate_with_interval(np.append(TWELVE, -np.inf))
    assert found.estimate == -np.inf
    assert np.isnan(found.low)
    assert found.method == INFINITE


def test_the_seed_decides_the_resamples():
    assert interval(FORTY, seed=1) == interval(FORTY, seed=1)
    assert interval(FORTY, seed=1).low != interval(FORTY, seed=2).low


def test_a_paired_difference_uses_the_prompts_that_have_both():
    second = FORTY - 0.3 + RNG.normal(0, 1e-3, 40)
    gaps = np.where(np.arange(40) < 5, np.nan, second)
    found = paired_difference(FORTY, gaps)
    assert found.estimate == pytest.approx(0.3, abs=1e-3)
    assert (found.n, found.n_dropped) == (35, 5)
    assert found.high - found.low < 1e-3


def test_every_point_of_a_curve_is_the_interval_of_its_prompts():
    table = RNG.normal(size=(40, 4))
    table[:30, 1] = np.nan
    table[:, 2] = np.nan
    table[:, 3] = 2.0
    found = curve(np.arange(4), table)
    for point in range(4):
        alone = estimate_with_interval(table[:, point])
        expected = [alone.estimate, alone.low, alone.high]
        here = [found.estimate[point], found.low[point], found.high[point]]
        np.testing.assert_allclose(here, expected, rtol=1e-12)
        assert (found.n[point], found.methods[point]) == (alone.n, alone.method)
    assert found.n.tolist() == [40, 10, 0, 40]


def test_the_interval_of_a_ratio_is_that_of_its_logarithm():
    found = interval(np.log(np.linspace(0.5, 2, 12)))
    ratio = found.exponentiated()
    assert ratio.estimate == pytest.approx(np.exp(found.estimate))
    assert ratio.logarithm().low == pytest.approx(found.low)
    assert ratio.n == 12


@pytest.mark.parametrize(
    ("low", "high", "within"),
    [
        (-0.09, 0.09, True),
        (-MARGIN, 0.0, False),
        (0.01, 0.2, False),
        (np.nan, np.nan, False),
    ],
)
def test_equivalence_needs_the_whole_interval_inside_ten_percent(low, high, within):
    assert equivalent(Interval(0.0, low, high, 20, STUDENT)) is within


def test_p_values_are_those_of_the_one_sample_t_test():
    table = RNG.normal(0.2, 1, (15, 3, 2))
    table[0, 1, 1] = np.nan
    expected = stats.ttest_1samp(table, 0, nan_policy="omit").pvalue
    np.testing.assert_allclose(p_values(table), expected, rtol=1e-10)


def test_series_that_cannot_be_tested_have_no_p_value():
    table = np.full((15, 3), np.nan)
    table[:7, 0] = 1.0
    table[:, 1] = 0.5
    assert np.isnan(p_values(table)).all()


def test_benjamini_hochberg_adjusts_the_tests_there_are():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    np.testing.assert_allclose(benjamini_hochberg(p), [[0.03, np.nan], [0.04, 0.04]])
    assert np.isnan(benjamini_hochberg(np.full((2, 2), np.nan))).all()


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5), min_size=8, max_size=34),
    shift=st.floats(-3, 3),
)
def test_an_interval_holds_its_estimate_and_moves_with_the_data(values, shift):
    found, moved = interval(np.array(values)), interval(np.array(values) + shift)
    assert found.low - 1e-12 <= found.estimate <= found.high + 1e-12
    assert moved.low == pytest.approx(found.low + shift, abs=1e-6)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-6)
