import numpy as np
import pytest

from tempo_analysis.stats.intervals import INFINITE, MARGIN, Interval, too_few
from tempo_analysis.stats.verdict import (
    axes_verdict,
    change_verdict,
    comparison,
    divergence_verdict,
    parallel_verdict,
    verdict,
)


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


@pytest.mark.parametrize(
    ("against", "text"),
    [
        (found(-1e-7, 1e-7), "no difference beyond rounding"),
        (found(0.0, 0.0), "no difference beyond rounding"),
        (found(-0.3, -0.1), "lower than identical readouts by 0.2"),
        (found(-0.1, 0.3), "inconclusive"),
        (found(np.nan, np.nan, 3, too_few(3)), too_few(3)),
    ],
)
def test_rounding_is_no_change(against, text):
    assert change_verdict(against, "identical readouts", scale="difference") == text


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        ((), "nothing changed"),
        (("positions",), "positions changed, nothing else"),
        (("positions", "relation"), "positions, relation changed, nothing else"),
        (("tokens",), "tokens changed, nothing else; relation and bias cannot be compared"),
    ],
)
def test_what_changed_is_said_and_that_nothing_else_did(axes, text):
    assert axes_verdict(axes) == text


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


# --- parallel tokens

SAME_ROW, LOWER_ROW = (0.85, 1.1), (0.4, 0.625)
STEADY, WIDE, DOWN, SLIGHTLY_DOWN = (0.95, 1.05), (0.8, 1.3), (0.5, 0.8), (0.85, 0.98)
LESS, EVEN, MORE = (0.6, 0.8), (0.8, 1.3), (1.2, 1.5)


def judged(over_null, drift, dilution, *, n: int = 60, n_sets: int = 300) -> str:
    intervals = [found(np.log(low), np.log(high), n) for low, high in (over_null, drift, dilution)]
    return parallel_verdict(*intervals, n_sets=n_sets)


@pytest.mark.parametrize(
    ("over_null", "drift", "dilution", "text"),
    [
        (SAME_ROW, STEADY, LESS, "dilution only (mass lower by 31 %)"),
        (SAME_ROW, (0.92, 0.98), LESS, "dilution only (mass lower by 31 %)"),
        (LOWER_ROW, STEADY, LESS, "dilution only (mass lower by 31 %)"),
        (SAME_ROW, DOWN, LESS, "down-weighted by 37 % (beyond the 10 % margin)"),
        (SAME_ROW, DOWN, MORE, "down-weighted by 37 % (beyond the 10 % margin)"),
        (
            SAME_ROW,
            SLIGHTLY_DOWN,
            LESS,
            "down-weighted by 9 % (a drift within the 10 % margin is possible)",
        ),
        (SAME_ROW, (1.25, 2.0), LESS, "up-weighted by 58 % (beyond the 10 % margin)"),
        (
            SAME_ROW,
            (1.02, 1.2),
            EVEN,
            "up-weighted by 11 % (a drift within the 10 % margin is possible)",
        ),
        (SAME_ROW, STEADY, EVEN, "indistinguishable from the null"),
        (SAME_ROW, WIDE, EVEN, "indistinguishable from the null"),
        ((0.92, 0.98), STEADY, EVEN, "indistinguishable from the null"),
        (SAME_ROW, WIDE, (0.92, 0.98), "indistinguishable from the null"),
        (SAME_ROW, STEADY, (0.92, 0.98), "dilution only (mass lower by 5 %)"),
        (
            SAME_ROW,
            WIDE,
            LESS,
            "inconclusive (dilution, but a score drift beyond the 10 % margin is possible)",
        ),
        (
            LOWER_ROW,
            WIDE,
            EVEN,
            "inconclusive (no score drift shown, yet an effect on the row ratio)",
        ),
        (
            LOWER_ROW,
            STEADY,
            MORE,
            "inconclusive (no score drift shown, yet an effect on the row ratio and competition)",
        ),
    ],
)
def test_parallel_tokens_are_judged_by_three_intervals(over_null, drift, dilution, text):
    assert judged(over_null, drift, dilution).rpartition("; row ratio ")[0] == text


def test_the_row_ratio_is_said_with_its_interval_and_never_makes_a_down_weighting():
    text = judged((0.5, 0.5), STEADY, LESS)
    assert text == "dilution only (mass lower by 31 %); row ratio 0.50 of its null [0.50, 0.50]"
    assert "down-weighted" not in judged((0.1, 0.2), WIDE, LESS)


@pytest.mark.parametrize(
    ("high", "start"),
    [
        (-MARGIN - 1e-9, "down-weighted by 18 % (beyond the 10 % margin)"),
        (-MARGIN + 1e-9, "down-weighted by 18 % (a drift within"),
        (-1e-5, "down-weighted by 14 % (a drift within"),
        (-1e-7, "inconclusive"),
        (0.0, "inconclusive"),
    ],
)
def test_the_upper_limit_of_the_drift_decides_about_down_weighting(high: float, start: str):
    drift = found(-0.3, high, 60)
    text = parallel_verdict(found(-0.1, 0.1, 60), drift, found(-0.4, -0.2, 60), n_sets=300)
    assert text.startswith(start)


def test_rounding_is_no_dilution():
    nothing = found(-1e-9, -1e-9, 60)
    text = parallel_verdict(nothing, nothing, nothing, n_sets=300)
    assert text.startswith("indistinguishable from the null; ")


@pytest.mark.parametrize(
    ("n", "n_sets", "text"),
    [
        (49, 300, "too little data for a claim (49 of 50 prompts, 300 of 200 sets)"),
        (60, 199, "too little data for a claim (60 of 50 prompts, 199 of 200 sets)"),
    ],
)
def test_a_claim_needs_fifty_prompts_and_two_hundred_sets(n: int, n_sets: int, text: str):
    assert judged(SAME_ROW, DOWN, LESS, n=n, n_sets=n_sets) == text
    assert judged(SAME_ROW, DOWN, LESS, n=50, n_sets=200).startswith("down-weighted")


@pytest.mark.parametrize("place", range(3))
def test_the_interval_with_the_fewest_prompts_decides_whether_there_is_a_claim(place: int):
    intervals = [found(-0.4, -0.2, 12 if number == place else 60) for number in range(3)]
    text = parallel_verdict(*intervals, n_sets=300)
    assert text.startswith("too little data for a claim (12 of 50 prompts")


def test_intervals_that_are_missing_are_named_with_their_reason():
    few, none = found(np.nan, np.nan, 3, too_few(3)), found(np.nan, np.nan, 0)
    good, infinite = found(-0.4, -0.2, 60), found(np.nan, np.nan, 60, INFINITE)
    assert parallel_verdict(good, few, good, n_sets=9) == f"no verdict: score drift: {too_few(3)}"
    assert parallel_verdict(none, good, infinite, n_sets=300) == (
        f"no verdict: row ratio over its null: no data; dilution: {INFINITE}"
    )
