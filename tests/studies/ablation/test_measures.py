"""Measures of an ablation against answers worked out by hand."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from tempo.errors import InputError
from tempo_analysis.stats.intervals import EXACT
from tempo_analysis.studies.ablation.effects import NUMBERS, effects, prompt_effect
from tempo_analysis.studies.ablation.passes import (
    Comparison,
    Pass,
    cosine,
    next_token_kl_nats,
    nip,
    top_1_changed,
)
from tempo_analysis.studies.ablation.result import prompt_numbers

RNG = np.random.default_rng(0)
LAYERS, HIDDEN, HEADS, VOCAB = 3, 5, 2, 7


def a_pass(*, t: int, n_tokens: int, seed: int) -> Pass:
    rng = np.random.default_rng(seed)
    attention = np.zeros((LAYERS, HEADS, n_tokens), np.float32)
    attention[..., : t + 1] = rng.dirichlet(np.ones(t + 1), (LAYERS, HEADS))
    return Pass(
        t,
        rng.normal(size=(LAYERS, HIDDEN)).astype(np.float32),
        rng.normal(size=(n_tokens, VOCAB)).astype(np.float32),
        attention,
    )


def test_nip_is_the_share_of_the_reference_that_is_left():
    b = np.array([3.0, 4.0])
    assert nip(b, b) == 1.0
    assert nip(b, 0.25 * b) == 0.25
    assert nip(b, np.array([-4.0, 3.0])) == 0.0
    assert nip(b, -b) == -1.0
    assert nip(b, np.array([0.0, 5.0])) == 20 / 25


def test_cosine_does_not_depend_on_either_length():
    b, a = RNG.normal(size=(2, 6))
    assert cosine(b, a) == pytest.approx(cosine(7 * b, 0.1 * a))
    assert cosine(b, -3 * b) == pytest.approx(-1)
    assert nip(b, a) == pytest.approx(cosine(b, a) * np.linalg.norm(a) / np.linalg.norm(b))


def test_a_reference_of_zero_has_no_nip_and_no_cosine():
    b = np.array([[0.0, 0.0], [1e-5, 0.0], [1.0, 0.0]])
    a = np.ones((3, 2))
    np.testing.assert_array_equal(nip(b, a), [np.nan, np.nan, 1.0])
    assert np.isnan(cosine(b, a)[:2]).all()


def test_a_changed_output_of_zero_has_lost_everything_but_has_no_direction():
    b, a = np.array([2.0, 1.0]), np.zeros(2)
    assert nip(b, a) == 0.0
    assert np.isnan(cosine(b, a))


def test_kl_is_that_of_the_two_distributions():
    base, changed = RNG.normal(size=(2, 4, 50))
    p, q = softmax(base, -1), softmax(changed, -1)
    np.testing.assert_allclose(
        next_token_kl_nats(base, changed), rel_entr(p, q).sum(-1), rtol=1e-12
    )


def test_kl_ignores_what_a_softmax_ignores_and_is_never_negative():
    base = RNG.normal(size=(6, 40)).astype(np.float32)
    assert (next_token_kl_nats(base, base) == 0).all()
    shifted = next_token_kl_nats(base.astype(np.float64), base.astype(np.float64) + 5)
    assert (shifted >= 0).all()
    assert shifted.max() < 1e-12


def test_a_token_that_cannot_come_adds_nothing_to_the_kl():
    base = np.array([[0.0, -np.inf, 0.0]])
    assert next_token_kl_nats(base, np.array([[0.0, -np.inf, 0.0]])) == pytest.approx(0)
    assert next_token_kl_nats(base, np.zeros((1, 3))) == pytest.approx(np.log(1.5))


def test_top_1_changes_where_another_token_is_largest():
    base = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(top_1_changed(base, base[::-1]), [True, False, True])


def test_published_means_are_over_all_tokens_and_the_others_from_t_on():
    t, n_tokens = 6, 10
    base, changed = (a_pass(t=t, n_tokens=n_tokens, seed=seed) for seed in (1, 2))
    found = prompt_effect(base, changed)
    kl = next_token_kl_nats(base.logits, changed.logits)
    other = base.logits.argmax(-1) != changed.logits.argmax(-1)
    assert found.t == t
    assert found.kl_at_t_nats == kl[t]
    assert found.kl_after_t_nats == pytest.approx(kl[t + 1 :].mean())
    assert found.kl_published_nats == pytest.approx(kl.mean())
    assert found.top_1_changed_from_t == other[t:].mean()
    assert found.top_1_changed_published == other.mean()


def test_shares_and_divergences_have_limits_inside_what_they_can_be():
    prompts = []
    for changed in (1, *[0] * 11):
        base = a_pass(t=4, n_tokens=8, seed=changed)
        logits = base.logits.copy()
        logits[4] += changed * 20 * np.eye(VOCAB, dtype=np.float32)[logits[4].argmin()]
        other = Pass(4, base.attention_output, logits, base.attention)
        prompts.append(prompt_numbers({"base": base, "A": other}, [BASE_A]).effects)
    found = effects(prompts, controls={})[0].numbers
    top, kl = found["top_1_changed_at_t"], found["kl_at_t_nats"]
    assert top.estimate == pytest.approx(1 / 12)
    assert (top.low, top.high) == pytest.approx(
        (0.00210759, 0.38479617), rel=1e-4
    )  # Clopper and Pearson
    assert top.method == EXACT
    assert kl.low == 0 < kl.high
    nobody = effects([prompts[1]] * 12, controls={})[0].numbers["top_1_changed_at_t"]
    assert (nobody.estimate, nobody.low) == (0, 0)
    assert nobody.high == pytest.approx(1 - 0.025 ** (1 / 12))


def test_nothing_is_after_the_last_token():
    base, changed = (a_pass(t=9, n_tokens=10, seed=seed) for seed in (1, 2))
    assert np.isnan(prompt_effect(base, changed).kl_after_t_nats)


def test_a_pass_against_itself_is_unchanged():
    base = a_pass(t=3, n_tokens=9, seed=1)
    found = prompt_effect(base, base)
    assert (found.nip == 1).all()
    np.testing.assert_allclose(found.cosine, 1)
    assert [getattr(found, name) for name in NUMBERS] == [0] * len(NUMBERS)


def test_passes_of_another_length_or_token_are_refused():
    base = a_pass(t=3, n_tokens=9, seed=1)
    with pytest.raises(InputError, match="got t = 3 and 4 of 9"):
        prompt_effect(base, a_pass(t=4, n_tokens=9, seed=2))
    with pytest.raises(InputError, match="got t = 3 and 3 of 10"):
        prompt_effect(base, a_pass(t=3, n_tokens=10, seed=2))
    with pytest.raises(InputError, match="9 rows of logits and 8 slots"):
        Pass(3, base.attention_output, base.logits, base.attention[..., :8])
    with pytest.raises(InputError, match="t = 9"):
        Pass(9, base.attention_output, base.logits, base.attention)


# --- over prompts

BASE_A, BASE_CONTROL = Comparison("base", "A"), Comparison("base", "control")


def numbers_of(n_prompts: int, *, names: tuple[str, ...] = ("A", "control")) -> list:
    comparisons = [Comparison("base", name) for name in names]
    found = []
    for prompt in range(n_prompts):
        passes = {
            name: a_pass(t=4, n_tokens=8, seed=100 * prompt + place)
            for place, name in enumerate(("base", *names))
        }
        found.append(prompt_numbers(passes, comparisons).effects)
    return found


def test_means_over_prompts_are_plain_means():
    prompts = numbers_of(9)
    found, _ = effects(prompts, controls={})
    nips = np.stack([one[BASE_A].nip for one in prompts])
    np.testing.assert_allclose(found.nip.curve.estimate, nips.mean(0))
    np.testing.assert_allclose(found.nip.sd, nips.std(0, ddof=1))
    kl = [one[BASE_A].kl_at_t_nats for one in prompts]
    assert found.numbers["kl_at_t_nats"].estimate == pytest.approx(np.mean(kl))
    assert found.less_control is None


def test_a_condition_less_its_control_is_paired_over_prompts():
    prompts = numbers_of(12)
    condition, control = effects(prompts, controls={"A": "control"})
    gaps = [one[BASE_A].kl_at_t_nats - one[BASE_CONTROL].kl_at_t_nats for one in prompts]
    assert condition.less_control is not None
    gap = condition.less_control.numbers["kl_at_t_nats"]
    assert gap.estimate == pytest.approx(np.mean(gaps))
    half = (gap.high - gap.low) / 2
    assert half == pytest.approx(2.200985 * np.std(gaps, ddof=1) / np.sqrt(12))
    assert control.is_control
    assert not condition.is_control
    assert control.less_control is None


def test_fewer_than_eight_prompts_have_no_limits_and_say_why():
    found, _ = effects(numbers_of(7), controls={})
    assert np.isfinite(found.nip.curve.estimate).all()
    assert np.isnan(found.nip.curve.low).all()
    assert "7 of 8" in found.numbers["kl_at_t_nats"].method


def test_prompts_without_tokens_after_t_are_left_out_of_that_mean():
    prompts = numbers_of(9)
    comparison = BASE_A
    last = prompt_effect(a_pass(t=7, n_tokens=8, seed=1), a_pass(t=7, n_tokens=8, seed=2))
    prompts[0] = {comparison: last, BASE_CONTROL: last}
    found = effects(prompts, controls={})[0].numbers["kl_after_t_nats"]
    assert (found.n, found.n_dropped) == (8, 1)


def test_a_condition_may_be_held_against_another_baseline():
    passes = {name: a_pass(t=2, n_tokens=6, seed=seed) for seed, name in enumerate("bcde")}
    comparisons = [Comparison("b", "c"), Comparison("c", "d"), Comparison("c", "e")]
    prompts = [prompt_numbers(passes, comparisons).effects] * 8
    found = {str(one.comparison): one for one in effects(prompts, controls={"d": "e"})}
    expected = nip(passes["c"].attention_output, passes["d"].attention_output)
    np.testing.assert_allclose(found["c|d"].nip.curve.estimate, expected)
    assert found["c|d"].less_control is not None


def test_a_control_that_was_not_compared_is_refused():
    with pytest.raises(InputError, match=r"base\|control"):
        effects(numbers_of(8, names=("A",)), controls={"A": "control"})


def test_no_prompts_and_uneven_prompts_are_refused():
    with pytest.raises(InputError, match="same comparisons"):
        effects([], controls={})
    with pytest.raises(InputError, match="same comparisons"):
        effects([*numbers_of(1), *numbers_of(1, names=("A",))], controls={})


def test_a_comparison_of_a_pass_that_was_not_run_is_refused():
    passes = {"base": a_pass(t=2, n_tokens=6, seed=0)}
    with pytest.raises(InputError, match="run A too"):
        prompt_numbers(passes, [BASE_A])
    with pytest.raises(InputError, match="got none"):
        prompt_numbers(passes, [])
