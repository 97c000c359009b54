import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tempo.errors import InputError
from tempo.testing.planted import planted_trace
from tempo_analysis.parallel.diversity import (
    bleu,
    common_length,
    distinct,
    diversity,
    effective_branches,
    prompt_diversity,
    self_bleu,
)

PATHS = st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=12), min_size=2, max_size=5)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int64)


# --- distinct-n


@pytest.mark.parametrize(
    ("tokens", "shares"),
    [
        ([1, 2, 3, 4], [1, 1, 1]),
        ([7, 7, 7, 7, 7], [1 / 5, 1 / 4, 1 / 3]),
        ([1, 2, 1, 2, 1], [2 / 5, 2 / 4, 2 / 3]),
        ([1, 2], [1, 1, np.nan]),
    ],
)
def test_distinct_is_the_share_of_different_grams(tokens, shares):
    np.testing.assert_array_equal([distinct([ids(*tokens)], n) for n in (1, 2, 3)], shares)


def test_no_gram_spans_two_paths():
    both = [ids(1, 2), ids(2, 1)]
    assert distinct(both, 1) == 2 / 4
    assert distinct(both, 2) == 1.0  # (1, 2) and (2, 1), never (2, 2)
    assert distinct([ids(1, 2), ids(1, 2)], 2) == 1 / 2


# --- BLEU


@pytest.mark.parametrize(
    ("path", "references", "score"),
    [
        ([1, 2, 3, 4, 5], [[1, 2, 3, 4, 5]], 1.0),
        ([1, 2, 3, 4, 5], [[1, 2, 3, 4, 6]], (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        ([1, 2, 3, 9], [[1, 2, 3, 4]], (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25),
        ([1, 2, 3, 4], [[5, 6, 7, 8]], 0.0),
        # a token counts as often as in one reference: twice, not three times
        ([1, 1, 1, 2], [[1, 1, 5, 6], [1, 7, 8, 9]], (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** 0.25),
        # half as long as the only reference
        ([1, 2, 3, 4], [[1, 2, 3, 4, 5, 6, 7, 8]], np.exp(1 - 8 / 4)),
        # the nearest length counts, the shorter of 3 and 5
        ([1, 2, 3, 4], [[1, 2, 3, 4, 5], [6, 7, 8]], 1.0),
        ([1, 2, 3, 4], [[1, 2, 3, 4, 5], [6, 7]], np.exp(1 - 5 / 4)),
    ],
)
def test_bleu_by_hand(path, references, score):
    found = bleu(ids(*path), [ids(*reference) for reference in references])
    assert found == pytest.approx(score, rel=1e-12)


def test_self_bleu_by_hand():
    paths = [ids(1, 2, 3, 4, 5), ids(1, 2, 3, 4, 6), ids(7, 8, 9, 10, 11)]
    assert self_bleu(paths) == pytest.approx(2 / 3 * 0.2**0.25, rel=1e-12)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(PATHS)
def test_self_bleu_is_a_share_that_order_does_not_change(paths):
    arrays = [ids(*path) for path in paths]
    found = self_bleu(arrays)
    assert 0 <= found <= 1
    assert self_bleu(arrays[::-1]) == pytest.approx(found, rel=1e-12)
    assert self_bleu([*arrays, *arrays]) == pytest.approx(1, rel=1e-12)


def test_one_path_has_nothing_to_be_compared_with():
    with pytest.raises(InputError, match="expected at least 2 paths to compare, got 1"):
        self_bleu([ids(1, 2, 3, 4)])


@pytest.mark.parametrize(("path", "references"), [([1, 2, 3], [[1, 2, 3]]), ([1, 2, 3, 4], [])])
def test_a_path_without_a_gram_of_four_or_a_reference_is_refused(path, references):
    with pytest.raises(InputError, match="a path of at least 4 tokens and a reference"):
        bleu(ids(*path), [ids(*reference) for reference in references])


# --- branches


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_shares_are_as_many_branches_as_members(n):
    assert effective_branches(np.full(n, 0.3)) == pytest.approx(n, rel=1e-12)


def test_uneven_shares_are_fewer_branches():
    assert effective_branches(np.array([1.0, 0.0, 0.0])) == 1
    expected = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert effective_branches(np.array([0.75, 0.25], np.float32)) == pytest.approx(expected)
    assert effective_branches(np.array([1.5, 0.5])) == pytest.approx(expected)


def test_a_set_without_any_share_has_no_branches():
    assert np.isnan(effective_branches(np.zeros(3)))


# --- traces


def test_one_prompt_is_described():
    tokens = [0, 1, 10, 11, 20, 10, 31, 32, 20]
    trace = planted_trace(widths=(2, 1, 3, 1), prompt_length=2, tokens=tokens)
    found = prompt_diversity(trace, length=4)  # the top path is 10 20 10 20
    assert found.distinct.tolist() == [2 / 4, 2 / 3, 1.0]
    assert found.repetition == 0
    assert found.slots_per_token == 7 / 4
    assert found.forwards_per_token == 1
    weight = trace.slots.weight[trace.members(3)].astype(float)
    expected = np.exp(-(weight * np.log(weight)).sum())
    assert found.effective_branches[2] == pytest.approx(expected, rel=1e-6)
    assert found.effective_branches[[1, 3]].tolist() == [1, 1]


def test_only_the_first_steps_count():
    short = prompt_diversity(planted_trace(widths=(2, 1, 3, 1)), length=2)
    assert short.slots_per_token == 3 / 2
    assert len(short.effective_branches) == 2


def test_a_run_that_yields_more_text_costs_less_per_token():
    found = prompt_diversity(planted_trace(widths=(2, 2, 2)), length=3, n_tokens=12)
    assert (found.slots_per_token, found.forwards_per_token) == (1 / 2, 1 / 4)


def test_prompts_are_cut_to_one_length_and_averaged():
    traces = [planted_trace(widths=(2, 1, 3), seed=n) for n in range(5)]
    traces += [planted_trace(widths=(1, 1), seed=n) for n in range(5)]
    length = common_length(traces)
    found = diversity([prompt_diversity(trace, length=length) for trace in traces])
    assert found.length == length == 2
    assert found.slots_per_token.estimate == pytest.approx((1.5 + 1) / 2)
    assert found.slots_per_token.low < 1.25 < found.slots_per_token.high
    assert found.forwards_per_token.low == found.forwards_per_token.high == 1
    assert found.distinct_1.n == 10
    assert (found.distinct_3.n, found.distinct_3.n_dropped) == (0, 10)
    assert found.repetition.n == 0
    assert found.effective_branches.estimate[1] == 1
    assert common_length([]) == 0


@pytest.mark.parametrize("length", [0, 4])
def test_a_length_that_the_trace_does_not_have_is_refused(length):
    with pytest.raises(InputError, match=f"from 1 to the 3 steps of prompt 'p0000', got {length}"):
        prompt_diversity(planted_trace(), length=length)


def test_a_text_without_tokens_has_no_cost():
    with pytest.raises(InputError, match="expected at least 1 token of text, got 0"):
        prompt_diversity(planted_trace(), length=2, n_tokens=0)


def test_prompts_of_different_lengths_are_not_averaged():
    prompts = [prompt_diversity(planted_trace(), length=length) for length in (2, 3)]
    with pytest.raises(InputError, match=r"cut to one length, got lengths \[2, 3\]"):
        diversity(prompts)
    with pytest.raises(InputError, match=r"got lengths \[\]"):
        diversity([])
