from itertools import permutations
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tempo.errors import InputError
from tempo.policy.schedules import Linear
from tempo.policy.selection import MinP, Sample, Threshold, TopK, TopP, parse_select
from tempo.policy.serialize import rule_to_dict
from tempo.run.budget import largest_width

P = np.array([0.05, 0.3, 0.2, 0.3, 0.15])
LOG = np.log(P).astype(np.float32)
N_DRAWS = 4000
logits = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=30)
shares = st.floats(1e-3, 1.0)


def ids(choice) -> list[int]:
    return choice.token.tolist()


def normalised(values) -> np.ndarray:
    log_p = np.array(values, np.float64)
    return (log_p - np.logaddexp.reduce(log_p)).astype(np.float32)


# --- nucleus


@pytest.mark.parametrize(
    ("p", "tokens"),
    [
        (0.1, [1]),
        (0.29, [1]),
        (0.31, [1, 3]),
        (0.59, [1, 3]),
        (0.61, [1, 3, 2]),
        (0.81, [1, 3, 2, 4]),
        (0.96, [1, 3, 2, 4, 0]),
        (1, [1, 3, 2, 4, 0]),
    ],
)
def test_a_nucleus_keeps_the_token_that_crosses_p(p, tokens: list[int]) -> None:
    choice = TopP(p).select(LOG, 1)
    assert ids(choice) == tokens
    np.testing.assert_array_equal(choice.log_probability, LOG[tokens])


def test_a_mass_that_is_met_exactly_needs_no_further_token() -> None:
    halves = np.log([0.125, 0.5, 0.25, 0.125]).astype(np.float32)
    found = [ids(TopP(p).select(halves, 1)) for p in (0.5, 0.75, 0.875, 1.0)]
    assert found == [[1], [1, 2], [1, 2, 0], [1, 2, 0, 3]]


@given(logits, shares)
def test_a_nucleus_reaches_p_and_would_not_without_its_last_token(values, p) -> None:
    log_p = normalised(values)
    choice = TopP(p, max_width=1000).select(log_p, 1)
    kept = np.exp(choice.log_probability.astype(np.float64))
    assert kept.sum() >= p - 1e-5
    assert kept[:-1].sum() < p + 1e-5
    assert ids(choice) == ids(TopK(len(kept)).select(log_p, 1))


@given(logits, shares, shares)
def test_a_larger_p_only_adds_tokens(values, p, q) -> None:
    log_p = normalised(values)
    small, large = (TopP(x, max_width=1000).select(log_p, 1) for x in sorted((p, q)))
    assert ids(large)[: len(small.token)] == ids(small)


# --- minimum ratio


@pytest.mark.parametrize(
    ("ratio", "tokens"),
    [(1, [1, 3]), (0.7, [1, 3]), (0.66, [1, 3, 2]), (0.49, [1, 3, 2, 4]), (0.1, [1, 3, 2, 4, 0])],
)
def test_min_p_keeps_what_comes_near_the_top(ratio, tokens: list[int]) -> None:
    choice = MinP(ratio).select(LOG, 1)
    assert ids(choice) == tokens
    np.testing.assert_array_equal(choice.log_probability, LOG[tokens])


@given(logits, shares)
def test_min_p_keeps_exactly_what_reaches_the_ratio(values, ratio) -> None:
    log_p = normalised(values)
    choice = MinP(ratio, max_width=1000).select(log_p, 1)
    relative = np.exp(log_p - log_p.max())
    assert set(ids(choice)) == set(np.flatnonzero(relative >= np.float32(ratio)))
    assert (np.diff(choice.log_probability) <= 0).all()


@given(logits, shares, shares)
def test_a_smaller_ratio_only_adds_tokens(values, one, other) -> None:
    log_p = normalised(values)
    large, small = (MinP(x, max_width=1000).select(log_p, 1) for x in sorted((one, other)))
    assert ids(large)[: len(small.token)] == ids(small)


def test_the_margin_of_min_p_is_that_of_a_threshold_at_the_ratio_of_the_top() -> None:
    assert MinP(0.6).select(LOG, 1).tau_margin == pytest.approx(0.02, abs=1e-6)
    assert np.isnan(TopP(0.6).select(LOG, 1).tau_margin)
    assert np.isnan(Sample(2).select(LOG, 1).tau_margin)


