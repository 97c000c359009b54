"""What e07, e08, e10 and e13 measure, on tiny models, and what they say of planted numbers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

import tempo
from experiments.e07_knockout import entries as e07
from experiments.e07_knockout import rows as e07_rows
from experiments.e07_knockout.measures import PREDICTORS, KnockedSet, knocked_sets
from experiments.e08_pruning import entries as e08
from experiments.e08_pruning import rows as e08_rows
from experiments.e08_pruning.free import FreeRun, compared
from experiments.e08_pruning.measures import PrunedSet, pruned_sets
from experiments.e10_one_sibling import entries as e10
from experiments.e10_one_sibling import layers
from experiments.e10_one_sibling import rows as e10_rows
from experiments.e13_decoded_text import entries as e13
from experiments.e13_decoded_text import rows as e13_rows
from experiments.e13_decoded_text import texts
from experiments.means import curve_of, mean_of
from tempo.causal.attribution import lens_logits
from tempo.models.language_model import LanguageModel
from tempo.oracle import run_oracle
from tempo.policy.override import without_siblings
from tempo.policy.presets import Policy, isolated
from tempo.policy.pruning import AttentionBelow
from tempo.policy.selection import TopK
from tempo.policy.slots import SlotTable
from tempo.trace.trace import Trace
from tempo_analysis.parallel.metrics import metric_row
from tempo_analysis.report.document import plain
from tests.decoding import model_of, plain_forward, random_prompt, run_one

FEW = ("llama", "gemma3", "mistral")
N_PROMPTS = 9


def traces_of(model: LanguageModel, n: int = 2, steps: int = 5) -> list[Trace]:
    prompts = [list(random_prompt(model, 7, seed)) for seed in range(n)]
    run = tempo.generate(
        *(model, prompts), policy=Policy(TopK(3)), steps=steps, capture="weights", values=True
    )
    return list(run)


def readout_of(model: LanguageModel, table: SlotTable, step: int) -> np.ndarray:
    """The mixture after a step, by the slow executor and by hand."""
    rows = log_softmax(run_oracle(model, table, isolated()).logits.astype(np.float64), axis=-1)
    members = table.members(step)
    share = table.probability[members].astype(np.float64)
    return logsumexp(rows[members] + np.log(share / share.sum())[:, None], axis=0)


def kl(first: np.ndarray, second: np.ndarray) -> float:
    return float((np.exp(first) * (first - second)).sum())


def result_of(metrics: Sequence[Any], detail: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read from result.json."""
    rows = [metric_row(one) for one in metrics]
    document = {"metrics": rows, "detail": detail, "n_prompts": N_PROMPTS}
    return json.loads(json.dumps(plain(document), default=int))


