"""Redundancy, its index and the sweep against vectors whose answers are known."""

from collections.abc import Mapping

import numpy as np
import pytest

from tempo.errors import InputError
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.ablation.passes import Comparison
from tempo_analysis.studies.ablation.redundancy import (
    COMPARISONS,
    LINEARISED,
    PAIRED,
    PASSES,
    SAME_QUOTIENT,
    UNDEFINED,
    UNSTABLE,
    PromptRedundancy,
    PromptSweep,
    index_of,
    overlap,
    pooled_index,
    prompt_redundancy,
    prompt_sweep,
    redundancy,
    sweep,
)
from tempo_analysis.studies.ablation.verdict import (
    index_reading,
    redundancy_sentences,
    spelled,
    sweep_sentences,
)

E1, E2, E3 = np.eye(3, dtype=np.float32)[:, None]
NOTHING = np.zeros((1, 3), np.float32)


def six(base: np.ndarray, a: np.ndarray, b: np.ndarray, ab: np.ndarray) -> Mapping[str, np.ndarray]:
    """The six passes where B is the same in all heads and in the listed ones."""
    return dict(zip(PASSES, (base, a, b, b, ab, ab), strict=True))


def index(found: PromptRedundancy) -> float:
    alone = found.nip[COMPARISONS.index(Comparison("base", "B_all")), :1]
    after = found.nip[COMPARISONS.index(Comparison("A", "AB_all")), :1]
    return float(index_of(alone, after)[0])


def test_the_seven_comparisons_are_the_published_ones():
    assert [str(each) for each in COMPARISONS] == [
        "base|A",
        "base|B_all",
        "base|B_listed",
        "base|AB_all",
        "base|AB_listed",
        "A|AB_all",
        "A|AB_listed",
    ]


def test_what_a_has_removed_is_redundant():
    found = prompt_redundancy(six(E1 + E2, E2, E2, E2))
    assert index(found) == 1
    assert found.overlap[0, 0] == 1


def test_removing_the_same_share_with_and_without_a_is_independent():
    # A halves everything, B takes away the half along E1 of whatever is there
    found = prompt_redundancy(six(E1 + E2, (E1 + E2) / 2, E2, E2 / 2))
    assert index(found) == 0
    assert found.overlap[0, 0] == 0.5


def test_where_a_removes_something_else_r_is_negative_but_the_overlap_is_zero():
    found = prompt_redundancy(six(E1 + E2, E1, E2, NOTHING))
    assert index(found) == -1
    assert found.overlap[0, 0] == 0


def test_a_part_removed_is_a_part_in_the_overlap():
    # B takes away E1 + E2, of which A has removed E1
    found = prompt_redundancy(six(E1 + E2 + E3, E2 + E3, E3, E3))
    assert found.overlap[0, 0] == 0.5
    assert index(found) == pytest.approx(1 - 0.5 / (2 / 3))


def test_b_without_effect_has_neither_index():
    found = prompt_redundancy(six(E1 + E2, E2, E1 + E2, E2))
    assert np.isnan(index(found))
    assert np.isnan(found.overlap).all()


def test_a_reference_of_zero_has_no_index():
    found = prompt_redundancy(six(NOTHING, NOTHING, NOTHING, NOTHING))
    assert np.isnan(found.nip).all()
    assert np.isnan(found.cosine).all()
    assert np.isnan(index(found))
    assert np.isnan(found.overlap).all()


def test_an_a_that_removes_everything_has_no_index_though_b_has_an_effect():
    found = prompt_redundancy(six(E1, NOTHING, NOTHING, NOTHING))
    assert np.isnan(index(found))
    assert found.overlap[0, 0] == 1


def test_overlap_is_the_slow_projection_layer_by_layer():
    outputs = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)
    found = overlap(*outputs)
    for layer in range(3):
        base, a, b, ab = outputs[:, layer].astype(float)
        alone = base - b
        assert found[layer] == pytest.approx(1 - (a - ab) @ alone / (alone @ alone))


