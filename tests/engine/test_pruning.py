"""Pruning and keeping: mask, evict, recompute, and what each of them equals."""

from dataclasses import replace

import numpy as np
import pytest

from tempo.engine.capture import NOTHING
from tempo.errors import InputError
from tempo.oracle import run_oracle
from tempo.policy.presets import Policy
from tempo.policy.pruning import AttentionBelow, Decision, Kill, Prune, parse_prune
from tempo.policy.selection import Forced, TopK
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import ISOLATED, ORDERED, VISIBLE
from tempo.testing.tiny import FAMILIES
from tests.decoding import (
    assert_equals_oracle,
    assert_same_logits,
    model_of,
    plain_forward,
    random_prompt,
    run_one,
)

SETS = ((30, 60, 90), (40, 50), (70,), (80,))
FEW = ("llama", "gemma3", "mistral", "gpt_oss")
RELATIONS = {"isolated": ISOLATED, "visible": VISIBLE, "ordered": ORDERED}
KEEPS = ("mask", "evict", "recompute")


def killing(*deaths: tuple[int, int], keep: str = "mask", see=ISOLATED, sets=SETS) -> Policy:
    return Policy(Forced(sets), see=see, prune=Kill(deaths), keep=keep)


def path(model, *tokens: int) -> np.ndarray:
    return plain_forward(model, [*random_prompt(model, 11), *tokens]).logits[0, -1].numpy()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_killing_all_but_one_isolated_member_equals_the_path(family: str, keep: str) -> None:
    model = model_of(family)
    decoded = run_one(model, killing((1, 11), (1, 13), (2, 15), keep=keep), steps=4)
    for step, tokens in enumerate(((60,), (60, 40), (60, 40, 70), (60, 40, 70, 80)), 1):
        readout = decoded.outcomes[step].decoding.readout.log_probability
        expected = path(model, *tokens)
        assert_same_logits(readout, expected - np.logaddexp.reduce(expected))


@pytest.mark.parametrize("family", FEW)
def test_killing_later_leaves_a_ghost_that_only_recomputing_removes(family: str) -> None:
    model = model_of(family)
    last = {}
    for keep in KEEPS:
        deaths = ((3, 11), (3, 13), (3, 15))
        last[keep] = run_one(model, killing(*deaths, keep=keep), steps=4).logits(4)[0]
    expected = path(model, 60, 40, 70, 80)
    assert_same_logits(last["recompute"], expected)
    assert np.abs(last["mask"] - expected).max() > 1e-3
    assert_same_logits(last["evict"], last["mask"])


@pytest.mark.parametrize("relation", ["visible", "ordered"])
def test_where_siblings_see_each_other_only_recomputing_equals_the_path(relation: str) -> None:
    model = model_of("llama")
    deaths = ((1, 11), (1, 12), (2, 14))
    for keep in KEEPS:
        policy = killing(*deaths, keep=keep, see=RELATIONS[relation])
        found = run_one(model, policy, steps=4).logits(4)[0]
        off = np.abs(found - path(model, 90, 50, 70, 80)).max()
        assert off < 1e-4 if keep == "recompute" else off > 1e-3


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("family", FEW)
def test_recomputing_equals_the_oracle_over_the_table_without_the_dead(
    family: str, relation: str
) -> None:
    model = model_of(family)
    policy = killing((2, 12), (3, 14), keep="recompute", see=RELATIONS[relation])
    decoded = run_one(model, policy, steps=4)
    table = decoded.table.without_pruned()
    reference = run_oracle(model, table, policy)
    assert_same_logits(decoded.logits(4), reference.logits[table.members(4)])
    readout = decoded.outcomes[4].decoding.readout.log_probability
    assert_same_logits(readout, reference.readout(table, 4, policy))
    at_death = replace(decoded.outcomes[3].decoding.table).without_pruned()
    readout = decoded.outcomes[3].decoding.readout.log_probability
    expected = run_oracle(model, at_death, policy).readout(at_death, 3, policy)
    assert_same_logits(readout, expected)


