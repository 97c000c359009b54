"""`tempo.boost`: what it measures, held against slow ways, and what it refuses."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_softmax, logsumexp

import tempo
from tempo.engine.branch import read_prompts
from tempo.engine.state import SequencePlan
from tempo.errors import InputError, NoParallelSetsError, NumericalError
from tempo.models.language_model import LanguageModel
from tempo.policy.edits import ScoreBias
from tempo.policy.presets import Policy, isolated
from tempo.policy.selection import Forced
from tempo.testing.tiny import tiny_model
from tempo.vocabulary import Head
from tempo_analysis.stats.distributions import FullReadout, kl_nats
from tempo_analysis.studies.boost.dose_response import FORCED, FREE
from tempo_analysis.studies.boost.findings import BoostFindings
from tempo_analysis.studies.boost.measure import BoostStudy, _own_biases, boost, repairs_of
from tempo_analysis.studies.boost.plan import (
    BANDS,
    TARGETS,
    MatchedBias,
    chosen_targets,
    fixed_target,
    given_target,
    matched_slots,
    member_slots,
)
from tempo_analysis.studies.boost.reference import (
    Reference,
    add_alone,
    add_mixtures,
    decoded,
    odds_law_by_head,
)
from tempo_analysis.studies.boost.replays import (
    ReferenceBatch,
    check_unchanged,
    read_references,
    replay_references,
)
from tests.decoding import model_of, random_prompt, run_plans
from tests.decoding import whole as captured

TAU = 0.05
TEXTS = [f"the cat {i} sat on" for i in range(6)]
EVERY = fixed_target("all", 2, 4)


@cache
def shallow() -> LanguageModel:
    return tiny_model("llama", num_hidden_layers=1)


@cache
def batch_of(model: LanguageModel, n: int = 3, steps: int = 4) -> ReferenceBatch:
    """A few references with everything that replays need."""
    prompts = [(f"p{seed}", random_prompt(model, 6, seed)) for seed in range(n)]
    found, _ = decoded(model, prompts, isolated(TAU), steps=steps)
    assert found
    add_alone(model, found)
    trunk = read_prompts(model, [(one.prompt_id, one.ids) for one in found])
    batch = ReferenceBatch(0, tuple(range(len(found))), tuple(found), trunk)
    read_references(batch)
    add_mixtures(trunk, found)
    return batch


@cache
def found() -> BoostFindings:
    return boost(
        model_of("llama"),
        TEXTS,
        betas=(-1, 1, 3),
        threshold=TAU,
        steps=4,
        groups={"mine": ["L0H1"]},
    )


SEEN = ("first third", "last third")
"""Of a model of two layers."""


def everywhere(model: LanguageModel, amount: float) -> ScoreBias:
    return fixed_target("all", model.n_layers, model.n_heads).edit(0, amount)


# --- a bias of 0


def test_a_bias_of_0_changes_no_bit_of_any_readout():
    model = model_of("llama")
    check_unchanged(batch_of(model), [everywhere(model, 0.0)])


def test_a_readout_that_changes_under_a_bias_of_0_is_an_error():
    model = model_of("llama")
    batch = batch_of(model)
    with pytest.raises(NumericalError, match="without change under a bias of 0, got others"):
        check_unchanged(batch, [everywhere(model, 0.5)])


def test_without_a_bias_nothing_is_changed_in_any_target():
    for dose in found().doses:
        assert dose.betas == (-1.0, 0.0, 1.0, 3.0)
        for name in ("kl", "top_1_changed"):
            assert (dose.values[name][:, dose.base] == 0).all()
        assert all((dose.change(name)[:, dose.base] == 0).all() for name in ("set_nll", "share"))


def test_the_edited_path_that_adds_nothing_moves_readouts_by_rounding_only():
    assert 0 <= found().rounding_nats < 1e-9


# --- layer 0, where the law is exact


@pytest.mark.parametrize("beta", [-3.0, -1.0, 1.0, 3.0])
def test_at_layer_0_the_log_ratio_of_every_set_is_that_of_the_law(beta: float):
    for model in (shallow(), model_of("llama")):
        batch = batch_of(model)
        layers = range(model.n_layers)
        measured = replay_references(batch, [everywhere(model, beta)], layers)
        for one, now in zip(batch.references, measured, strict=True):
            assert len(one.wide_steps()) >= 2
            law = odds_law_by_head(one, [beta])[0]
            np.testing.assert_allclose(now.log_ratio[0], law[0], atol=2e-5)


def test_the_restoring_dose_at_layer_0_is_the_root_of_the_odds_law():
    model = shallow()
    betas = np.linspace(-2, 3, 41)
    asked = boost(
        model,
        TEXTS,
        betas=betas.tolist(),
        threshold=TAU,
        steps=2,
        targets=["all"],
        check_effects=False,
    )
    (measured,) = asked.restoring
    batch = batch_of_texts(model, TEXTS, steps=2)
    exact = np.array([exact_dose(one) for one in batch])
    assert np.isfinite(exact).sum() >= 3
    known = np.isfinite(measured.by_prompt)
    np.testing.assert_array_equal(known, (exact > -2) & (exact < 3))
    np.testing.assert_allclose(measured.by_prompt[known], exact[known], atol=2e-3)
    np.testing.assert_allclose(measured.by_prompt, measured.law_by_prompt, atol=1e-4)


def batch_of_texts(model: LanguageModel, texts: Sequence[str], *, steps: int) -> list[Reference]:
    prompts = [(f"p{n}", tuple(model.encode(text))) for n, text in enumerate(texts)]
    references, _ = decoded(model, prompts, isolated(TAU), steps=steps)
    add_alone(model, references)
    return references


def exact_dose(one: Reference) -> float:
    """The root of the mean of log(o e^b / (1 + e^b sum o)) - log m over cells of a first set."""
    assert one.wide_steps() == [1]
    mass = np.stack([one.alone[1, rank].mass for rank in range(len(one.table.members(1)))])
    odds = mass / (1 - mass)

    def mean(beta: float) -> float:
        inside = odds * np.exp(beta) / (1 + np.exp(beta) * odds.sum(0))
        return float((np.log(inside) - np.log(mass)).mean())

    return float(brentq(mean, -30, 30)) if mean(-30) * mean(30) < 0 else np.nan


def test_the_share_of_sets_at_layer_0_rises_with_the_dose():
    model = model_of("llama")
    batch = batch_of(model)
    shares = [
        replay_references(batch, [everywhere(model, beta)], [0])[0].share[0]
        for beta in (-4.0, -1.0, 0.5, 4.0)
    ]
    assert all((later > earlier).all() for earlier, later in pairwise(shares))


def test_a_bias_multiplies_the_odds_of_sets_at_layer_0():
    """A row by itself: odds times exp(beta), found by the rows of a twin that `replay` makes."""
    model = model_of("llama")
    trace: Any = tempo.generate(model, TEXTS[0], threshold=TAU, steps=3)
    trace = next(iter(trace)) if not hasattr(trace, "slots") else trace
    run = tempo.replay(trace, model=model, edits=[everywhere(model, 1.5)])
    twin = run.trace(arm="twin")
    members = member_slots(trace.slots, 3)
    before, after = (one.attention(3)[0][..., members].sum(-1) for one in (trace, twin))
    np.testing.assert_allclose(
        np.log(after / (1 - after)) - np.log(before / (1 - before)), 1.5, atol=1e-4
    )


# --- held against slow ways


def test_kl_and_the_next_set_are_those_of_a_replay_read_by_hand():
    model = model_of("llama")
    run: Any = tempo.generate(
        model, [TEXTS[0]], threshold=TAU, steps=4, readouts="full", eos="ignore"
    )
    trace = next(iter(run)) if not hasattr(run, "slots") else run
    twin = tempo.replay(trace, model=model, edits=[everywhere(model, 1.0)]).trace(arm="twin")
    first = int(trace.slots.step[trace.slots.rank == 1][0])
    kl, nll = [], []
    for step in range(first + 1, trace.n_steps + 1):
        ours, theirs = (whole(one.readout(step)) for one in (trace, twin))
        kl.append((np.exp(ours) * (ours - theirs)).sum())
        if step < trace.n_steps:
            after = trace.slots.token[trace.members(step + 1)]
            nll.append(-logsumexp(theirs[after]))
    dose = found().dose("all")
    at = dose.betas.index(1.0)
    np.testing.assert_allclose(dose.values["kl"][0, at], np.mean(kl), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(dose.values["set_nll"][0, at], np.mean(nll), atol=1e-4)


def whole(readout: Any) -> np.ndarray:
    """Log-probabilities by token id, normalised."""
    found = np.full(len(readout.token), -np.inf)
    found[readout.token] = readout.log_probability
    return np.asarray(log_softmax(found.astype(np.float64)))


def test_the_mixture_is_that_of_plain_forwards_of_every_path():
    model = model_of("llama")
    one = batch_of(model).references[0]
    table = one.table
    before = [int(table.token[table.members(step)[0]]) for step in range(1, one.first)]
    first, after = (table.token[table.members(k)].tolist() for k in (one.first, one.first + 1))
    weights, rows = [], []
    for here in first:
        for there in after:
            path = [*one.ids, *before, here, there]
            logs = tempo.forward(model, path).log_probability().astype(np.float64)
            weights.append(logs[-3, here] + logs[-2, there])
            rows.append(logs[-1])
    share = np.array(weights) - logsumexp(weights)
    expected = logsumexp(np.stack(rows) + share[:, None], axis=0)
    np.testing.assert_allclose(one.mixture[0], expected, atol=1e-4)


def test_readouts_of_the_reference_are_those_of_the_free_run():
    model = model_of("llama")
    run: Any = tempo.generate(model, [TEXTS[0]], threshold=TAU, steps=4, eos="ignore")
    trace = next(iter(run)) if not hasattr(run, "slots") else run
    (reference,) = batch_of_texts(model, TEXTS[:1], steps=4)
    np.testing.assert_array_equal(reference.table.token, trace.slots.token)
    np.testing.assert_array_equal(reference.table.step, trace.slots.step)


def test_alone_is_the_mass_in_a_run_that_never_had_siblings():
    model = model_of("llama")
    one = batch_of(model).references[0]
    step, table = one.first, one.table
    slot = int(table.members(step)[1])
    kept = [n for n in range(len(table)) if n == slot or table.step[n] != step]
    sets = [[int(table.token[n]) for n in kept if table.step[n] == k] for k in range(1, step + 2)]
    plan = SequencePlan(
        "p", "a", one.ids, Policy(Forced(tuple(map(tuple, sets)))), step + 1, "ignore"
    )
    (run,) = run_plans(model, [plan], capture=captured(model))
    place = one.table.n_prompt + step - 1
    rows = run.weights(step + 1)[..., place]
    np.testing.assert_allclose(one.alone[step, 1].mass, rows, atol=1e-5)


# --- targets


def test_the_bands_are_every_layer_once():
    for n_layers in (1, 2, 4, 30):
        bands = np.stack([fixed_target(name, n_layers, 3).halves[0] for name in BANDS])
        assert (bands.sum(0) == 1).all()


def test_no_prompt_chooses_its_own_heads():
    rng = np.random.default_rng(0)
    shares = rng.random((4, 4)), rng.random((4, 4))
    chosen = chosen_targets((shares[0], shares[1]), seed=0)
    other = chosen_targets((shares[0] * 0, shares[1]), seed=0)
    readers, changed = chosen["set readers"], other["set readers"]
    np.testing.assert_array_equal(readers.halves[0], changed.halves[0])
    assert (readers.halves[1] != changed.halves[1]).any()
    best = np.argsort(-shares[1], axis=None)[:4]
    np.testing.assert_array_equal(np.flatnonzero(readers.halves[0]), np.sort(best))


def test_other_heads_are_as_many_and_others_in_the_same_layers():
    share = np.zeros((4, 8))
    share[0, :3] = share[2, :3] = 1
    share[3, :2] = 1
    chosen = chosen_targets((share, share), seed=1)
    readers, others = (chosen[name].halves[0] for name in ("set readers", "other heads"))
    assert not (readers & others).any()
    np.testing.assert_array_equal(readers.sum(1), others.sum(1))


def test_a_layer_of_readers_only_has_its_others_elsewhere():
    share = np.zeros((4, 4))
    share[1] = 1
    chosen = chosen_targets((share, share), seed=1)
    others = chosen["other heads"].halves[0]
    assert others.sum() == 4
    assert not others[1].any()


def test_the_control_has_as_many_of_the_latest_slots_in_no_set():
    model = model_of("llama")
    for one in batch_of(model).references:
        for step in range(1, one.table.n_steps + 1):
            members, matched = member_slots(one.table, step), matched_slots(one.table, step)
            single = np.flatnonzero((one.table.width < 2) & (one.table.step < step))[1:]
            assert len(matched) == min(len(members), len(single))
            assert matched.tolist() == single[len(single) - len(matched) :].tolist()


def test_the_control_leaves_rows_that_see_no_set_as_they_are():
    model = model_of("llama")
    table = batch_of(model).references[0].table
    edit = MatchedBias(layers=[0], amount=1.0)
    prompt = np.arange(table.n_prompt)
    assert not edit.cells(table, prompt).any()
    later = table.members(table.n_steps)
    cells = edit.cells(table, later)
    assert (cells.sum(1) == len(matched_slots(table, table.n_steps))).all()
    assert not cells[:, member_slots(table, table.n_steps)].any()
    assert not replace(edit, steps=[1]).cells(table, later).any()


def test_a_group_is_biased_in_its_heads_only():
    model = model_of("llama")
    target = given_target("mine", ["L0H1", Head(1, 2)], 2, 4)
    batch = batch_of(model)
    plain, boosted = (replay_references(batch, [target.edit(0, b)], [0, 1])[0] for b in (0.0, 2.0))
    changed = np.abs(plain.share[0] - boosted.share[0]) > 1e-6
    assert changed.tolist() == [False, True, False, False]
    assert target.n_heads == 2


# --- everything together


def test_every_target_has_every_measure_of_every_prompt():
    asked = found()
    there = [name for name in TARGETS if name not in asked.skipped]
    assert [dose.target for dose in asked.doses] == [*there, "mine"]
    assert [dose.target for dose in asked.free] == ["all", "control"]
    assert [one.target for one in asked.restoring] == [*there[:-1], "mine"]
    for dose in asked.doses:
        assert set(dose.values) == {one.name for one in FORCED}
        assert all(v.shape == (len(asked.prompts), 4) for v in dose.values.values())
        assert np.isfinite(dose.values["kl"]).all()
        assert (dose.values["kl"][:, [0, 2, 3]] > 0).all() or dose.n_heads < 8
    for dose in asked.free:
        assert set(dose.values) == {one.name for one in FREE}
    assert len(asked.prompts) + len(asked.refused) == len(TEXTS)


def test_the_repair_brings_heads_nearer_to_their_mass_alone():
    asked = found()
    assert [one.name for one in asked.repairs] == ["one bias", "a bias for each head"]
    for one in asked.repairs:
        assert one.gap < one.gap_before
        assert abs(np.nanmean(one.values["log_ratio"])) < abs(np.nanmean(one.base["log_ratio"]))
        assert np.isfinite(one.values["path_nll"]).all()


def test_no_prompt_chooses_its_own_dose(monkeypatch: pytest.MonkeyPatch):
    """What half of the prompts do decides the doses of the other half, and never their own."""
    seen: list[BoostStudy] = []

    def noted(study: BoostStudy, *rest: Any) -> Any:
        seen.append(study)
        return repairs_of(study, *rest)

    monkeypatch.setattr("tempo_analysis.studies.boost.measure.repairs_of", noted)
    boost(model_of("llama"), TEXTS, betas=(-1, 1), threshold=TAU, steps=3, check_effects=False)
    (study,) = seen
    before = [_own_biases(study, half) for half in (0, 1)]
    for by_place in study.in_all_heads.values():
        for place in range(0, len(study.references), 2):
            by_place[place] = replace(by_place[place], log_ratio=by_place[place].log_ratio + 0.3)
    np.testing.assert_array_equal(_own_biases(study, 0), before[0])
    known = ~np.isnan(before[1]) & ~np.isnan(_own_biases(study, 1))
    assert known.any()
    assert (_own_biases(study, 1)[known] < before[1][known]).all()


def test_a_control_that_some_prompts_lack_is_no_error():
    """One prompt of one token has no slot in no set but its first."""
    asked = boost(
        model_of("llama"),
        [list(range(5, 15)), [7]],
        betas=(-1, 1),
        targets=["all", "control"],
        threshold=0.03,
        steps=3,
        check_effects=False,
    )
    assert np.isnan(asked.dose("control").values["share"]).any()
    assert np.isfinite(asked.dose("all").values["kl"]).all()


def test_a_prompt_that_stands_twice_is_refused():
    with pytest.raises(InputError, match="same tokens in 'p0000' and 'p0002'"):
        boost(model_of("llama"), [TEXTS[0], TEXTS[1], TEXTS[0]])


def test_the_same_question_has_the_same_answer():
    again = boost(
        model_of("llama"),
        TEXTS,
        betas=(3, 1, -1),
        threshold=TAU,
        steps=4,
        groups={"mine": ["L0H1"]},
    )
    assert again.json() == found().json()


def test_one_prompt_cannot_choose_heads_on_another():
    asked = boost(
        model_of("llama"), TEXTS[0], betas=(0, 1), threshold=TAU, steps=3, check_effects=False
    )
    assert set(asked.skipped) == {"set readers", "other heads", "middle third"}
    assert "2 layers has no layer of its own" in asked.skipped["middle third"]
    assert "only one prompt" in asked.skipped["set readers"]
    assert [dose.target for dose in asked.doses] == ["all", *sorted(SEEN), "control"]
    assert [one.name for one in asked.repairs] in ([], ["one bias"])


def test_prompts_without_a_set_are_named_and_not_counted_as_0():
    model = model_of("llama")
    ids = [random_prompt(model, 6, seed) for seed in range(12)]
    asked = boost(
        model, ids, betas=(0, 1), threshold=0.25, steps=3, targets=["all"], check_effects=False
    )
    assert asked.refused
    assert "no set of two or more members" in next(iter(asked.refused.values()))
    assert set(asked.prompts) | set(asked.refused) == {f"p{n:04d}" for n in range(12)}
    assert len(asked.dose("all").values["kl"]) == len(asked.prompts)


def test_a_set_in_the_step_before_the_last_has_no_next_set_to_predict():
    """Two steps: the readout that sees the set is the last, and nothing followed it."""
    asked = boost(
        model_of("llama"),
        TEXTS,
        betas=(0, 1),
        threshold=TAU,
        steps=2,
        targets=["all"],
        check_effects=False,
    )
    assert np.isnan(asked.dose("all").values["set_nll"]).all()
    assert np.isfinite(asked.dose("all").values["kl"]).all()


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mistral", "gpt_neox"])
def test_it_answers_on_other_families(family: str):
    model = model_of(family)
    ids = [random_prompt(model, 6, seed) for seed in range(4)]
    asked = boost(model, ids, betas=(0, 1), threshold=0.03, steps=3, check_effects=False)
    assert np.isfinite(asked.dose("all").values["kl"]).all()


# --- what is refused


@pytest.mark.parametrize("betas", [(0, float("nan")), (float("inf"), 1), (1, 21)])
def test_betas_that_are_not_finite_or_too_large_are_refused(betas: tuple[float, ...]):
    with pytest.raises(InputError, match="expected finite betas from -20 to 20, got"):
        boost(model_of("llama"), TEXTS, betas=betas)


@pytest.mark.parametrize("betas", [(), (1,), (2, 2.0)])
def test_fewer_than_two_betas_are_refused(betas: tuple[float, ...]):
    with pytest.raises(InputError, match="at least two different betas, got"):
        boost(model_of("llama"), TEXTS, betas=betas)


def test_targets_that_are_unknown_repeated_or_none_are_refused():
    for targets, got in ((["al"], "got 'al'"), (["all", "all"], "twice"), ([], "got none")):
        with pytest.raises(InputError, match=got):
            boost(model_of("llama"), TEXTS, targets=targets)


def test_groups_without_heads_or_with_a_name_that_is_taken_are_refused():
    with pytest.raises(InputError, match="expected heads in group 'mine', got none"):
        boost(model_of("llama"), TEXTS, groups={"mine": []})
    with pytest.raises(InputError, match="got 'all'; rename it"):
        boost(model_of("llama"), TEXTS, groups={"all": ["L0H0"]})


def test_heads_that_are_not_the_models_are_refused():
    with pytest.raises(InputError, match="from L0H0 to L1H3 in group 'mine', got L2H0"):
        boost(model_of("llama"), TEXTS, groups={"mine": ["L2H0"]})
    with pytest.raises(InputError, match="expected a head such as L3H5"):
        boost(model_of("llama"), TEXTS, groups={"mine": ["head"]})


def test_prompts_that_are_never_parallel_are_refused_by_number():
    with pytest.raises(NoParallelSetsError, match="got none of 6; lower the threshold"):
        boost(model_of("llama"), TEXTS, threshold=0.99)


def test_a_single_step_is_refused():
    with pytest.raises(InputError, match="expected at least 2 steps, got 1"):
        boost(model_of("llama"), TEXTS, steps=1)


def test_kl_of_a_readout_from_itself_is_exactly_0():
    raw = np.log(np.random.default_rng(0).dirichlet(np.ones(50))).astype(np.float32)
    assert kl_nats(FullReadout(raw).log, FullReadout(raw.copy()).log) == 0
