import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from tempo.errors import InputError
from tempo.testing.planted import VOCABULARY, planted_trace, random_readout, stored_readout
from tempo_analysis.parallel.divergence import (
    IDENTICAL,
    MEASURES,
    divergence,
    divergence_means,
    prompt_divergence,
    readout_distance,
)


def whole(p: np.ndarray, q: np.ndarray) -> dict[str, float]:
    middle = (p + q) / 2
    return {
        "kl_forward": rel_entr(p, q).sum(),
        "kl_backward": rel_entr(q, p).sum(),
        "js": (rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2,
        "cosine": p @ q / np.linalg.norm(p) / np.linalg.norm(q),
    }


@st.composite
def pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """Two distributions over 50 tokens, from nearly equal to unrelated."""
    seed, apart = draw(st.integers(0, 10_000)), draw(st.sampled_from([0.01, 0.3, 1.0, 3.0]))
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, draw(st.sampled_from([0.5, 2.0, 5.0])), 50)
    both = np.exp(np.stack([scores, scores + rng.normal(0, apart, 50)]))
    return tuple(both / both.sum(-1, keepdims=True))


@settings(derandomize=True, max_examples=150, deadline=None)
@given(pairs(), st.integers(1, 49))
def test_truncated_readouts_give_lower_bounds(both, top):
    p, q = both
    found = readout_distance(stored_readout(p, top), stored_readout(q, top))
    for name, exact in whole(p, q).items():
        assert -1e-12 <= getattr(found, name) <= exact + 1e-6, name
    assert not found.complete
    assert found.js <= np.log(2)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(pairs())
def test_whole_readouts_give_exact_values(both):
    p, q = both
    found = readout_distance(stored_readout(p, 50), stored_readout(q, 50))
    for name, exact in whole(p, q).items():
        assert getattr(found, name) == pytest.approx(exact, abs=1e-6), name
    assert found.complete
    assert found.shared_mass == pytest.approx(1)


def test_identical_readouts_are_not_apart():
    p = stored_readout(random_readout(0, 1), 256)
    found = readout_distance(p, p)
    assert (found.kl_forward, found.kl_backward, found.js) == (0, 0, 0)
    assert found.top_overlap == 1
    assert 1 - 1e-3 < found.cosine <= 1


def test_whole_identical_readouts_have_the_values_of_identical_ones():
    p = stored_readout(random_readout(0, 1), VOCABULARY)
    found = readout_distance(p, p)
    for name, same in IDENTICAL.items():
        assert getattr(found, name) == pytest.approx(same, abs=1e-15), name
    assert set(MEASURES) - set(IDENTICAL) == {"shared_mass"}


def test_top_overlaps_count_the_best_tokens_of_both():
    p = np.exp(-np.arange(20.0))
    q = p.copy()
    q[[0, 1]] = q[[1, 0]]  # the two best change places
    q[[4, 7]] = q[[7, 4]]  # the fifth leaves the best five, not the best ten
    first, second = stored_readout(p / p.sum(), 20), stored_readout(q / q.sum(), 20)
    found = readout_distance(first, second)
    assert (found.top_1_overlap, found.top_5_overlap, found.top_overlap) == (0.0, 0.8, 1.0)


def test_short_lists_are_compared_as_far_as_they_go():
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.6, 0.1, 0.3])
    found = readout_distance(stored_readout(p, 2), stored_readout(q, 2))
    assert (found.top_1_overlap, found.top_5_overlap) == (1.0, 0.5)


def test_a_token_that_one_list_lacks_goes_to_the_rest_on_both_sides():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    q = np.array([0.5, 0.05, 0.15, 0.3])
    found = readout_distance(stored_readout(p, 2), stored_readout(q, 2))  # {0, 1} and {0, 3}
    assert found.js == pytest.approx(0, abs=1e-7)  # 0.5 and a rest of 0.5 on both sides
    assert found.shared_mass == pytest.approx(0.5)
    assert found.top_overlap == 0.5
    assert not found.complete


