import numpy as np
import pytest

from tempo.errors import InputError
from tempo.testing.planted import planted_trace
from tempo.trace.trace import Trace
from tempo_analysis.parallel.widths import NEVER, Collapse, collapse, path_collapse, prompt_collapse
from tempo_analysis.parallel.widths import without_collapsed as without
from tempo_analysis.stats.intervals import estimate_with_interval


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int64)


def trace_of(*tokens: int, stopped: str = "steps") -> Trace:
    """A trace whose top path has these tokens, with a second member at the first step."""
    written = [0, 1, tokens[0], 99, *tokens[1:]]
    widths = (2, *(1 for _ in tokens[1:]))
    return planted_trace(widths=widths, prompt_length=2, tokens=written, stopped=stopped)


@pytest.mark.parametrize(
    ("tokens", "step", "period"),
    [
        ([1, 2, 3, 9, 9, 9], 4, 1),
        ([5, 1, 2, 1, 2, 1, 2], 2, 2),
        ([5, 1, 2, 1, 2, 1, 2, 1], 2, 2),  # a fourth round cut short
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], 1, 3),
        ([8, 7, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], 3, 4),
        ([6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6], 1, 1),  # the shortest period that fits
    ],
)
def test_a_loop_at_the_end_is_found_where_it_starts(tokens, step, period):
    found = path_collapse(ids(*tokens))
    assert (found.loop_step, found.period) == (step, period)
    assert found.is_collapsed


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [1],
        [9, 9],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 3, 9, 9],  # twice is no loop
        [1, 2, 1, 2, 1],
        [9, 9, 9, 1, 2, 3, 4, 5, 6],  # a loop that the text left
        [1, 2, 3, 4, 5, 1, 2, 3, 4, 5],
    ],
)
def test_other_paths_did_not_collapse(tokens):
    found = path_collapse(ids(*tokens))
    assert not found.is_collapsed
    assert (found.step, found.period) == (NEVER, NEVER)


def test_a_long_phrase_that_comes_back_is_found_by_its_trigrams():
    phrase = [10, 11, 12, 13, 14, 15, 16]
    found = path_collapse(ids(1, 2, 3, *phrase * 3))
    assert found.loop_step == NEVER  # a period of 7 is none of the n-grams
    assert found.repeated_share == pytest.approx(14 / 22 - 2 / 22)  # 22 trigrams, 3 + 7 new
    assert found.repeated_step == 3 + 7 + 1
    assert found.is_collapsed


def test_only_the_tail_is_judged():
    fresh, phrase = list(range(100, 200)), list(range(8))
    repetitive = path_collapse(ids(*fresh, *phrase * 4))
    assert repetitive.repeated_share == pytest.approx(22 / 30)
    assert repetitive.repeated_step == 100 + 8 + 1
    recovered = path_collapse(ids(*phrase * 4, *fresh))
    assert (recovered.repeated_share, recovered.is_collapsed) == (0, False)


def test_the_earlier_of_both_starts_counts():
    phrase = [10, 11, 12, 13, 14, 15]
    found = path_collapse(ids(*phrase * 3, 7, 7, 7))
    assert (found.repeated_step, found.loop_step) == (7, 19)
    assert found.step == 7


def test_a_trace_is_judged_by_its_top_path():
    found = prompt_collapse(trace_of(4, 5, 7, 7, 7))
    assert (found.loop_step, found.period) == (3, 1)
    assert not prompt_collapse(trace_of(4, 5, 6, 7, 8)).is_collapsed
    assert not prompt_collapse(planted_trace(widths=())).is_collapsed


def test_the_end_of_sequence_does_not_hide_a_loop():
    assert prompt_collapse(trace_of(4, 7, 7, 7, 2, stopped="eos")).loop_step == 2
    assert not prompt_collapse(trace_of(4, 7, 7, 7, 2)).is_collapsed
    assert not prompt_collapse(trace_of(4, 5, 7, 7, 7, stopped="eos")).is_collapsed


# --- prompts


def combined(*looping: bool) -> Collapse:
    paths = [ids(1, 2, 3, 3, 3) if loops else ids(1, 2, 3, 4, 5) for loops in looping]
    return collapse([path_collapse(path) for path in paths])


def test_which_prompts_collapsed_and_where():
    found = combined(*[True] * 3, *[False] * 9)
    assert np.flatnonzero(found.is_collapsed).tolist() == [0, 1, 2]
    assert found.step.tolist() == [3] * 3 + [0] * 9
    assert found.period.tolist() == [1] * 3 + [0] * 9
    assert (found.rate.estimate, found.rate.n) == (0.25, 12)
    assert found.rate.low < 0.25 < found.rate.high


def test_metrics_can_be_told_both_ways():
    values = np.array([100.0, *range(10)])
    arm = combined(True, *[False] * 10)
    kept = without(values, arm)
    assert estimate_with_interval(values).n == 11
    found = estimate_with_interval(kept)
    assert (found.estimate, found.n, found.n_dropped) == (4.5, 10, 1)
    assert values[0] == 100  # the caller's values stay


def test_a_prompt_that_collapsed_in_any_arm_is_left_out():
    table = np.ones((3, 2))
    kept = without(table, combined(True, False, False), combined(False, False, True))
    np.testing.assert_array_equal(np.isnan(kept).all(-1), [True, False, True])
    np.testing.assert_array_equal(without(table), table)


def test_values_of_other_prompts_are_refused():
    with pytest.raises(InputError, match="one value for each of 3 prompts, got 2"):
        without(np.ones(2), combined(True, False, False))