def without_numbers(value: Any) -> Any:
    """The same result where nothing is known."""
    if isinstance(value, dict):
        return {
            key: each if key in ("name", "arm", "verdict", "share") else without_numbers(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [without_numbers(each) for each in value]
    return None if isinstance(value, float) else value


def statuses(entries: Any, result: Mapping[str, Any]) -> list[str]:
    return [finding.status for finding in entries.entries(result)]


def assert_says_no_data(entries: Any, result: Mapping[str, Any]) -> None:
    empty = without_numbers(result)
    for finding in entries.entries(empty):
        assert finding.status == "inconclusive"
        assert "no data" in finding.evidence
        assert "None" not in finding.evidence + finding.why + finding.controls


# --- e07


@pytest.mark.parametrize("family", FEW)
def test_a_knocked_member_is_as_if_the_next_set_had_never_seen_it(family: str) -> None:
    model = model_of(family)
    traces = traces_of(model)
    sets = list(knocked_sets(model, traces, batch=1))
    assert [(one.prompt, one.step) for one in sets] == [(p, k) for p in (0, 1) for k in range(1, 5)]
    assert max(one.stored_error for one in sets) < 1e-4
    one, trace = sets[-2], traces[1]
    table = trace.slots.upto(trace.n_slots(one.step + 1))
    full = readout_of(model, table, one.step + 1)
    for member, slot in enumerate(table.members(one.step).tolist()):
        without = readout_of(model, table.mark_pruned([slot], one.step), one.step + 1)
        np.testing.assert_allclose(one.effect[member], kl(full, without), atol=1e-7, rtol=1e-2)
    received = trace.attention(one.step + 1)[..., table.members(one.step)].mean((0, 1, 2))
    np.testing.assert_allclose(one.predictors[0], received, rtol=1e-5)
    assert one.predictors[3].tolist() == [0, -1, -2]


def planted_sets(sign: float) -> list[KnockedSet]:
    """Attention orders members as the effect does (or the other way), probability at random."""
    rng = np.random.default_rng(1)
    found = []
    for prompt in range(N_PROMPTS):
        for step in (1, 2, 3, 4):
            effect = rng.permutation([0.1, 0.2, 0.4])
            attention = 0.5 + sign * effect
            probability = np.sort(rng.random(3))[::-1]
            rows = np.stack([attention, attention, probability, -np.arange(3.0)])
            found.append(KnockedSet(prompt, step, effect, rows, 0.0))
    return found


def knocked_result(sets: Sequence[KnockedSet]) -> dict[str, Any]:
    metrics = e07_rows.metrics(e07_rows.Table(sets, n_prompts=N_PROMPTS + 1))
    detail = {"n_knocked_sets": len(sets), "n_members": 0, "largest_effect_nats": 0.4}
    return result_of(metrics, detail)


def test_a_predictor_that_orders_members_by_effect_is_found() -> None:
    result = knocked_result(planted_sets(1))
    row = {(one["name"], one["arm"]): one for one in result["metrics"]}
    for name in PREDICTORS[:2]:
        assert row["rank_correlation", name]["estimate"] == pytest.approx(1)
        assert row["area", name]["estimate"] == 1
        assert row["rank_correlation", name]["n"] == N_PROMPTS
        assert row["effect_of_least", name]["estimate"] == pytest.approx(0.1 / (0.7 / 3))
    assert row["right_where_probability_disagrees", "attention"]["estimate"] == 1
    assert row["effect", "a member"]["estimate"] == pytest.approx(0.7 / 3)
    assert statuses(e07, result)[0] == statuses(e07, result)[3] == "supported"
    against = knocked_result(planted_sets(-1))
    assert statuses(e07, against)[0] == statuses(e07, against)[3] == "refuted"


def test_a_result_without_numbers_says_so() -> None:
    assert_says_no_data(e07, knocked_result(planted_sets(1)))
    assert_says_no_data(e08, pruned_result(ghost=0.1))
    assert_says_no_data(e13, text_result(loss=1.0))


# --- e08


@pytest.mark.parametrize("family", FEW)
def test_the_ghost_is_what_the_slow_executor_finds(family: str) -> None:
    model = model_of(family)
    (trace,) = traces_of(model, 1)
    sets = list(pruned_sets(model, [trace], batch=1))
    assert [one.step for one in sets] == [1, 2]
    for one in sets:
        last = one.step + 3
        table = trace.slots.upto(trace.n_slots(last))
        dead = table.members(one.step)[~one.survives].tolist()
        pruned = table.mark_pruned(dead, one.step + 1)
        full, mask = readout_of(model, table, last), readout_of(model, pruned, last)
        again = readout_of(model, pruned.without_pruned(), last)
        assert one.nats["evict"] < 1e-9
        for name, pair in {"mask": (full, mask), "recompute": (full, again)}.items():
            assert one.nats[name] == pytest.approx(kl(*pair), rel=1e-2, abs=1e-7)
        assert one.nats["ghost"] == pytest.approx(kl(again, mask), rel=1e-2, abs=1e-7)
        assert one.got.argmax() == np.flatnonzero(one.survives)[0]


def pruned_result(ghost: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sets = [
        PrunedSet(
            prompt=prompt,
            step=1,
            nats={
                "mask": 0.2,
                "recompute": 0.2,
                "ghost": ghost * rng.uniform(0.9, 1),
                "evict": 0.0,
            },
            survives=np.array([False, True]),
            probability=np.array([0.5, 0.3]) + rng.uniform(0, 0.1),
            got=np.array([0.1, 0.2]),
            got_later=np.array([0.1, 0.2]) + rng.uniform(0, 0.01, 2),
        )
        for prompt in range(N_PROMPTS)
    ]
    free = [FreeRun(np.array([1]), 4, False, 0) for _ in range(N_PROMPTS)]
    result = result_of(e08_rows.metrics(sets, free), e08_rows.detail(sets, free))
    result["detail"]["share"] = 0.2
    return result


def test_what_e08_says_follows_from_its_numbers() -> None:
    found = statuses(e08, pruned_result(ghost=0.1))
    assert found == [*["supported"] * 4, "refuted", "refuted"]
    assert statuses(e08, pruned_result(ghost=1e-5))[2] == "refuted"
    assert statuses(e08, pruned_result(ghost=0.9))[3] == "refuted"


def test_deaths_are_counted_by_their_age() -> None:
    model = model_of("llama")
    reference = run_one(model, Policy(TopK(3)), steps=5).table
    assert compared(reference, reference).ages.tolist() == []
    assert compared(reference, reference).first_change == 0
    pruned = run_one(model, Policy(TopK(3), prune=AttentionBelow(1.0)), steps=5).table
    found = compared(reference, pruned)
    assert (len(found.ages), found.n_members) == (8, 12)
    assert found.ages.tolist() == [1] * 8


# --- e10


@pytest.mark.parametrize("family", FEW)
def test_a_member_of_a_first_set_is_the_same_alone(family: str) -> None:
    model = model_of(family)
    table = run_one(model, Policy(TopK(3)), steps=3).table
    assert layers.first_sets([table, table.upto(12)]) == [0]
    found = layers.sibling(model, table)
    assert found.own_change.shape == (model.n_layers + 1, 3)
    assert found.own_change.max() < 1e-5
    assert found.cosine[0] == pytest.approx(1)
    assert found.cosine[1:].max() < 1
    np.testing.assert_allclose(found.lens_own[-1], 0, atol=1e-6)


def test_the_state_alone_is_that_of_the_plain_run_before_the_final_norm() -> None:
    model = model_of("llama")
    table = run_one(model, Policy(TopK(3)), steps=3).table
    slot = int(table.members(1)[1])
    alone = without_siblings(table.upto(17), slot)
    assert len(alone.members(1)) == 1
    ids = alone.token[: alone.n_prompt + 1].tolist()
    states = plain_forward(model, ids).hidden_states
    run = layers.plain(model, alone)
    for depth in range(model.n_layers):
        expected = states[depth][0]
        np.testing.assert_allclose(run.states[depth, : len(ids)], expected, atol=1e-4)
    assert layers.sibling(model, table).lens_error < 1e-4
    np.testing.assert_allclose(lens_logits(model, run.states[-1]), run.logits, atol=1e-4)


def test_what_e10_says_follows_from_its_numbers() -> None:
    model = model_of("llama")
    tables = [
        run_one(model, Policy(TopK(3)), prompt=random_prompt(model, 11, seed), steps=2).table
        for seed in range(N_PROMPTS)
    ]
    found = [layers.sibling(model, table) for table in tables]
    result = result_of(e10_rows.metrics(found), e10_rows.detail(found))
    assert len(result["detail"]["curves"]["cosine_rank_0"]["low"]) == model.n_layers + 1
    assert statuses(e10, result)[0] == "supported"
    assert_says_no_data(e10, result)


# --- e13


@pytest.mark.parametrize("family", FEW)
def test_every_path_is_rescored_as_a_plain_sequence(family: str) -> None:
    model = model_of(family)
    prompts = {name: random_prompt(model, 7, seed) for seed, name in enumerate("ab")}
    found = texts.decoded(model, prompts, texts.Rules(steps=5, threshold=0.001, max_width=3))
    assert set(found) == set(texts.ARMS)
    for arm, pair in found.items():
        for name, text in zip(prompts, pair, strict=True):
            assert (len(text.paths) > 1) == (arm in texts.BRANCHING)
            for path, given in zip(text.paths, text.sequential, strict=True):
                assert given == pytest.approx(by_hand(model, prompts[name], path), abs=1e-4)
            if arm not in texts.SUPERPOSED:
                np.testing.assert_allclose(text.claimed[0], text.sequential[0], atol=1e-4)
                assert np.isnan(text.picked).all()
    isolated_text = found["isolated"][0]
    assert texts.beams(isolated_text.table) == 3
    assert isolated_text.claimed[0][0] == pytest.approx(isolated_text.sequential[0][0], abs=1e-5)


def by_hand(model: LanguageModel, prompt: Sequence[int], path: Sequence[int]) -> np.ndarray:
    rows = plain_forward(model, [*prompt, *path]).logits[0].double().log_softmax(-1).numpy()
    first = len(prompt) - 1
    return np.array([rows[first + place, token] for place, token in enumerate(path)])


def test_a_text_is_picked_from_the_sets_alone() -> None:
    row = np.log(np.array([0.1, 0.5, 0.3, 0.1], np.float32))
    rule = texts.Among(((1,), (0, 2)))
    assert [rule.select(row, step).token.tolist() for step in (1, 2)] == [[1], [2]]


def text_result(loss: float) -> dict[str, Any]:
    """Superposed texts that cost `loss` nats a token more than they claim, and than greedy."""
    model = model_of("llama")
    prompts = {str(seed): random_prompt(model, 5, seed) for seed in range(N_PROMPTS)}
    rules = texts.Rules(steps=5, threshold=0.001, max_width=2)
    found = texts.decoded(model, prompts, rules)
    noise = np.random.default_rng(0).uniform(0, 0.01, N_PROMPTS)
    for arm in texts.SUPERPOSED:
        found[arm] = [
            texts.Text(
                one.paths,
                found["greedy"][place].sequential,
                one.table,
                (found["greedy"][place].sequential[0] - loss - noise[place],),
                one.picked,
            )
            for place, one in enumerate(found[arm])
        ]
    numbers = {arm: e13_rows.measured(found[arm]) for arm in texts.ARMS}
    return result_of(e13_rows.metrics(numbers), e13_rows.detail(numbers, found))


def test_what_e13_says_follows_from_its_numbers() -> None:
    assert statuses(e13, text_result(loss=1.0))[:3] == ["supported", "refuted", "supported"]
    assert statuses(e13, text_result(loss=0.2))[:3] == ["supported", "supported", "supported"]
    assert statuses(e13, text_result(loss=-1.0))[:3] == ["refuted", "refuted", "refuted"]


# --- rows


def test_a_mean_stands_beside_its_null_on_the_same_prompts() -> None:
    values = np.array([1.0, 2.0, np.nan, *range(8)])
    null = np.array([0.0, 0.0, 100.0, *[0.0] * 8])
    row = mean_of("x", "a", values, null=null)
    assert (row.null, row.interval.n) == (0.0, 10)
    assert mean_of("x", "a", values).verdict == "nothing to compare with"
    assert curve_of(np.tile(np.arange(3.0), (9, 1)))["low"].tolist() == [0, 1, 2]
