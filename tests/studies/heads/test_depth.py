"""Where a role lives: exact centroids, intervals over sequences, and two models."""

import numpy as np
import pytest

from tempo.errors import TooFewPromptsError
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.studies.heads.assignment import RoleScores, assign_role
from tempo_analysis.studies.heads.depth import depth_difference, depth_of

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
    return assign_role(
        "a_role",
        mean_over_prompts(scores),
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
    assert len(found.draws) == 1000


def test_noise_within_sequences_does_not_pull_the_centroid_to_the_middle():
    """Heads at chance on average, above it in half of the sequences."""
    rng = np.random.default_rng(0)
    scores = CHANCE + rng.normal(0, 0.3, (60, 5, 40))
    scores[:, 4, 0] += 5.0
    found = depth_of(_role(scores))
    within = np.maximum(scores - CHANCE, 0).sum(2)
    pulled = float((within @ np.arange(5) / 4 / within.sum(1)).mean())
    assert found.centroid.low > pulled + 0.05
    mean = np.maximum(scores.mean(0) - CHANCE, 0).sum(1)
    assert found.centroid.estimate == pytest.approx(float(mean @ np.arange(5) / 4 / mean.sum()))


def test_a_sequence_without_data_for_a_head_is_left_out_and_not_read_as_nothing():
    scores = np.full((20, 5, 3), CHANCE)
    scores[:, 2, 0] = 0.9
    scores[10:, 2, 0] = np.nan
    found = depth_of(_role(scores))
    assert found.heads[0] == (2, 0)
    interval = found.centroid
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_role_at_chance_lives_nowhere():
    assert np.isnan(depth_of(role_at({})).centroid.estimate)


def test_a_role_that_weights_decide_has_a_depth_without_an_interval():
    score = np.zeros((5, 3))
    score[2] = 1.0
    role = assign_role(
        "ov", score, np.zeros_like(score), null_p99=0.5, p=1 - score, threshold=0.5, unit="share"
    )
    found = depth_of(role)
    assert found.centroid.estimate == pytest.approx(0.5)
    assert np.isnan(found.centroid.low)
    assert found.n_assigned == 3


def test_two_models_differ_by_the_difference_of_their_centroids():
    early, late = depth_of(role_at({1: 0.3}, spread=0.2)), depth_of(role_at({3: 0.3}, spread=0.2))
    paired = depth_difference(late, early, same_sequences=True)
    assert (paired.estimate, paired.low, paired.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_same_sequences_pair():
    """A shift that is the same in every sequence is certain if they pair and uncertain if not."""
    rng = np.random.default_rng(0)
    share = rng.uniform(0.2, 0.8, 40)
    first, second = (np.full((40, 5, 3), CHANCE) for _ in range(2))
    first[:, 4, 0] += share
    first[:, 0, 0] += 1 - share
    second[:, 3, 0] += share
    second[:, 0, 0] += 1 - share
    both = depth_of(_role(first)), depth_of(_role(second))
    paired, apart = (depth_difference(*both, same_sequences=same) for same in (True, False))
    assert paired.estimate == apart.estimate == pytest.approx(share.mean() / 4)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_a_side_without_resamples_is_refused():
    weights = assign_role(
        "ov",
        np.ones((5, 3)),
        np.zeros((5, 3)),
        null_p99=0.5,
        p=np.zeros((5, 3)),
        threshold=0.5,
        unit="share",
    )
    with pytest.raises(TooFewPromptsError, match="data on both sides"):
        depth_difference(depth_of(weights), depth_of(role_at({1: 0.3})), same_sequences=True)


def test_a_role_without_data_has_no_depth_and_no_best_heads():
    found = depth_of(_role(np.full((12, 5, 3), np.nan)))
    assert np.isnan(found.median.estimate)
    assert found.median.n == 0
    assert found.heads == ()