def test_other_passes_than_the_six_are_refused():
    passes = dict(six(E1, E1, E1, E1))
    del passes["AB_all"]
    with pytest.raises(InputError, match="AB_all"):
        prompt_redundancy(passes)
    with pytest.raises(InputError, match="got none"):
        redundancy([], layers=(0,))


# --- the index of all prompts


def test_the_pooled_index_is_a_quotient_of_means_not_a_mean_of_quotients():
    upper, lower = np.array([0.1, 0.3] * 5), np.array([0.2, 1.8] * 5)
    assert pooled_index(upper, lower).estimate == pytest.approx(1 - 0.2 / 1.0)
    mean = np.mean(1 - upper / lower)
    assert abs(pooled_index(upper, lower).estimate - mean) > 0.1


@pytest.mark.parametrize(("n", "method"), [(12, LINEARISED), (40, PAIRED)])
def test_pooled_limits_cover_the_truth_as_often_as_they_say(n: int, method: str):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        lower = rng.gamma(4, 0.1, n)
        upper = 0.4 * lower + rng.normal(0, 0.05, n)
        found = pooled_index(upper, lower)
        assert found.method == method
        covered += found.low <= 0.6 <= found.high
    assert covered >= 88


def test_pairing_makes_the_limits_narrow():
    rng = np.random.default_rng(0)
    lower = rng.gamma(2, 0.2, 40)
    upper = 0.5 * lower + rng.normal(0, 0.01, 40)
    paired, broken = pooled_index(upper, lower), pooled_index(rng.permutation(upper), lower)
    assert paired.high - paired.low < 0.2 * (broken.high - broken.low)


def test_limits_on_both_sides_of_thirty_prompts_are_alike():
    rng = np.random.default_rng(1)
    lower = rng.normal(1, 0.1, 30)
    upper = 0.5 * lower + rng.normal(0, 0.05, 30)
    few, many = pooled_index(upper[:29], lower[:29]), pooled_index(upper, lower)
    assert (few.method, many.method) == (LINEARISED, PAIRED)
    assert few.high - few.low == pytest.approx(many.high - many.low, rel=0.25)


def test_a_denominator_that_may_be_zero_gives_no_index():
    rng = np.random.default_rng(0)
    found = pooled_index(rng.normal(size=20), rng.normal(size=20))
    assert np.isnan([found.estimate, found.low, found.high]).all()
    assert found.method == UNDEFINED
    assert np.isnan(pooled_index(np.zeros(20), np.full(20, 5e-5)).estimate)
    assert np.isnan(pooled_index(np.zeros(3), np.zeros(3)).estimate)


def test_few_prompts_have_an_estimate_without_limits():
    found = pooled_index(np.full(5, 0.1), np.full(5, 0.2))
    assert found.estimate == 0.5
    assert np.isnan(found.low)
    assert "5 of 8" in found.method


def test_the_same_quotient_in_every_prompt_needs_no_resampling():
    lower = np.linspace(0.1, 1, 40)
    found = pooled_index(lower / 4, lower)
    assert found.method == SAME_QUOTIENT
    assert found.low == found.high == found.estimate == pytest.approx(0.75)


def test_prompts_without_either_part_are_dropped_and_counted():
    upper, lower = np.full(12, 0.1), np.full(12, 0.2)
    upper[0] = lower[1] = np.nan
    found = pooled_index(upper, lower)
    assert (found.n, found.n_dropped, found.estimate) == (10, 2, 0.5)
    none = pooled_index(np.full(4, np.nan), np.ones(4))
    assert (none.n, none.n_dropped) == (0, 4)
    assert np.isnan(none.estimate)


