import numpy as np
import pytest

from analysis.statistics import Interval, too_few
from analysis.verdict import comparison, divergence_verdict, verdict


def found(low: float, high: float, n: int = 40, method: str = "BCa") -> Interval:
    return Interval((low + high) / 2, low, high, n, method)


def log(low: float, high: float) -> Interval:
    return found(np.log(low), np.log(high))


@pytest.mark.parametrize(
    ("against", "reference", "text"),
    [
        (log(0.4, 0.625), "chance", "below chance by 50 %"),
        (log(1.6, 2.5), "chance", "above chance by 100 %"),
        (log(0.95, 1.08), "chance", "within 10 % of chance"),
        (log(0.95, 0.99), "chance", "within 10 % of chance"),
        (log(0.8, 1.3), "chance", "inconclusive"),
        (log(0.4, 0.625), "the null", "lower than the null by 50 %"),
        (log(1.6, 2.5), "the null", "higher than the null by 100 %"),
        (log(0.95, 1.08), "the null", "within 10 % of the null"),
        (log(0.8, 1.3), "the null", "indistinguishable from the null"),
        (found(np.nan, np.nan, 3, too_few(3)), "chance", too_few(3)),
        (found(np.nan, np.nan, 0), "the null", "no data"),
    ],
)
def test_a_ratio_is_judged_by_its_interval_alone(against, reference, text):
    assert comparison(against, reference, scale="ratio") == text


@pytest.mark.parametrize(
    ("against", "text"),
    [
        (found(-0.3, -0.1), "below chance by 0.2"),
        (found(0.001, 0.003), "above chance by 0.002"),
        (found(-0.01, 0.02), "inconclusive"),
        (found(0.0, 0.0), "equal to chance"),
    ],
)
def test_a_difference_is_judged_by_its_interval_alone(against, text):
    assert comparison(against, "chance", scale="difference") == text


def test_both_comparisons_are_said_and_equal_ones_once():
    both = verdict(log(0.4, 0.625), log(0.8, 1.3), scale="ratio")
    assert both == "below chance by 50 %; indistinguishable from the null"
    few = found(np.nan, np.nan, 3, too_few(3))
    assert verdict(few, few, scale="ratio") == "too few prompts for an interval (3 of 8)"
    assert verdict(log(0.4, 0.625), None, scale="ratio", no_null="no null: x").endswith(
        "; no null: x"
    )


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (found(0.01, 0.02), "the readouts differ"),
        (found(0.0, 5e-7), "no difference beyond rounding"),
        (found(1e-7, 0.2), "inconclusive"),
        (found(np.nan, np.nan, 2, too_few(2)), too_few(2)),
        (found(np.nan, np.nan, 0), "no data"),
    ],
)
def test_a_divergence_is_judged_against_rounding(nats, text):
    assert divergence_verdict(nats) == text
