"""Where a role lives: exact centroids, intervals over sequences, and two models."""

import numpy as np
import pytest
from scipy import stats

from analysis.roles.assignment import RoleScores, judged
from analysis.roles.depth import depth_difference, depth_of
from tempo.errors import TooFewPromptsError

CHANCE = 0.1


def role_at(layers: dict[int, float], *, n: int = 12, spread: float = 0.0, seed: int = 0):
    """A role whose heads score above chance in these layers of five only."""
    rng = np.random.default_rng(seed)
    scores = np.full((n, 5, 3), CHANCE)
    for layer, excess in layers.items():
        scores[:, layer] += excess * np.exp(rng.normal(0, spread, (n, 1)))
    return _role(scores)


def _role(scores: np.ndarray) -> RoleScores:
    chance = np.full(scores.shape[1:], CHANCE)
    control = np.full_like(scores, CHANCE)
    return judged(
        "a_role",
        scores.mean(0),
        chance,
        per_sequence=scores,
        control=control,
        threshold=0.3,
        unit="share",
    )


def test_the_centroid_of_one_layer_is_its_depth():
    for layer in range(5):
        found = depth_of(role_at({layer: 0.5}))
        assert found.centroid.estimate == pytest.approx(layer / 4)
        assert found.median.estimate == pytest.approx(layer / 4, abs=0.26)


def test_layers_weigh_by_what_they_score_above_chance():
    found = depth_of(role_at({0: 0.1, 4: 0.3}))
    assert found.centroid.estimate == pytest.approx(0.75)


def test_the_interval_is_over_sequences():
    found = depth_of(role_at({0: 0.2, 4: 0.2}, spread=0.5, n=40))
    assert found.centroid.n == 40
    assert found.centroid.low < found.centroid.estimate < found.centroid.high
    assert len(found.by_sequence) == 40


def test_a_role_at_chance_lives_nowhere():
    assert np.isnan(depth_of(role_at({})).centroid.estimate)


def test_a_role_that_weights_decide_has_a_depth_without_an_interval():
    score = np.zeros((5, 3))
    score[2] = 1.0
    role = judged(
        "ov", score, np.zeros_like(score), null_p99=0.5, p=1 - score, threshold=0.5, unit="share"
    )
    found = depth_of(role)
    assert found.centroid.estimate == pytest.approx(0.5)
    assert np.isnan(found.centroid.low)
    assert found.n_assigned == 3


def test_two_models_differ_by_the_difference_of_their_centroids():
    early, late = depth_of(role_at({1: 0.3}, spread=0.2)), depth_of(role_at({3: 0.3}, spread=0.2))
    paired = depth_difference(late.by_sequence, early.by_sequence, same_sequences=True)
    assert paired.estimate == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.6, 0.1, 20), rng.normal(0.4, 0.2, 30)
    apart = depth_difference(first, second, same_sequences=False)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (apart.low, apart.high) == pytest.approx((expected.low, expected.high))
    assert apart.estimate == pytest.approx(first.mean() - second.mean())


def test_too_few_sequences_are_refused():
    few = np.array([0.5])
    with pytest.raises(TooFewPromptsError):
        depth_difference(few, few, same_sequences=False)
    with pytest.raises(TooFewPromptsError):
        depth_difference(few, few, same_sequences=True)


def test_a_role_without_data_has_no_depth_and_no_best_heads():
    found = depth_of(_role(np.full((12, 5, 3), np.nan)))
    assert np.isnan(found.median.estimate)
    assert found.median.n == 0
    assert found.heads == ()