def test_limits_that_are_no_numbers_are_not_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "tempo_analysis.studies.ablation.redundancy.TOLERANCE", -np.inf
    )  # lets 0 through
    lower = np.zeros(40)
    lower[0] = 1.0
    found = pooled_index(np.linspace(0, 1, 40), lower)
    assert found.method == UNSTABLE
    assert np.isnan([found.low, found.high]).all()


# --- words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.9, 1.1, "all that B removes"),
        (-0.2, 0.3, "indistinguishable from independent"),
        (-0.2, 1.3, "no verdict"),
        (0.2, 0.6, "a part"),
        (-0.9, -0.2, "a larger share"),
        (1.2, 1.6, "gives back"),
        (np.nan, np.nan, "no verdict"),
    ],
)
def test_the_reading_of_an_index_follows_from_its_interval(low: float, high: float, words: str):
    assert words in index_reading(Interval(0.5, low, high, 9, "too few"), is_share=True)


def test_below_0_the_overlap_says_more_than_r():
    found = Interval(-0.5, -0.9, -0.2, 9, "t")
    assert "same line" in index_reading(found, is_share=False)
    assert "same line" not in index_reading(found, is_share=True)


def test_an_undefined_index_has_no_reading():
    assert "undefined" in index_reading(
        Interval(np.nan, np.nan, np.nan, 9, UNDEFINED), is_share=True
    )


def test_rounding_does_not_move_a_reading():
    just_below = 1 - 1e-9
    found = Interval(just_below, just_below, just_below, 9, "same")
    assert "all that B" in index_reading(found, is_share=True)