def test_a_tail_rounded_to_nothing_is_not_read_as_impossible():
    p, q = np.array([0.6, 0.39, 0.01]), np.array([0.7, 0.3, 0.0])
    found = readout_distance(stored_readout(p, 2), stored_readout(q, 2))
    assert np.isfinite(found.kl_forward)
    assert found.kl_forward <= rel_entr(p[:2], np.array([0.7, 0.3]))[:2].sum() + 1


def test_lists_without_a_common_token_say_nothing_and_show_it():
    p, q = np.array([0.9, 0.1, 0.0, 0.0]), np.array([0.0, 0.0, 0.1, 0.9])
    found = readout_distance(stored_readout(p, 1), stored_readout(q, 1))
    assert (found.js, found.shared_mass, found.top_overlap) == (0, 0, 0)


# --- traces


def replay(number: int, **changed):
    plan = {"widths": (1, 2, 1, 1), "seed": number}
    first = planted_trace(**plan)
    return first, planted_trace(**(plan | {"relation": "visible", "arm": "visible"} | changed))


def shifted(seed: int, step: int) -> np.ndarray:
    return random_readout(seed + 1000, step)


def test_steps_before_the_first_set_are_left_out():
    found = prompt_divergence(*replay(0, readouts=shifted))
    np.testing.assert_array_equal(np.isnan(found.by_step).all(-1), [True, False, False, False])
    never = prompt_divergence(planted_trace(widths=(1, 1)), planted_trace(widths=(1, 1)))
    assert np.isnan(never.overall()).all()


def test_a_step_has_the_distance_of_its_own_readouts():
    first, second = replay(3, readouts=shifted, top=VOCABULARY)
    found = prompt_divergence(first, second)
    exact = whole(random_readout(3, 3), shifted(3, 3))["js"]
    assert found.by_step[2, 2] < exact
    both = prompt_divergence(
        planted_trace(seed=3, top=VOCABULARY),
        planted_trace(seed=3, readouts=shifted, top=VOCABULARY),
    )
    assert both.by_step[2, 2] == pytest.approx(exact, abs=1e-6)
    assert both.complete


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"seed": 1}, "token"),
        ({"positions": "unique"}, "position"),
        ({"widths": (2, 1, 1, 1)}, "position"),
    ],
)
def test_other_tokens_or_positions_are_refused(changed, column):
    with pytest.raises(InputError, match=f"got different {column}s; replay one arm's sets"):
        prompt_divergence(*replay(0, **changed))


def test_only_steps_that_both_hold_are_compared():
    first, _ = replay(0)
    shorter = planted_trace(widths=(1, 2, 1), seed=0)
    assert len(prompt_divergence(first, shorter).by_step) == 3


def test_prompts_are_averaged_with_intervals():
    found = divergence([prompt_divergence(*replay(n, readouts=shifted)) for n in range(12)])
    assert found.lower_bounds
    assert found.js.n.tolist() == [0, 12, 12, 12]
    assert (found.js.low[1:] > 0).all()
    assert (found.js.high[1:] < np.log(2)).all()
    same = divergence([prompt_divergence(*replay(n)) for n in range(12)])
    np.testing.assert_array_equal(same.js.estimate[1:], 0)
    np.testing.assert_array_equal(same.top_overlap.low[1:], 1)


def test_steps_are_averaged_within_a_prompt_first():
    prompts = [prompt_divergence(*replay(n, readouts=shifted)) for n in range(12)]
    found = divergence_means(prompts)
    assert tuple(found) == MEASURES
    by_prompt = [np.nanmean(prompt.by_step[:, 2]) for prompt in prompts]
    assert found["js"].estimate == pytest.approx(np.mean(by_prompt), rel=1e-12)
    assert (found["js"].n, found["top_1_overlap"].n) == (12, 12)
    same = divergence_means([prompt_divergence(*replay(n)) for n in range(12)])
    assert same["kl_forward"].estimate == same["kl_backward"].estimate == 0
    assert same["top_1_overlap"].low == same["top_5_overlap"].low == 1
    assert divergence_means([])["js"].n == 0
