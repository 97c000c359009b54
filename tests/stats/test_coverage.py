"""How often the 95 % intervals hold the truth, in simulations whose truth is 0."""

import numpy as np
import pytest

from tempo_analysis.stats.bands import band
from tempo_analysis.stats.intervals import Curve, curve, paired_difference

SIMULATIONS = 1000
PROMPTS = 100
LAYERS = 12

DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "student t, 5 d.o.f.": lambda rng, shape: rng.standard_t(5, shape),
    "skewed (gamma 4)": lambda rng, shape: rng.gamma(4, 1, shape) - 4,
}
pytestmark = pytest.mark.slow


def every_column(table: np.ndarray) -> Curve:
    """The interval of each column by itself: a simulation takes the place of a point."""
    return curve(np.arange(table.shape[1]), table)


def holds_zero(found: Curve) -> np.ndarray:
    return (found.low <= 0) & (found.high >= 0)


def correlated_layers(distribution: str, n_prompts: int) -> np.ndarray:
    """Simulation, prompt, layer; each layer is correlated with the one before (0.7)."""
    shape = (LAYERS, SIMULATIONS, n_prompts)
    layers = DISTRIBUTIONS[distribution](np.random.default_rng(5), shape)
    for layer in range(1, LAYERS):
        layers[layer] = 0.7 * layers[layer - 1] + np.sqrt(1 - 0.7**2) * layers[layer]
    return np.moveaxis(layers, 0, -1)


def simultaneous_coverage(simulations: np.ndarray) -> float:
    x = np.arange(LAYERS)
    return float(np.mean([holds_zero(band(x, one)).all() for one in simulations]))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_interval_holds_the_true_mean_in_95_percent_of_the_samples(distribution: str):
    rng = np.random.default_rng(11)
    found = every_column(DISTRIBUTIONS[distribution](rng, (PROMPTS, SIMULATIONS)))
    assert 0.93 <= holds_zero(found).mean() <= 0.97


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_paired_difference_holds_the_true_one_in_95_percent_of_the_samples(distribution: str):
    rng = np.random.default_rng(12)
    shape = (PROMPTS, SIMULATIONS)
    shared = 5 * rng.normal(size=shape)
    first = shared + DISTRIBUTIONS[distribution](rng, shape)
    second = shared + 0.5 * DISTRIBUTIONS[distribution](rng, shape)
    found = every_column(first - second)
    assert 0.93 <= holds_zero(found).mean() <= 0.97
    for simulation in range(0, SIMULATIONS, 100):
        one = paired_difference(first[:, simulation], second[:, simulation])
        expected = (found.low[simulation], found.high[simulation])
        assert (one.low, one.high) == pytest.approx(expected, rel=1e-9)
    unpaired = first.var(0) + second.var(0)
    assert (found.high - found.low).mean() < 0.5 * (2 * 1.96 * np.sqrt(unpaired / PROMPTS)).mean()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_band_holds_all_layers_at_once_in_95_percent_of_the_samples(distribution: str):
    assert 0.93 <= simultaneous_coverage(correlated_layers(distribution, PROMPTS)) <= 0.97


def test_the_band_holds_where_the_last_layers_lack_most_prompts():
    simulations = correlated_layers("normal", PROMPTS)
    simulations[:, 20:, -3:] = np.nan
    assert 0.93 <= simultaneous_coverage(simulations) <= 0.98


def test_the_band_of_a_few_prompts_is_not_too_narrow():
    assert simultaneous_coverage(correlated_layers("normal", 20)) >= 0.93


def test_pointwise_limits_hold_each_layer_but_not_all_at_once():
    simulations = correlated_layers("normal", PROMPTS)[:300]
    table = np.moveaxis(simulations, 1, 0).reshape(PROMPTS, -1)
    inside = holds_zero(every_column(table)).reshape(300, LAYERS)
    assert 0.93 <= inside.mean() <= 0.97
    assert inside.all(-1).mean() < 0.8


def test_layers_taken_for_replicates_make_an_interval_that_is_far_too_narrow():
    rng = np.random.default_rng(13)
    n_prompts = 20
    effect = rng.normal(size=(n_prompts, 1, SIMULATIONS))
    values = effect + rng.normal(size=(n_prompts, LAYERS, SIMULATIONS))
    assert 0.93 <= holds_zero(every_column(values.mean(1))).mean() <= 0.97
    flattened = values[..., :300].reshape(n_prompts * LAYERS, 300)
    assert holds_zero(every_column(flattened)).mean() < 0.7