@pytest.mark.parametrize("keep", ["mask", "evict"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masking_and_evicting_equal_the_oracle(family: str, keep: str) -> None:
    model = model_of(family)
    policy = Policy(TopK(3), prune=AttentionBelow(0.33, relative=True), keep=keep)
    decoded = run_one(model, policy, steps=5)
    assert (~decoded.table.alive).sum() >= 2
    assert_equals_oracle(model, decoded)


def test_evicting_frees_the_slot_and_never_reuses_its_number() -> None:
    model = model_of("llama")
    policy = Policy(TopK(3), prune=AttentionBelow(0.33, relative=True), keep="evict")
    decoded = run_one(model, policy, steps=5)
    table = decoded.table
    assert len(table) == 11 + 15
    assert decoded.decoding.cached_slots.tolist() == np.flatnonzero(table.alive).tolist()
    assert decoded.weights(5).shape[-1] == len(table)
    dead_early = np.flatnonzero((table.died_at_step > 0) & (table.died_at_step < 5))
    assert (decoded.weights(5)[..., dead_early] == 0).all()


def test_a_set_keeps_the_member_that_got_most() -> None:
    decoded = run_one(model_of("llama"), Policy(TopK(3), prune=AttentionBelow(1.0)), steps=4)
    table = decoded.table
    assert [len(table.unpruned(step)) for step in (1, 2, 3, 4)] == [1, 1, 1, 3]
    for step in (2, 3, 4):
        received = decoded.weights(step).mean((0, 1, 2))
        judged = decoded.outcomes[step].tensors
        np.testing.assert_allclose(
            judged["judged/value"], received[judged["judged/slot"]], rtol=1e-5
        )
        best = judged["judged/slot"][judged["judged/value"].argmax()]
        assert judged["judged/reason"][judged["judged/slot"] == best] == 0


def test_a_relative_level_is_a_share_of_what_the_set_got() -> None:
    table = run_one(model_of("llama"), Policy(TopK(3)), steps=2).table
    received = np.zeros(len(table), np.float32)
    received[11:14] = 0.001, 0.006, 0.003
    shares = AttentionBelow(0.2, relative=True).judge(table, 2, received)
    assert [one.reason for one in shares] == ["attention_share", "kept", "kept"]
    np.testing.assert_allclose([one.value for one in shares], [0.1, 0.6, 0.3], rtol=1e-5)
    masses = AttentionBelow(0.005).judge(table, 2, received)
    assert [one.reason for one in masses] == ["attention", "kept", "attention"]


def test_the_readout_is_shared_among_the_survivors() -> None:
    model = model_of("llama")
    decoded = run_one(model, killing((1, 12)), steps=1)
    weight = decoded.table.weight[11:]
    assert weight[1] == 0
    np.testing.assert_allclose(weight.sum(), 1, rtol=1e-6)
    rows = decoded.logits(1).astype(np.float64)
    rows -= np.logaddexp.reduce(rows, axis=-1, keepdims=True)
    expected = np.log(weight[0] * np.exp(rows[0]) + weight[2] * np.exp(rows[2]))
    assert_same_logits(decoded.outcomes[1].decoding.readout.log_probability, expected)


def test_the_death_of_a_whole_set_is_refused() -> None:
    with pytest.raises(InputError, match="expected a set of step 2 that keeps a member"):
        run_one(model_of("llama"), killing((2, 14), (2, 15)), steps=3)


def test_a_prompt_slot_cannot_die() -> None:
    with pytest.raises(InputError, match="expected a generated slot from 11"):
        run_one(model_of("llama"), killing((1, 3)), steps=2)


@pytest.mark.parametrize(
    ("text", "rule"),
    [("attention:0.01", AttentionBelow(0.01)), ("attention-share:0.2", AttentionBelow(0.2, True))],
)
def test_prune_rules_are_read(text: str, rule: Prune) -> None:
    assert parse_prune(text) == rule


@pytest.mark.parametrize("text", ["", "attention", "attention:x", "attention:0", "entropy:1"])
def test_anything_else_is_no_prune_rule(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse_prune(text)


def test_capture_does_not_change_what_dies() -> None:
    model = model_of("llama")
    policy = Policy(TopK(3), prune=AttentionBelow(0.3, relative=True), keep="recompute")
    on = run_one(model, policy, steps=5)
    off = run_one(model, policy, steps=5, capture=NOTHING)
    assert on.table.died_at_step.tolist() == off.table.died_at_step.tolist()
    assert (on.logits(5) == off.logits(5)).all()


def test_the_living_table_forgets_the_dead() -> None:
    table: SlotTable = run_one(model_of("llama"), killing((1, 11), (2, 15)), steps=4).table
    living = table.without_pruned()
    assert living.token[11:].tolist() == [60, 90, 40, 70, 80]
    assert living.parent[11:].tolist() == [10, 10, 11, 13, 14]
    assert isinstance(AttentionBelow(0.1).judge(living, 2, np.zeros(16, np.float32))[0], Decision)
