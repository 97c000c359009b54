import numpy as np
import pytest

from tempo.testing.planted import planted_trace
from tempo_analysis.parallel.widths import prompt_widths, repetition, top_path, widths


@pytest.mark.parametrize(
    ("path", "share"),
    [
        ([1, 2, 3, 4, 5], 0.0),
        ([7, 7, 7, 7, 7, 7], 3 / 4),
        ([1, 2, 3, 1, 2, 3], 1 / 4),
        ([1, 2, 3], 0.0),
    ],
)
def test_repetition_is_the_share_of_trigrams_seen_before(path, share):
    assert repetition(np.array(path)) == share


def test_a_path_of_two_tokens_has_no_repetition():
    assert np.isnan(repetition(np.array([4, 4])))


def test_the_top_path_has_the_first_member_of_every_set():
    trace = planted_trace(widths=(2, 1, 3), prompt_length=2, tokens=[0, 1, 10, 11, 20, 30, 31, 32])
    assert top_path(trace.slots).tolist() == [10, 20, 30]


def test_one_prompt_is_described():
    dropped = [(1, 5, 0.2, "max_width"), (3, 6, 0.1, "max_width"), (3, 7, 0.3, "eos")]
    found = prompt_widths(planted_trace(widths=(2, 1, 3), dropped=dropped, stopped="eos"))
    assert found.width.tolist() == [2, 1, 3]
    assert (found.mean_width, found.parallel_share) == (2.0, pytest.approx(2 / 3))
    assert found.dropped == {"max_width": 2, "eos": 1}
    assert found.stopped == "eos"


def test_a_prompt_without_sets_has_no_width():
    found = prompt_widths(planted_trace(widths=()))
    assert np.isnan([found.mean_width, found.parallel_share, found.repetition]).all()


def test_prompts_are_combined_step_by_step():
    traces = [planted_trace(widths=(2, 1)), planted_trace(widths=(4,), stopped="eos")]
    found = widths([prompt_widths(trace) for trace in traces])
    assert found.width_by_step.estimate.tolist() == [3.0, 1.0]
    assert found.width_by_step.n.tolist() == [2, 1]
    assert found.parallel_share_by_step.estimate.tolist() == [1.0, 0.0]
    assert (found.n_sets, found.n_parallel_sets) == (3, 2)
    assert found.stopped == {"steps": 1, "eos": 1}