# --- both


@pytest.mark.parametrize("rule", [TopP(0.81, max_width=2), MinP(0.49, max_width=2)])
def test_tokens_cut_by_the_width_are_recorded(rule) -> None:
    choice = rule.select(LOG, 1)
    assert ids(choice) == [1, 3]
    assert [(d.token, d.reason) for d in choice.dropped] == [(2, "max_width"), (4, "max_width")]
    assert [d.probability for d in choice.dropped] == pytest.approx([0.2, 0.15])


@pytest.mark.parametrize("rule", [TopP(0.55), MinP(0.6)])
def test_what_was_ruled_out_before_counts_for_nothing(rule) -> None:
    barred = np.append(LOG + np.log(1e-30), -np.inf).astype(np.float32)
    assert ids(rule.select(barred, 1)) == ids(rule.select(LOG, 1))
    assert ids(Sample(9).select(barred, 1)) == [1, 3, 2, 4, 0]
    far = np.array([-np.inf, -300, -np.inf], np.float32)
    assert ids(rule.select(far, 1)) == ids(Sample(2).select(far, 1)) == [1]


# --- random draws


def drawn(rule: Sample, n: int = N_DRAWS) -> list[tuple[int, ...]]:
    return [tuple(ids(rule.select(LOG, 1, f"p{number:04d}"))) for number in range(n)]


def tempered(temperature: float | int) -> np.ndarray:
    weights = P ** (1 / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_one_token_is_drawn_with_its_tempered_probability(temperature) -> None:
    found = np.bincount([token for (token,) in drawn(Sample(1, temperature))], minlength=5)
    assert chisquare(found, tempered(temperature) * N_DRAWS).pvalue > 0.01


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_set_is_drawn_as_one_token_after_the_other(temperature) -> None:
    def exact(members: tuple[int, ...]) -> float:
        orders = (share[list(order)] for order in permutations(members))
        return sum(prod(p / (1 - p_before) for p, p_before in sequence(o)) for o in orders)

    def sequence(order: np.ndarray) -> list[tuple[float, float]]:
        return list(zip(order.tolist(), [0, *np.cumsum(order)[:-1].tolist()], strict=True))

    share = tempered(temperature)
    sets = [tuple(sorted(members)) for members in drawn(Sample(2, temperature))]
    every = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    expected = [exact(members) * N_DRAWS for members in every]
    assert sum(expected) == pytest.approx(N_DRAWS)
    assert chisquare([sets.count(members) for members in every], expected).pvalue > 0.01


def test_draws_at_other_steps_and_seeds_have_the_same_law_and_are_independent() -> None:
    keys = [(seed, step) for seed in range(40) for step in range(1, 51)]
    first = [ids(Sample(1, seed=seed).select(LOG, step))[0] for seed, step in keys]
    assert chisquare(np.bincount(first, minlength=5), P * len(keys)).pvalue > 0.01
    after = [ids(Sample(1, seed=seed).select(LOG, step + 1))[0] for seed, step in keys]
    same = np.mean(np.equal(first, after))
    assert same == pytest.approx((P**2).sum(), abs=4 * np.sqrt(0.25 / len(keys)))


def test_members_are_distinct_ordered_by_probability_and_carry_it_untempered() -> None:
    for number in range(50):
        choice = Sample(3, 2.5).select(LOG, number + 1, "a")
        assert len(set(ids(choice))) == 3
        assert ids(choice) == sorted(ids(choice), key=lambda token: (-P[token], token))
        np.testing.assert_array_equal(choice.log_probability, LOG[choice.token])
        assert choice.dropped == ()


def test_a_draw_depends_on_its_key_and_on_nothing_else() -> None:
    flat = np.full(1000, -np.log(1000), np.float32)
    rule = Sample(3, seed=5)
    alone = ids(rule.select(flat, 2, "p0007"))
    for other in ("p0001", "p0002"):
        rule.select(flat, 2, other)
    assert ids(Sample(3, seed=5).select(flat, 2, "p0007")) == alone
    others = [
        Sample(3, seed=6).select(flat, 2, "p0007"),
        rule.select(flat, 3, "p0007"),
        rule.select(flat, 2, "p0008"),
    ]
    assert all(ids(other) != alone for other in others)


def test_the_draws_of_a_seed_are_the_same_in_every_process() -> None:
    flat = np.full(1000, -np.log(1000), np.float32)
    assert ids(Sample(3, seed=5).select(flat, 2, "p0007")) == [486, 540, 633]


def test_the_smallest_temperatures_give_the_most_probable_tokens() -> None:
    assert ids(Sample(3, 1e-300).select(LOG[[0, 1, 2, 4]], 1)) == [1, 2, 3]
    assert ids(Sample(1, 1e-9).select(LOG[:3], 1)) == [1]


def test_a_set_is_no_wider_than_what_is_possible() -> None:
    two = np.log(np.array([0.5, 1e-30, 0.5])).astype(np.float32)
    two[1] = -np.inf
    assert ids(Sample(8).select(two, 1)) == [0, 2]


@given(logits, st.integers(1, 12), st.floats(0.05, 20), st.integers(0, 2**70), st.text())
def test_any_distribution_gives_a_set_of_the_width(values, width, heat, seed, prompt) -> None:
    choice = Sample(width, heat, seed).select(normalised(values), 1, prompt)
    assert len(set(ids(choice))) == len(choice.token) == min(width, len(values))
    assert (np.diff(choice.log_probability) <= 0).all()


# --- texts, plans, refusals


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("threshold", Threshold(0.2, 6)),
        ("top-k:3", TopK(3)),
        ("top-p:0.9", TopP(0.9, 6)),
        ("min-p:0.05", MinP(0.05, 6)),
        ("sample:2", Sample(2, 1.0, 7)),
        ("sample:2:0.7", Sample(2, 0.7, 7)),
    ],
)
def test_a_text_names_a_rule(text: str, rule) -> None:
    assert parse_select(text, threshold=0.2, max_width=6, seed=7) == rule
    assert largest_width(rule) == {"threshold": 5, "top-k": 3, "sample": 2}.get(
        text.partition(":")[0], 6
    )


