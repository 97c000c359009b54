"""The invariants of parallel decoding, on tiny random models of every family.

Equalities between different executions hold in float32 and are checked on steps whose choice
rounding cannot turn.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tempo import policies
from tempo.engine.state import SequencePlan
from tempo.oracle import run_oracle
from tempo.policy.biases import Boost, LogPosterior, LogWeight, MassNeutral
from tempo.policy.positions import Depth, Offset, Shared, Unique
from tempo.policy.presets import Policy
from tempo.policy.pruning import AttentionBelow
from tempo.policy.readout import Last, Mixture, Posterior, Product, Top
from tempo.policy.selection import Forced, Greedy, Threshold, TopK
from tempo.policy.visibility import ISOLATED, ORDERED, TREE, VISIBLE, Window
from tempo.testing.tiny import FAMILIES
from tests.decoding import (
    Decoded,
    assert_equals_oracle,
    assert_same_logits,
    model_of,
    plain_forward,
    random_prompt,
    run_one,
    run_plans,
    whole,
)

LLAMAS = ("llama", "llama_mha")
TAU = 0.08
WIDTH_ONE = {
    "greedy": policies.greedy(),
    "tau_1": policies.isolated(1.0),
    "max_width_1": policies.visible(TAU, max_width=1),
}
POLICIES = {
    "isolated": policies.isolated(TAU),
    "visible": policies.visible(TAU),
    "ordered": policies.ordered(TAU),
    "unique": policies.unique(TAU),
    "greedy": policies.greedy(),
    "top_k": Policy(TopK(3), see=VISIBLE, read=Product()),
    "offset": Policy(Threshold(TAU), Offset(0.25), VISIBLE, read=Top()),
    "windowed": Policy(TopK(2), see=ISOLATED & Window(5), read=Last()),
    "boosted": Policy(TopK(2), bias=(Boost(1.5, own_set=True),), see=VISIBLE),
    "log_weight": Policy(TopK(3), bias=(LogWeight(),)),
    "mass_neutral": Policy(TopK(3), see=VISIBLE, bias=(MassNeutral(), Boost(-0.5))),
    "posterior": Policy(TopK(3), bias=(LogPosterior(),)),
    "tree": policies.tree(TAU, max_width=4),
    "bayes": Policy(TopK(2), Depth(), TREE, read=Posterior(4)),
    "pruned": Policy(TopK(3), prune=AttentionBelow(0.3, relative=True), keep="evict"),
}


# Pairs of capture's three ways: every dtype with every level here, and both with every family in
# the test. All three together would ask 117 times, and no code reads more than two of them at once.
DTYPES = ("float32", "bfloat16", "float16")
LEVELS = ("weights", "qk", "reduced")
CAPTURED = [
    (family, DTYPES[(number + turn) % 3], level)
    for number, family in enumerate(FAMILIES)
    for turn, level in enumerate(LEVELS)
]


def forced(*sets: tuple[int, ...], **rules) -> Policy:
    return Policy(Forced(sets), **rules)


@cache
def decoded_by(family: str, policy: str) -> Decoded:
    """Six steps of a family under a policy, decoded once; nothing that reads it changes it."""
    return run_one(model_of(family), POLICIES[policy])


# 1


@pytest.mark.parametrize("rule", WIDTH_ONE)
@pytest.mark.parametrize("family", FAMILIES)
def test_width_one_equals_generate(family: str, rule: str) -> None:
    model = model_of(family)
    decoded = run_one(model, WIDTH_ONE[rule], steps=8)
    prompt = list(decoded.decoding.plan.token_ids)
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    out = model.hf.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_attentions=True,
    )
    model.hf.set_attn_implementation(before)
    n_safe = decoded.safe_steps()
    assert n_safe >= 3
    end = len(prompt) + n_safe
    assert decoded.table.token[:end].tolist() == out.sequences[0, :end].tolist()
    for step in range(n_safe):
        assert_same_logits(decoded.logits(step)[-1], out.logits[step][0])
    # step k of generate feeds the token chosen at k - 1, and step 0 is the whole prompt
    for step in range(n_safe):
        for shown, eager in zip(decoded.weights(step), out.attentions[step], strict=True):
            kept = shown[..., -eager.shape[-1] :]  # a sliding cache drops old slots
            np.testing.assert_allclose(kept, eager[0], atol=1e-5, rtol=0)


# 2


@pytest.mark.parametrize("policy", ["isolated", "unique", "offset"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_slot_is_cached_and_its_position_reaches_rope(family: str, policy: str) -> None:
    model = model_of(family)
    seen: list[np.ndarray] = []
    rotary = [module for name, module in model.hf.named_modules() if name.endswith("rotary_emb")]
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(
                kwargs.get("position_ids", args[1] if len(args) > 1 else None)
            ),
            with_kwargs=True,
        )
        for module in rotary
    ]
    decoded = run_one(model, POLICIES[policy])
    for hook in hooks:
        hook.remove()
    table = decoded.table
    widths = [len(table.members(step)) for step in range(1, 7)]
    assert max(widths) >= 2
    assert decoded.weights(6).shape[-1] == decoded.n_prompt + sum(widths) == len(table)
    calls = len(seen) // 7
    assert calls >= 1
    for step in range(7):
        for positions in seen[step * calls : (step + 1) * calls]:
            assert positions[0].tolist() == table.position[table.members(step)].tolist()


# 3


@pytest.mark.parametrize("family", LLAMAS)
@given(seed=st.integers(0, 10**6))
def test_permuting_slots_permutes_outputs(family: str, seed: int) -> None:
    model = model_of(family)
    decoded = run_one(model, POLICIES["visible"], steps=3)
    table = decoded.table
    order = np.random.default_rng(seed).permutation(len(table))
    plain = run_oracle(model, table, POLICIES["visible"])
    shuffled = run_oracle(model, table, POLICIES["visible"], order=order)
    assert_same_logits(shuffled.logits, plain.logits[order])
    np.testing.assert_allclose(
        shuffled.attention, plain.attention[:, :, order][..., order], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_isolated_members_does_not_matter(family: str) -> None:
    model = model_of(family)
    one = run_one(model, forced((20, 30, 40), (50, 60)), steps=2)
    other = run_one(model, forced((40, 20, 30), (60, 50)), steps=2)
    order = [2, 0, 1]
    assert_same_logits(other.logits(1), one.logits(1)[order])
    assert_same_logits(other.logits(2), one.logits(2)[[1, 0]])
    slots = [*range(11), *(11 + np.array(order)), 15, 14]
    renamed = other.weights(2)
    np.testing.assert_allclose(renamed, one.weights(2)[:, :, [1, 0]][..., slots], atol=1e-5, rtol=0)


# 4


@pytest.mark.parametrize("family", FAMILIES)
def test_an_isolated_member_does_not_notice_its_siblings(family: str) -> None:
    model = model_of(family)
    alone = run_one(model, forced((30,)), steps=1)
    first = run_one(model, forced((30, 40, 50)), steps=1)
    last = run_one(model, forced((60, 70, 30)), steps=1)
    for crowd, place in ((first, 0), (last, 2)):
        assert_same_logits(crowd.logits(1)[place], alone.logits(1)[0])
        row = crowd.weights(1)[:, :, place]
        own = crowd.n_prompt + place
        np.testing.assert_allclose(row[..., :11], alone.weights(1)[:, :, 0, :11], atol=1e-5, rtol=0)
        np.testing.assert_allclose(row[..., own], alone.weights(1)[:, :, 0, 11], atol=1e-5, rtol=0)
        assert (np.delete(row[..., 11:], place, axis=-1) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_isolated_set_equals_its_sequential_paths(family: str) -> None:
    model = model_of(family)
    decoded = run_one(model, policies.isolated(TAU), steps=1)
    table = decoded.table
    members = table.members(1)
    prompt = list(decoded.decoding.plan.token_ids)
    paths = [
        plain_forward(model, [*prompt, int(table.token[slot])]).logits[0, -1] for slot in members
    ]
    assert_same_logits(decoded.logits(1), torch.stack(paths))
    chosen_from = (
        plain_forward(model, prompt).logits[0, -1].double().softmax(-1)[table.token[members]]
    )
    marginal = torch.einsum(
        "m,mv->v", chosen_from / chosen_from.sum(), torch.stack(paths).double().softmax(-1)
    )
    readout = decoded.outcomes[1].decoding.readout.log_probability
    np.testing.assert_allclose(np.exp(readout), marginal, atol=1e-5, rtol=0)


# 5 (the half for sets; the half for trees is in engine/test_branches.py)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_after_a_set_equals_no_single_path(family: str) -> None:
    model = model_of(family)
    decoded = run_one(model, forced((30, 60), (40,)), steps=2)
    prompt = list(decoded.decoding.plan.token_ids)
    merged = run_oracle(model, decoded.table, decoded.decoding.plan.policy).hidden[-1, -1]
    for member in (30, 60):
        path = plain_forward(model, [*prompt, member, 40]).hidden_states[-1][0, -1].numpy()
        assert np.abs(merged - path).max() > 1e-2


# 6


@pytest.mark.parametrize("family", FAMILIES)
def test_visible_is_symmetric_in_siblings_and_ordered_is_not(family: str) -> None:
    model = model_of(family)
    gaps = {}
    for name, see in (("visible", VISIBLE), ("ordered", ORDERED)):
        one = run_one(model, forced((20, 30, 40), see=see), steps=1).logits(1)
        other = run_one(model, forced((40, 20, 30), see=see), steps=1).logits(1)
        gaps[name] = np.abs(other - one[[2, 0, 1]]).max()
    assert gaps["visible"] < 1e-4
    assert gaps["ordered"] > 1e-2


# 7


@pytest.mark.parametrize("copies", [2, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_a_token_share_their_mass(family: str, copies: int) -> None:
    model = model_of(family)
    decoded = run_one(model, forced((30,) * copies, (40,)), steps=2)
    columns = decoded.weights(2)[:, :, 0, 11 : 11 + copies]
    np.testing.assert_allclose(columns, columns[..., :1].repeat(copies, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("copies", [2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_mass_neutral_copies_equal_one(family: str, copies: int) -> None:
    model = model_of(family)
    many = run_one(model, forced((30,) * copies, (40,), (50,), bias=(MassNeutral(),)), steps=3)
    one = run_one(model, forced((30,), (40,), (50,)), steps=3)
    for step in (2, 3):
        assert_same_logits(many.logits(step), one.logits(step))
    hidden = run_oracle(model, many.table, many.decoding.plan.policy).hidden
    single = run_oracle(model, one.table, one.decoding.plan.policy).hidden
    np.testing.assert_allclose(hidden[:, -1], single[:, -1], atol=1e-4, rtol=1e-4)
    unweighted = run_one(model, forced((30,) * copies, (40,), (50,)), steps=3)
    assert np.abs(unweighted.logits(2) - one.logits(2)).max() > 1e-3


# 8


@pytest.mark.parametrize("shift", [1.0, 37.0, 100.0, 0.5])
@pytest.mark.parametrize(
    "family", ["llama", "llama_mha", "mistral", "gemma2", "gemma3", "gpt_neox"]
)
def test_shifting_all_positions_changes_nothing(family: str, shift: float) -> None:
    model = model_of(family)
    table = run_one(model, POLICIES["visible"], steps=3).table
    moved = replace(table, position=table.position + np.float32(shift))
    plain, shifted = (run_oracle(model, t, POLICIES["visible"]).logits for t in (table, moved))
    assert_same_logits(shifted, plain)


# 9


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_one_and_vanish_where_nothing_is_seen(family: str, policy: str) -> None:
    model = model_of(family)
    decoded = decoded_by(family, policy)
    windows = dict.fromkeys(model.windows)
    for step, outcome in enumerate(decoded.outcomes):
        weights = decoded.weights(step)
        total = weights.sum(-1)
        if family == "gpt_oss":
            assert (total < 1).all()
        else:
            np.testing.assert_allclose(total, 1, atol=1e-5)
        for layer, window in enumerate(model.windows):
            name = "visible/full" if window is None else f"visible/window_{window}"
            seen = np.unpackbits(outcome.tensors[name], axis=-1, count=weights.shape[-1]).astype(
                bool
            )
            assert (weights[layer][:, ~seen] == 0).all()
            assert (weights[layer][:, seen] > 0).all()
    assert len(windows) == (2 if family in ("gemma2", "gemma3", "gpt_oss") else 1)


# 10


@pytest.mark.parametrize(("family", "dtype", "level"), CAPTURED)
def test_capture_does_not_perturb(family: str, dtype: str, level: str) -> None:
    model = model_of(family, dtype)
    on = run_one(model, policies.visible(TAU), capture=whole(model, level))
    off = run_one(
        model, policies.visible(TAU), capture=replace(whole(model), level=None, layers=())
    )
    assert on.table.token.tolist() == off.table.token.tolist()
    for step in range(len(on.outcomes)):
        assert torch.equal(on.outcomes[step].logits, off.outcomes[step].logits)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_engine_equals_oracle(family: str, policy: str) -> None:
    assert_equals_oracle(model_of(family), decoded_by(family, policy))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_one_by_one(family: str) -> None:
    model = model_of(family)
    plans = [
        SequencePlan(
            f"p{number}",
            name,
            random_prompt(model, 4 + 5 * (number % 3), number),
            policy,
            4 + number % 3,
            "ignore",
        )
        for number, (name, policy) in enumerate(POLICIES.items())
    ]
    together = run_plans(model, plans)
    for plan, batched in zip(plans, together, strict=True):
        alone = run_plans(model, [plan])[0]
        n_safe = min(alone.safe_steps(), batched.safe_steps())
        for step in range(n_safe + 1):
            members = alone.table.members(step)
            assert batched.table.token[members].tolist() == alone.table.token[members].tolist()
            assert_same_logits(batched.logits(step), alone.logits(step))
            np.testing.assert_allclose(
                batched.weights(step), alone.weights(step), atol=1e-5, rtol=0
            )


# 12


@pytest.mark.parametrize("family", FAMILIES)
def test_ordered_with_unique_positions_is_a_plain_causal_forward(family: str) -> None:
    model = model_of(family)
    decoded = run_one(model, Policy(Threshold(TAU), Unique(), ORDERED))
    assert len(decoded.table) > decoded.n_prompt + 6
    plain = plain_forward(model, decoded.table.token.tolist(), attention=True)
    attention = torch.cat(plain.attentions).numpy()
    for step in range(len(decoded.outcomes)):
        members = decoded.table.members(step)
        kept = members[-1:] if step == 0 else members
        assert_same_logits(decoded.logits(step), plain.logits[0, kept])
        weights = decoded.weights(step)
        expected = attention[:, :, members][..., : weights.shape[-1]]
        np.testing.assert_allclose(weights, expected, atol=1e-5, rtol=0)


def test_the_presets_are_the_combinations_they_claim() -> None:
    assert policies.greedy() == Policy(Greedy(), Shared(), ISOLATED, (), Mixture())
    assert policies.unique(0.2) == replace(policies.isolated(0.2), place=Unique())
    assert policies.visible(0.2) == replace(policies.isolated(0.2), see=VISIBLE)
    assert policies.ordered(0.2) == replace(policies.isolated(0.2), see=ORDERED)
