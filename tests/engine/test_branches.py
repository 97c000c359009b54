"""Trees and the exact Bayesian mixture: every node equals the plain run of its path."""

import numpy as np
import pytest
import torch

from tempo.errors import InputError
from tempo.oracle import run_oracle
from tempo.policy.next_set import Choosing, Nodes, choose
from tempo.policy.positions import Depth
from tempo.policy.presets import Policy
from tempo.policy.pruning import AttentionBelow, Kill
from tempo.policy.readout import PerNode, Posterior
from tempo.policy.selection import Choice, Forced, Greedy, Threshold, TopK
from tempo.policy.visibility import TREE
from tempo.testing.tiny import FAMILIES
from tests.decoding import (
    Decoded,
    assert_equals_oracle,
    assert_same_logits,
    model_of,
    plain_forward,
    run_one,
)

FEW = ("llama", "gemma3", "mistral")


def tree(select, frontier: int = 4, **rules) -> Policy:
    return Policy(select, Depth(), TREE, read=PerNode(frontier), **rules)


def path_of(decoded: Decoded, slot: int) -> list[int]:
    """Slots from the root to a node."""
    path = [slot]
    while decoded.table.parent[path[0]] >= 0:
        path.insert(0, int(decoded.table.parent[path[0]]))
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_of_a_tree_equals_the_plain_run_of_its_path(family: str) -> None:
    model = model_of(family)
    decoded = run_one(model, tree(TopK(2), 3), steps=3)
    table = decoded.table
    assert [len(table.members(step)) for step in (1, 2, 3)] == [2, 3, 3]
    hidden = run_oracle(model, table, decoded.decoding.plan.policy).hidden
    for step in (1, 2, 3):
        for place, slot in enumerate(table.members(step)):
            path = path_of(decoded, int(slot))
            plain = plain_forward(model, table.token[path].tolist())
            assert_same_logits(decoded.logits(step)[place], plain.logits[0, -1])
            for layer, states in enumerate(plain.hidden_states):
                np.testing.assert_allclose(hidden[layer, path], states[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", FEW)
def test_a_node_lies_one_past_its_parent(family: str) -> None:
    table = run_one(model_of(family), tree(TopK(2)), steps=4).table
    assert (table.position[1:] == table.position[table.parent[1:]] + 1).all()
    assert (table.step[11:] == table.step[table.parent[11:]] + 1).all()


def test_siblings_of_different_parents_do_not_see_each_others_parent() -> None:
    decoded = run_one(model_of("llama"), tree(TopK(2)), steps=2)
    table, rows = decoded.table, decoded.weights(2)
    for place, slot in enumerate(table.members(2)):
        others = [one for one in table.members(1) if one != table.parent[slot]]
        assert (rows[:, :, place, others] == 0).all()
        assert (rows[:, :, place, table.parent[slot]] > 0).all()


def test_children_are_chosen_by_conditional_and_kept_by_path_probability() -> None:
    model = model_of("llama")
    decoded = run_one(model, tree(TopK(3), 4), steps=2)
    table = decoded.table
    first, second = table.members(1), table.members(2)
    rows = torch.from_numpy(decoded.logits(1)).log_softmax(-1).numpy()
    rows[:, list(model.eos_ids)] = -np.inf
    path = np.log(table.weight[first])[:, None] + rows
    best = sorted(
        ((path[i, t], i, t) for i in range(3) for t in np.argsort(-rows[i])[:3]), reverse=True
    )[:4]
    assert [int(t) for _, _, t in best] == table.token[second].tolist()
    assert [int(first[i]) for _, i, _ in best] == table.parent[second].tolist()
    np.testing.assert_allclose(
        table.probability[second], [np.exp(rows[i, t]) for _, i, t in best], rtol=1e-4
    )
    kept = np.exp([p for p, _, _ in best])
    np.testing.assert_allclose(table.weight[second], kept / kept.sum(), rtol=1e-4)


def test_a_tree_of_width_k_finds_the_beams_of_hugging_face() -> None:
    model = model_of("llama")
    decoded = run_one(model, tree(TopK(3), 3), steps=4)
    prompt = list(decoded.decoding.plan.token_ids)
    out = model.hf.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        length_penalty=0.0,
    )
    last = decoded.table.members(4)
    found = [decoded.table.token[path_of(decoded, int(slot))].tolist() for slot in last]
    assert found == out.tolist()


@pytest.mark.parametrize("family", FEW)
def test_the_posterior_readout_is_the_exact_bayesian_mixture(family: str) -> None:
    model = model_of(family)
    sets = ((30, 60, 90), (40, 40, 40), (50, 50, 50))
    follow = ((0, 0, 0), (0, 1, 2), (0, 1, 2))
    policy = Policy(Forced(sets, parents=follow), Depth(), TREE, read=Posterior(8))
    decoded = run_one(model, policy, steps=3)
    prompt = list(decoded.decoding.plan.token_ids)
    weight, rows = [], []
    for member in (30, 60, 90):
        plain = plain_forward(model, [*prompt, member, 40, 50]).logits[0].double().log_softmax(-1)
        n = len(prompt)
        weight.append(plain[n - 1, member] + plain[n, 40] + plain[n + 1, 50])
        rows.append(plain[-1])
    share = torch.stack(weight).softmax(-1)
    exact = torch.einsum("m,mv->v", share, torch.stack(rows).exp())
    got = decoded.outcomes[3].decoding.readout.log_probability
    np.testing.assert_allclose(np.exp(got), exact, atol=1e-5, rtol=0)
    np.testing.assert_allclose(decoded.table.weight[-3:], share, atol=1e-5)


def test_the_exact_filter_feeds_every_chosen_token_after_every_path() -> None:
    decoded = run_one(model_of("llama"), Policy(Greedy(), Depth(), TREE, read=Posterior(8)))
    assert {len(decoded.table.members(step)) for step in range(1, 7)} == {1}
    both = run_one(model_of("llama"), Policy(TopK(2), Depth(), TREE, read=Posterior(4)), steps=3)
    tokens = [both.table.token[both.table.members(step)] for step in (1, 2, 3)]
    assert [len(one) for one in tokens] == [2, 4, 4]
    assert sorted(np.unique(tokens[1], return_counts=True)[1]) == [2, 2]
    assert_equals_oracle(model_of("llama"), both)


def test_forced_tokens_of_a_tree_need_parents() -> None:
    with pytest.raises(InputError, match="parent of each of 2 forced tokens of step 2"):
        run_one(model_of("llama"), tree(Forced(((30, 60), (40, 50)))), steps=2)
    rule = Forced(((30, 60), (40,)), parents=((0, 0), (2,)))
    with pytest.raises(InputError, match="parents from 0 to 1"):
        run_one(model_of("llama"), tree(rule), steps=2)


def test_killing_a_node_kills_what_descends_from_it() -> None:
    rule = Forced(((30, 60), (40, 50, 70), (80, 90)), parents=((0, 0), (0, 1, 1), (0, 0)))
    decoded = run_one(model_of("llama"), tree(rule, prune=Kill(((2, 12),))), steps=3)
    assert decoded.table.died_at_step[11:16].tolist() == [-1, 2, -1, 2, 2]
    reasons = decoded.outcomes[2].tensors["judged/reason"].tolist()
    assert reasons == [3, 4, 4]


def test_attention_does_not_prune_a_tree() -> None:
    with pytest.raises(InputError, match="leave out prune"):
        tree(Threshold(0.1), prune=AttentionBelow(0.1))


def children(eos: int) -> Choice:
    """Two nodes of weights 0.75 and 0.25, three tokens, one of which ends a sequence."""
    rows = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32))
    nodes = Nodes(rows, np.log(np.array([0.75, 0.25], np.float32)))
    how = Choosing(TopK(2), "each", 4, eos_ids=(eos,))
    return choose(how, rows[0], 2, nodes)


def test_an_end_of_sequence_on_the_best_path_ends_the_tree() -> None:
    choice = children(eos=0)
    assert (choice.ends, choice.token.tolist(), choice.parent.tolist()) == (True, [0], [0])
    assert [(item.token, item.reason) for item in choice.dropped] == [
        (1, "eos"),
        (2, "eos"),
        (1, "eos"),
    ]


def test_an_end_of_sequence_on_another_path_ends_only_that_path() -> None:
    choice = children(eos=2)
    assert (choice.ends, choice.token.tolist(), choice.parent.tolist()) == (
        False,
        [0, 1, 1],
        [0, 0, 1],
    )
    assert [(item.token, item.reason) for item in choice.dropped] == [(2, "eos")]
    np.testing.assert_allclose(np.exp(choice.path_log_probability), [0.375, 0.225, 0.05], rtol=1e-5)
