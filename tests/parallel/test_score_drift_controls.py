from collections.abc import Sequence

import numpy as np
import pytest

from tempo.errors import NoParallelSetsError
from tempo.testing.planted import Twins, by_token, planted_twins, uniform
from tempo_analysis.parallel.alone_pairs import reference_slots, rows_after
from tempo_analysis.parallel.score_drift_controls import (
    JACKKNIFE,
    NO_SLOPE,
    PromptLambdas,
    lambda_slopes,
    pooled_slopes,
    prompt_lambdas,
)
from tempo_analysis.parallel.set_effect import split_member
from tempo_analysis.stats.intervals import BOOTSTRAP, too_few

RNG = np.random.default_rng(8)


def prompt(
    rank_slope: float = 0.0, log_slope: float = 0.0, *, company: float = 0.0, noise: float = 0.0
) -> PromptLambdas:
    """Three sets with levels of their own; `company` is what siblings cost for each rank."""
    widths = RNG.integers(2, 5, 3)
    step = np.repeat(np.arange(1, 4), widths)
    rank = np.concatenate([np.arange(width) for width in widths])
    logs = np.log(RNG.uniform(0.1, 0.9, len(rank)))
    alone = rank_slope * rank + log_slope * logs + 10 * step + noise * RNG.normal(size=len(rank))
    return PromptLambdas(step, rank, logs, alone + company * rank, alone)


def within_sets(prompts: Sequence[PromptLambdas]) -> tuple[np.ndarray, np.ndarray]:
    """Lambda alone and the predictors, with a dummy for each set, for a plain regression."""
    y = np.concatenate([one.alone for one in prompts])
    x = np.concatenate([np.column_stack([one.rank, one.log_probability]) for one in prompts])
    label = np.concatenate([100 * n + one.step for n, one in enumerate(prompts)])
    return y, np.column_stack([x, label[:, None] == np.unique(label)])


def test_planted_slopes_are_found_and_levels_of_sets_do_not_count():
    found = lambda_slopes([prompt(-0.3, 0.5) for _ in range(12)])
    assert found.alone.rank_given_probability.estimate == pytest.approx(-0.3)
    assert found.alone.probability_given_rank.estimate == pytest.approx(0.5)
    np.testing.assert_allclose(found.drift.rank.estimate, 0, atol=1e-12)


def test_the_slopes_are_those_of_a_regression_with_a_dummy_for_each_set():
    prompts = [prompt(-0.3, 0.5, noise=1) for _ in range(12)]
    y, x = within_sets(prompts)
    by_hand = np.linalg.lstsq(x, y, rcond=None)[0][:2]
    found = lambda_slopes(prompts).alone
    assert found.rank_given_probability.estimate == pytest.approx(by_hand[0])
    assert found.probability_given_rank.estimate == pytest.approx(by_hand[1])
    by_hand = np.linalg.lstsq(np.delete(x, 1, 1), y, rcond=None)[0][0]
    assert found.rank.estimate == pytest.approx(by_hand)


def test_what_siblings_cost_shows_in_the_drift_only():
    found = lambda_slopes([prompt(-0.2, company=-0.1) for _ in range(12)])
    assert found.alone.rank.estimate == pytest.approx(-0.2)
    assert found.in_set.rank.estimate == pytest.approx(-0.3)
    assert found.drift.rank.estimate == pytest.approx(-0.1)


@pytest.mark.parametrize(("n_prompts", "method"), [(12, JACKKNIFE), (40, BOOTSTRAP)])
def test_intervals_hold_the_truth_as_often_as_they_say(n_prompts: int, method: str):
    held = 0
    for _ in range(60):
        prompts = [prompt(-0.3, noise=1) for _ in range(n_prompts)]
        x = [one.rank[:, None].astype(float) for one in prompts]
        steps = [one.step for one in prompts]
        (found,) = pooled_slopes([one.alone for one in prompts], x, steps)
        assert found.method == method
        held += found.low < -0.3 < found.high
    assert 51 <= held <= 60


def test_few_prompts_have_no_interval_and_prompts_without_sets_are_counted():
    empty = PromptLambdas(*(np.zeros(0, kind) for kind in (int, int, float, float, float)))
    found = lambda_slopes([prompt(-0.3) for _ in range(5)] + [empty]).alone.rank
    assert (found.n, found.n_dropped, found.method) == (5, 1, too_few(5))
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    with pytest.raises(NoParallelSetsError):
        lambda_slopes([empty])


def test_predictors_that_go_together_have_no_slopes():
    y, x = [RNG.normal(size=4) for _ in range(9)], np.tile(np.arange(4.0)[:, None], (1, 2))
    labels = np.zeros(4, np.int64)
    found = pooled_slopes(y, [x] * 9, [labels] * 9)
    assert [one.method for one in found] == [NO_SLOPE] * 2
    assert np.isnan([one.estimate for one in found]).all()


# --- lambda from traces


def lambdas(twins: Twins, **chosen: str) -> PromptLambdas:
    return prompt_lambdas(twins.in_set, twins.alone, **{"reference": "without"} | chosen)


def test_uniform_attention_has_no_slope():
    found = lambdas(planted_twins((2, 1, 3, 1), rows=uniform))
    np.testing.assert_array_equal(found.step, [1, 1, 3, 3, 3])
    np.testing.assert_array_equal(found.rank, [0, 1, 0, 1, 2])
    np.testing.assert_allclose(found.in_set, -np.log(4), rtol=1e-6)
    np.testing.assert_allclose(found.alone, -np.log(4), rtol=1e-6)


@pytest.mark.parametrize("reference", ["with", "without"])
def test_lambda_is_the_log_mass_over_that_of_the_prompt_and_its_change_the_drift(reference):
    twins = planted_twins((2, 1, 3, 1), rows=by_token())
    found = lambdas(twins, reference=reference)
    rows = rows_after(twins.in_set, 3)
    slots = reference_slots(rows.n_prompt, reference)
    by_hand = np.log(rows.weights[..., rows.members[1]]) - np.log(
        rows.weights[..., list(slots)].sum(-1)
    )
    assert found.in_set[3] == pytest.approx(by_hand.mean())
    for item, (step, rank) in enumerate(zip(found.step, found.rank, strict=True)):
        twin = twins.alone[int(step), int(rank)]
        split = split_member(
            twins.in_set, twin, step=int(step), rank=int(rank), reference=reference
        )
        assert found.in_set[item] - found.alone[item] == pytest.approx(split.drift.mean(), abs=1e-6)


def test_a_set_that_lacks_a_twin_is_left_out():
    twins = planted_twins((2, 1, 3, 1), rows=by_token())
    some = {key: twin for key, twin in twins.alone.items() if key != (3, 1)}
    found = prompt_lambdas(twins.in_set, some, reference="without")
    np.testing.assert_array_equal(found.step, [1, 1])
    assert len(prompt_lambdas(twins.in_set, {}, reference="without").step) == 0