def test_a_threshold_may_be_a_schedule_text() -> None:
    rule = parse_select("threshold", threshold="linear:0.3:0.1:5")
    assert rule == Threshold(Linear(0.3, 0.1, 5), 8)


@pytest.mark.parametrize(
    "text",
    [
        *("", "threshold:0.1", "top-k", "top-k:x", "top-k:2.5", "top-p", "top-p:most", "min-p:"),
        *("sample", "sample:x", "sample:2:hot", "sample:2:1:0", "beam:3"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a selection of threshold, top-k:K, top-p:P"):
        parse_select(text)


@pytest.mark.parametrize("text", ["top-k:9", "sample:9", "sample:9:0.5"])
def test_a_width_beyond_the_largest_set_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"at most 8 tokens.*got '{text}'; raise --max-width to 9"):
        parse_select(text)


@pytest.mark.parametrize("make", [TopP, MinP])
@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(make, share) -> None:
    with pytest.raises(InputError, match="a share above 0 and at most 1"):
        make(share)


@pytest.mark.parametrize("heat", [0, -1, float("nan"), float("inf")])
def test_a_temperature_outside_its_range_is_refused(heat) -> None:
    with pytest.raises(InputError, match="a temperature above 0"):
        Sample(1, heat)


def test_impossible_widths_and_seeds_are_refused() -> None:
    for make in (TopP, MinP):
        with pytest.raises(InputError, match="max_width of at least 1, got 0"):
            make(0.5, 0)
    with pytest.raises(InputError, match="width of at least 1, got 0"):
        Sample(0)
    with pytest.raises(InputError, match="a seed of at least 0, got -1"):
        Sample(seed=-1)


def test_rules_are_described_in_plain_json() -> None:
    assert rule_to_dict(Sample(2, 0.7, 5)) == {
        "rule": "Sample",
        "width": 2,
        "temperature": 0.7,
        "seed": 5,
    }
    assert rule_to_dict(TopP(0.9)) == {"rule": "TopP", "p": 0.9, "max_width": 8}