def test_runs_of_numbers_are_spelled_short():
    assert spelled([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7, 8"
    assert spelled([4]) == "4"


def noisy(vector: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (vector * (1 + rng.normal(0, 0.02, vector.shape))).astype(np.float32)


def test_sentences_name_scope_layer_and_reading():
    rng = np.random.default_rng(0)
    prompts = [
        prompt_redundancy(six(noisy(E1 + E2, rng), E2, noisy(E2, rng), E2)) for _ in range(10)
    ]
    told = redundancy_sentences("head", redundancy(prompts, layers=(0,)))
    assert len(told) == 2
    assert "values of listed heads, layer 0, 10 prompts" in told[1]
    assert "all that B removes" in told[0]


def test_what_holds_by_construction_is_a_check_and_no_finding():
    rng = np.random.default_rng(0)
    prompts = [
        prompt_redundancy(six(noisy(E1 + E2, rng), E2, noisy(E2, rng), E2)) for _ in range(10)
    ]
    found = redundancy(prompts, layers=(0,))
    _, own = redundancy_sentences("head", found, is_own=True)
    assert "a check and no finding: these heads are silent, so R must be 1; it is" in own
    _, other = redundancy_sentences("control of head", found, is_other=True)
    assert "so the overlap must be 0; it is" in other
    (told,) = sweep_sentences("x", sweep(all_prompts("captures"), layers=(0,)), is_own=True)
    assert told.endswith("by construction: no finding")


# --- the sweep


def swept(kind: str, rng: np.random.Generator, *, n_offsets: int = 3, t: int = 9) -> PromptSweep:
    """B removes E1 at offset 1 only; A is E1's head, E2's head, or takes nothing of either away."""
    base = noisy(E1 + E2, rng)
    a = {"captures": base * [[0, 1, 1]], "other": base * [[1, 0, 1]], "none": base}[kind]
    b = [base * [[0, 1, 1]] if offset == 1 else base for offset in range(1, n_offsets + 1)]
    ab = [a * [[0, 1, 1]] if offset == 1 else a for offset in range(1, n_offsets + 1)]
    at = (
        (offset, b[offset - 1].astype(np.float32), ab[offset - 1].astype(np.float32))
        for offset in range(1, min(n_offsets, t) + 1)
    )
    return prompt_sweep(base, a.astype(np.float32), at=at, n_offsets=n_offsets)


def all_prompts(kind: str, n: int = 12) -> list[PromptSweep]:
    rng = np.random.default_rng(0)
    return [swept(kind, rng) for _ in range(n)]


def test_captured_is_said_only_where_b_alone_has_an_effect():
    (told,) = sweep_sentences("head", sweep(all_prompts("captures"), layers=(0,)))
    assert "at offset 1 B alone changes the output" in told
    assert "A has captured at least 90% of it (at 1 (12 prompts) R 1 (1 to 1), overlap 1" in told
    assert "at offset 2, 3 B alone is not shown to change anything" in told
    assert "not all of it" not in told


def test_a_curve_that_is_not_flat_is_not_captured():
    (told,) = sweep_sentences("head", sweep(all_prompts("other"), layers=(0,)))
    assert "not all of it is captured" in told
    assert "at least" not in told


def test_a_flat_curve_says_nothing_where_b_does_nothing():
    rng = np.random.default_rng(0)
    prompts = []
    for _ in range(12):
        base = noisy(E1 + E2, rng)
        at = [(1, base, base), (2, base, base)]
        prompts.append(prompt_sweep(base, base, at=at, n_offsets=2))
    (told,) = sweep_sentences("head", sweep(prompts, layers=(0,)))
    assert "captured" not in told
    assert "a flat base|AB says nothing there" in told


def test_an_interval_that_holds_all_that_b_does_alone_is_no_capture():
    rng = np.random.default_rng(0)
    prompts = []
    for place in range(12):
        base = noisy(E1 + E2, rng)
        a = base * [[0, 1, 1]]
        # B takes away E1; beside A it takes away or gives back a great deal, prompt by prompt
        ab = a * [[1, 1 + 4 * (-1) ** place, 1]]
        outputs = [each.astype(np.float32) for each in (a, base * [[0, 1, 1]], ab)]
        prompts.append(prompt_sweep(base, outputs[0], at=[(1, *outputs[1:])], n_offsets=1))
    (told,) = sweep_sentences("head", sweep(prompts, layers=(0,)))
    assert "no evidence that A has captured it" in told
    assert "at least" not in told


def test_a_sweep_of_few_prompts_has_no_reading():
    (told,) = sweep_sentences("head", sweep(all_prompts("captures", 4), layers=(0,)))
    assert "no reading: too few prompts" in told


def test_the_curves_of_a_sweep_are_the_planted_ones():
    (found,) = sweep(all_prompts("captures"), layers=(0,)).layers
    np.testing.assert_allclose(found.nip["A|AB"].curve.estimate, 1)
    np.testing.assert_allclose(found.nip["base|B"].curve.estimate[1:], 1)
    assert found.nip["base|B"].curve.estimate[0] == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(found.beyond_a.curve.estimate, 0, atol=1e-12)
    np.testing.assert_array_equal(np.isnan(found.pooled.estimate), [False, True, True])
    assert found.pooled.estimate[0] == pytest.approx(1)


def test_offsets_before_the_prompt_have_no_data_in_any_curve():
    rng = np.random.default_rng(0)
    prompts = [swept("captures", rng, t=2), *(swept("captures", rng) for _ in range(9))]
    assert np.isnan(prompts[0].nip[:, 2]).all()
    (found,) = sweep(prompts, layers=(0,)).layers
    for each in found.nip.values():
        assert each.curve.n.tolist() == [10, 10, 9]


def test_offsets_outside_the_sweep_or_twice_are_refused():
    for offsets in ([0], [3], [1, 1]):
        with pytest.raises(InputError, match="from 1 to 2"):
            prompt_sweep(E1, E1, at=[(each, E1, E1) for each in offsets], n_offsets=2)


def test_sweeps_to_different_offsets_are_refused():
    prompts = [prompt_sweep(E1, E1, at=[], n_offsets=n) for n in (2, 3)]
    with pytest.raises(InputError, match="same offset"):
        sweep(prompts, layers=(0,))
    with pytest.raises(InputError, match="same offset"):
        sweep([], layers=(0,))
