"""`tempo.follow`: one member through the layers, held against slow forwards and exact answers."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import tempo
from tempo import edits
from tempo.causal.attribution import lens_error
from tempo.errors import InputError, ModelError, NoParallelSetsError, OutputError, TwinError
from tempo.models.language_model import LanguageModel
from tempo.oracle import run_oracle
from tempo.policy.override import alone, forced
from tempo.policy.positions import Unique
from tempo.policy.presets import Policy, greedy, tree
from tempo.policy.pruning import Kill
from tempo.policy.selection import Forced, TopK
from tempo.policy.serialize import rule_from_dict
from tempo.policy.visibility import ISOLATED, ORDERED, VISIBLE
from tempo.run import replay
from tempo.run.replay import NO_TWIN_IN_TREES, replay_set
from tempo.testing.tiny import FAMILIES, tiny_model
from tempo.trace.trace import Trace
from tempo_analysis.studies.follow import measure as hiding
from tempo_analysis.studies.follow.figures import caption, member_figure
from tempo_analysis.studies.follow.findings import Followed
from tempo_analysis.studies.follow.logit_lens import lens_divergence, lens_of
from tempo_analysis.studies.follow.measure import ASKED, follow
from tempo_analysis.studies.follow.tables import (
    heads_table,
    layers_table,
    member_tables,
    slots_table,
)
from tempo_analysis.studies.follow.trajectory import (
    chance_where_seen,
    correlation,
    mean_where_seen,
    odds_law,
)
from tests.command_line import call, document, model_folder, refusal, with_tiny
from tests.decoding import model_of, random_prompt, real_model, run_one

RELATIONS = {"isolated": ISOLATED, "visible": VISIBLE, "ordered": ORDERED}
FEW = ("llama", "gemma2", "gpt_oss", "olmo2")
N_PROMPT = 11
SET, NEXT = 2, 3
"""The set that is followed, which has a set of three before it and after it."""


@cache
def traced(family: str, relation: str = "isolated", **options: Any) -> Trace:
    policy = Policy(TopK(3), see=RELATIONS[relation])
    prompt = list(random_prompt(model_of(family), N_PROMPT))
    settings = {"steps": 4, "eos": "ignore", **options}
    return tempo.generate(model_of(family), prompt, policy=policy, **settings)[0]


def slot_of(trace: Trace, rank: int = 1, step: int = SET) -> int:
    return int(trace.members(step)[rank])


@cache
def followed(family: str, relation: str = "isolated", rank: int = 1) -> Followed:
    trace = traced(family, relation)
    return follow(trace, slot_of(trace, rank), model=model_of(family))


def oracle_of(model: LanguageModel, trace: Trace, *, dead: tuple[int, ...] = ()):
    """A slow forward as far as the next step, its readout there, and its table."""
    policy = Policy(TopK(3), see=relation_of(trace))
    table = trace.slots.upto(trace.n_slots(NEXT)).mark_pruned(list(dead), SET)
    run = run_oracle(model, table, policy)
    return run, run.readout(table, NEXT, policy)


def relation_of(trace: Trace) -> Any:
    return rule_from_dict(trace.header.policy).see


@contextmanager
def hidden_in(model: LanguageModel, layer: int, slot: int, first_query: int) -> Generator[None]:
    """One layer's own mask hides a slot from later rows, as Hugging Face's eager forward has it."""

    def hide(_: Any, args: Any, options: dict[str, Any]) -> Any:
        mask = options["attention_mask"].clone()
        mask[:, :, first_query:, slot] = float("-inf")
        return args, options | {"attention_mask": mask}

    decoder: Any = model.hf.get_decoder()
    hook = decoder.layers[layer].register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


# --- against slow forwards


@pytest.mark.parametrize("relation", ["isolated", "visible"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_states_and_lens_are_those_of_a_slow_forward(family: str, relation: str):
    model, trace, found = model_of(family), traced(family, relation), followed(family, relation)
    run, _ = oracle_of(model, trace)
    slot = found.member.slot
    rows = run.attention[:, :, trace.members(NEXT)][..., slot]
    np.testing.assert_allclose(found.member.attention[0], rows.mean(-1), atol=1e-5)
    norms = np.linalg.norm(run.hidden[:-1, slot], axis=-1)
    np.testing.assert_allclose(found.member.norm[:-1], norms, rtol=1e-4)
    shares = torch.from_numpy(run.logits[slot]).log_softmax(-1).numpy()
    best = np.argsort(-shares, kind="stable")[:5]
    assert found.member.lens.token[-1].tolist() == best.tolist()
    np.testing.assert_allclose(found.member.lens.log_probability[-1], shares[best], atol=1e-4)
    went_on = shares[trace.slots.token[trace.members(NEXT)[0]]]
    assert found.member.lens.next_log_probability[-1] == pytest.approx(went_on, abs=1e-4)
    assert found.member.lens.next_rank[-1] == (shares > went_on).sum()


@pytest.mark.parametrize("relation", ["isolated", "visible"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hiding_in_one_layer_equals_a_mask_in_that_layer_alone(family: str, relation: str):
    model, trace, found = model_of(family), traced(family, relation), followed(family, relation)
    _, base = oracle_of(model, trace)
    for layer in range(model.n_layers):
        with hidden_in(model, layer, found.member.slot, int(trace.members(NEXT)[0])):
            _, readout = oracle_of(model, trace)
        effect = lens_divergence(base[None], readout[None])[0]
        assert effect > 1e-5
        assert found.member.knocked is not None
        assert found.member.knocked.one_layer_nats[layer] == pytest.approx(effect, rel=1e-2)


@pytest.mark.parametrize("family", FEW)
def test_alone_is_the_slow_forward_without_the_siblings(family: str):
    model, trace, found = model_of(family), traced(family), followed(family)
    assert found.alone is not None
    lonely = alone(trace.slots, Policy(TopK(3)), found.member.slot)
    decoded = run_one(model, lonely, prompt=random_prompt(model, N_PROMPT), steps=NEXT)
    run = run_oracle(model, decoded.table, Policy(TopK(3)))
    slot = int(decoded.table.members(SET)[0])
    rows = run.attention[:, :, decoded.table.members(NEXT)][..., slot]
    np.testing.assert_allclose(found.alone.attention[0], rows.mean(-1), atol=1e-5)
    assert found.alone.slot == found.member.slot


# --- exact answers


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_hiding_in_every_layer_equals_the_death_of_the_member(family: str, relation: str):
    model, trace, found = model_of(family), traced(family, relation), followed(family, relation)
    policy = Policy(forced(trace.slots), see=RELATIONS[relation])
    readouts = []
    for prune in (Kill(()), Kill(((SET, found.member.slot),))):
        run = run_one(
            model, replace(policy, prune=prune), prompt=random_prompt(model, N_PROMPT), steps=NEXT
        )
        readouts.append(run.outcomes[NEXT].decoding.readout.log_probability)
    killed = lens_divergence(readouts[0][None], readouts[1][None])[0]
    assert killed > 1e-4
    assert found.member.knocked is not None
    assert found.member.knocked.every_layer_nats == pytest.approx(killed, rel=1e-3)


@pytest.mark.parametrize("relation", ["isolated", "visible"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_odds_law_is_exact_in_layer_0_and_only_there(family: str, relation: str):
    found = followed(family, relation)
    np.testing.assert_allclose(found.odds_law[:, 0], found.member.attention[:, 0], atol=1e-6)
    assert np.abs(found.odds_law[:, 1:] - found.member.attention[:, 1:]).max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_isolated_siblings_leave_the_states_as_they_are_alone_and_visible_ones_do_not(family: str):
    assert followed(family).own_change.max() < 1e-5
    seen = followed(family, "visible").own_change
    assert seen[0] < 1e-6
    assert seen[1:].min() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_of_the_last_depth_gives_the_models_own_logits(family: str):
    found = followed(family)
    assert found.lens_error < 1e-4
    for each in (found.member, *found.siblings, found.alone):
        assert each is not None
        assert each.lens.own_kl_nats[-1] < 1e-8
        assert each.lens.own_kl_nats[:-1].min() > 1e-3
        assert each.lens.readout_kl_nats[-1] > 1e-3


def test_a_set_of_one_living_distribution_is_its_own_readout():
    found = followed("llama")
    share = np.exp([each.lens.next_log_probability[-1] for each in (found.member, *found.siblings)])
    trace = traced("llama")
    weights = trace.slots.weight[[found.member.slot, *(each.slot for each in found.siblings)]]
    readout = trace.readout(SET)
    went_on = readout.log_probability[readout.token == found.next_token][0]
    assert np.log(share @ weights) == pytest.approx(went_on, abs=1e-4)


def test_a_cap_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch):
    model, trace = tiny_model("gemma2"), traced("gemma2")
    monkeypatch.setattr(model.config, "final_logit_softcapping", None)
    together = replay_set(model_of("gemma2"), trace, SET).together
    assert np.abs(together.logits).max() < 8.0
    with pytest.raises(ModelError, match="its lens is not known"):
        lens_error(model, together.states[-1], together.logits)


def test_a_decoder_without_a_known_final_norm_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempo.models.head_weights._FINAL_NORMS", ("another_norm",))
    trace = traced("llama")
    with pytest.raises(ModelError, match="final norm"):
        follow(trace, slot_of(trace), model=model_of("llama"))


# --- what is averaged, and beside what


def test_attention_and_chance_are_those_of_the_trace_at_every_later_step():
    trace, found = traced("gemma3"), followed("gemma3")
    assert found.later == (3, 4)
    for place, step in enumerate(found.later):
        slot = found.member.slot
        rows = trace.attention(step)[..., slot].mean(-1)
        np.testing.assert_allclose(found.member.attention[place], rows, atol=1e-5)
        chance = (1 / trace.visible(step).sum(-1)).mean(-1)
        np.testing.assert_allclose(found.chance[place], chance)
    assert found.n_queries == (3, 3)


def test_norms_of_values_are_those_that_a_trace_records():
    trace = traced("qwen3", values=True)
    found = followed("qwen3")
    expected = trace.value_norm(SET)[..., found.member.slot]
    np.testing.assert_allclose(found.member.value_norm, expected, rtol=1e-4)


def test_a_model_without_plain_projections_has_no_norms_of_values(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise ModelError("no plain projection here")

    monkeypatch.setattr(replay, "projections", refuse)
    trace = traced("llama")
    found = follow(trace, slot_of(trace), model=model_of("llama"), siblings=False)
    assert np.isnan(found.member.value_norm).all()
    assert any("no plain projection here" in line for line in found.sentences())
    np.testing.assert_array_equal(found.member.attention, followed("llama").member.attention)


def test_every_sibling_followed_by_itself_gives_the_same_numbers():
    one, other = followed("llama", rank=1), followed("llama", rank=0)
    (sibling,) = [each for each in one.siblings if each.rank == 0]
    np.testing.assert_allclose(sibling.attention, other.member.attention)
    np.testing.assert_allclose(sibling.norm, other.member.norm)
    assert sibling.knocked is not None
    assert other.member.knocked is not None
    np.testing.assert_allclose(
        sibling.knocked.one_layer_nats, other.member.knocked.one_layer_nats, rtol=1e-6
    )


def test_what_decodes_together_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    trace, found = traced("gemma3"), followed("gemma3")
    monkeypatch.setattr(hiding, "TOGETHER", 1)
    apart = follow(trace, found.member.slot, model=model_of("gemma3"), siblings=False)
    assert apart.siblings == ()
    assert apart.member.knocked is not None
    assert found.member.knocked is not None
    np.testing.assert_allclose(
        apart.member.knocked.one_layer_nats, found.member.knocked.one_layer_nats, rtol=1e-3
    )
    np.testing.assert_allclose(apart.odds_law, found.odds_law, atol=1e-7)


def test_the_control_is_the_prompt_slot_whose_attention_is_nearest():
    trace, found = traced("llama"), followed("llama")
    assert found.control is not None
    means = trace.attention(NEXT).mean((0, 1, 2), dtype=np.float64)
    ratio = np.abs(np.log(means[1:N_PROMPT] / means[found.member.slot]))
    assert found.control.slot == 1 + int(ratio.argmin())
    rows = trace.attention(NEXT)[..., found.control.slot].mean(-1)
    np.testing.assert_allclose(found.control.attention, rows, atol=1e-5)
    assert found.control.knocked.every_layer_nats > 0


def test_the_correlation_is_spearmans_over_layers():
    found = followed("gpt_oss")
    assert found.member.knocked is not None
    expected = stats.spearmanr(
        found.member.attention[0].mean(-1), found.member.knocked.one_layer_nats
    ).statistic
    assert correlation(found.member) == pytest.approx(expected)


def test_the_member_that_gets_most_attention_in_the_widest_set_is_taken():
    model = model_of("llama")
    sets = ((30, 60), (40, 50, 55, 70), (33, 66, 99), (80, 81, 82, 83, 84))
    trace = tempo.generate(
        model, list(random_prompt(model, N_PROMPT)), policy=Policy(Forced(sets)), steps=4
    )[0]
    found = follow(trace, model=model)
    assert found.step == 2
    got = trace.attention(3).mean((0, 1, 2))[trace.members(2)]
    assert found.member.rank == got.argmax()
    assert "most attention" in found.sentences()[0]
    again = follow(trace, found.member.slot, model=model)
    assert again.chosen == ASKED
    np.testing.assert_array_equal(again.member.attention, found.member.attention)


@pytest.mark.parametrize("capture", ["qk", "reduced"])
def test_any_level_of_a_trace_will_do(capture: str):
    trace = traced("llama", capture=capture, layers="1")
    found = follow(trace, slot_of(trace), model=model_of("llama"), siblings=False)
    np.testing.assert_array_equal(found.member.attention, followed("llama").member.attention)


def test_a_twin_with_positions_of_its_own_is_followed_as_well():
    run = tempo.replay(traced("llama"), policy="unique", model=model_of("llama"))
    trace = run.trace(arm="twin")
    found = follow(trace, slot_of(trace), model=model_of("llama"))
    np.testing.assert_allclose(found.odds_law[:, 0], found.member.attention[:, 0], atol=1e-6)
    rows = trace.attention(NEXT)[..., found.member.slot].mean(-1)
    np.testing.assert_allclose(found.member.attention[0], rows, atol=1e-5)


@pytest.mark.parametrize("policy", ["posterior", "visible"])
def test_a_bias_is_kept(policy: str):
    model = model_of("llama")
    trace = tempo.generate(
        model, list(random_prompt(model, 9)), policy=policy, threshold=0.02, steps=5, eos="ignore"
    )[0]
    found = follow(trace, model=model, siblings=False)
    step = found.later[0]
    rows = trace.attention(step)[..., found.member.slot].mean(-1)
    np.testing.assert_allclose(found.member.attention[0], rows, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model, trace = model_of("qwen3"), traced("qwen3")
    before = model.hf.config._attn_implementation
    follow(trace, slot_of(trace), model=model, siblings=False)
    assert model.hf.config._attn_implementation == before
    decoder: Any = model.hf.get_decoder()
    assert not any(layer._forward_pre_hooks for layer in decoder.layers)
    run = tempo.replay(trace, policy=Policy(TopK(3)), model=model, axes=())
    again = run.trace(arm="twin")
    # another execution: equal as sums in float32 are, and bit for bit on some processors only
    np.testing.assert_allclose(
        again.readout(4).log_probability, trace.readout(4).log_probability, atol=1e-5
    )


def test_half_precision_is_followed_with_a_wider_tolerance():
    model = model_of("llama", "bfloat16")
    trace = tempo.generate(
        model, list(random_prompt(model, 9)), policy=Policy(TopK(3)), steps=3, eos="ignore"
    )[0]
    found = follow(trace, slot_of(trace, step=1), model=model, siblings=False)
    assert found.model["dtype"] == "bfloat16"
    assert found.lens_error < 0.5


# --- what is not seen


def wide(family: str) -> Trace:
    """Ten members at positions of their own: a window of eight hides the first from the next."""
    model = model_of(family)
    policy = Policy(TopK(10), place=Unique())
    prompt = list(random_prompt(model, N_PROMPT))
    return tempo.generate(model, prompt, policy=policy, steps=2, eos="ignore")[0]


def test_a_layer_whose_window_hides_the_member_has_no_number():
    trace, model = wide("gemma3"), model_of("gemma3")
    found = follow(trace, slot_of(trace, 0, 1), model=model, siblings=False)
    slides = np.array([window is not None for window in model.windows])
    assert slides.any()
    assert not slides.all()
    assert found.member.knocked is not None
    for numbers in (
        found.member.knocked.one_layer_nats,
        found.member.attention_by_layer,
        found.chance[0],
        found.odds_law[0].mean(-1),
    ):
        np.testing.assert_array_equal(np.isnan(numbers), slides)
    assert f"{(~slides).sum()} layers are too few" in found.sentences()[-1]


def test_a_member_that_no_layer_shows_is_refused():
    trace = wide("mistral")
    with pytest.raises(InputError, match="which none may"):
        follow(trace, slot_of(trace, 0, 1), model=model_of("mistral"))
    found = follow(trace, model=model_of("mistral"), siblings=False)
    assert np.isfinite(found.member.attention).all()


def grown() -> tuple[LanguageModel, Trace]:
    model = model_of("llama")
    prompt = list(random_prompt(model, N_PROMPT))
    policy = tree(0.02, max_width=4)
    return model, tempo.generate(model, prompt, policy=policy, steps=4, eos="ignore")[0]


def test_in_a_tree_only_children_count_and_there_is_no_twin_alone():
    model, trace = grown()
    parent = next(
        int(slot)
        for step in range(1, trace.n_steps)
        if len(trace.members(step)) >= 2
        for slot in trace.members(step)
        if slot in trace.slots.parent[trace.members(step + 1)]
    )
    found = follow(trace, parent, model=model)
    step = found.later[0]
    children = trace.slots.parent[trace.members(step)] == parent
    rows = trace.attention(step)[..., parent]
    np.testing.assert_allclose(found.member.attention[0], rows[..., children].mean(-1), atol=1e-5)
    assert found.alone is None
    assert found.no_alone == NO_TWIN_IN_TREES
    assert np.isnan(found.odds_law).all()
    assert np.isnan(found.own_change).all()
    assert any(NO_TWIN_IN_TREES in line for line in found.sentences())
    assert json.loads(found.json())["alone"] is None


def test_a_node_of_a_tree_without_children_is_refused():
    model, trace = grown()
    parents = set(trace.slots.parent.tolist())
    barren = next(
        int(slot)
        for step in range(1, trace.n_steps)
        if len(trace.members(step)) >= 2
        for slot in trace.members(step)
        if int(slot) not in parents
    )
    with pytest.raises(InputError, match="which none may"):
        follow(trace, barren, model=model)


def test_a_prompt_of_one_token_has_no_slot_to_compare_with():
    model = model_of("llama")
    trace = tempo.generate(model, [40], policy=Policy(TopK(2)), steps=2, eos="ignore")[0]
    found = follow(trace, model=model)
    assert found.control is None
    assert found.no_control
    assert any(found.no_control in line for line in found.sentences())
    member_figure(found)


# --- what is refused


@pytest.mark.parametrize(
    ("slot", "what"),
    [
        (3, "which is of the prompt"),
        (N_PROMPT, "which has no siblings"),
        (N_PROMPT + 4, "of the last set"),
        (N_PROMPT + 99, "got slot 110 of 17"),
        (-1, "got slot -1 of 17"),
    ],
)
def test_a_slot_that_is_no_member_to_follow_is_refused(slot: int, what: str):
    model = model_of("llama")
    sets = ((30,), (40, 50, 55), (60, 61))
    policy = Policy(Forced(sets))
    prompt = list(random_prompt(model, N_PROMPT))
    trace = tempo.generate(model, prompt, policy=policy, steps=3)[0]
    with pytest.raises(InputError, match=what) as refused:
        follow(trace, slot, model=model)
    assert f"slots {N_PROMPT + 1}, {N_PROMPT + 2}, {N_PROMPT + 3}" in str(refused.value)


def test_a_run_without_a_set_that_is_followed_is_refused():
    model = model_of("llama")
    for policy in (greedy(), Policy(Forced(((30,), (40, 50))))):
        trace = tempo.generate(model, [40, 41, 42], policy=policy, steps=2)[0]
        with pytest.raises(NoParallelSetsError, match="lower the threshold"):
            follow(trace, model=model)


def test_an_edited_trace_is_refused():
    run = tempo.replay(traced("llama"), model=model_of("llama"), edits=[edits.zero_heads("L0H1")])
    twin = run.trace(arm="twin")
    with pytest.raises(InputError, match="an edited one"):
        follow(twin, slot_of(twin), model=model_of("llama"))


def test_a_trace_with_pruned_members_is_refused():
    model = model_of("llama")
    policy = Policy(TopK(3), prune=Kill(((2, N_PROMPT),)))
    trace = tempo.generate(
        model, list(random_prompt(model, N_PROMPT)), policy=policy, steps=3, eos="ignore"
    )[0]
    with pytest.raises(InputError, match="pruned members"):
        follow(trace, model=model)


def test_an_interrupted_trace_is_refused():
    trace = traced("llama")
    running = Trace(replace(trace.header, stopped="running"), trace.tensors)
    with pytest.raises(InputError, match="interrupted"):
        follow(running, model=model_of("llama"))


def test_another_model_is_refused():
    with pytest.raises(TwinError, match="expected the model that made the trace"):
        follow(traced("llama"), model=model_of("qwen3"))


@pytest.mark.parametrize("name", ["readout/log_probability", "slots/position"])
def test_a_trace_that_does_not_come_out_again_is_refused(name: str):
    trace = traced("llama")
    key = f"step/{NEXT:05d}/{name}"
    tampered = Trace(trace.header, dict(trace.tensors) | {key: trace.tensors[key] + np.float32(1)})
    with pytest.raises(TwinError, match="come out as recorded"):
        follow(tampered, slot_of(trace), model=model_of("llama"))


# --- the arithmetic


def test_members_of_equal_odds_share_as_the_law_says():
    mass = 0.2
    got = odds_law(np.full((3, 1, 1, 1), mass))
    np.testing.assert_allclose(got, mass / (1 + 2 * mass))
    np.testing.assert_allclose(odds_law(np.full((1, 1, 1, 1), mass)), mass)
    assert np.isfinite(odds_law(np.array([1.0, 0.5]).reshape(2, 1, 1, 1))).all()


def test_queries_that_may_not_see_a_slot_do_not_count():
    weights = np.array([[[0.2, 0.4, 0.9]]])
    sees = np.array([[True, True, False]])
    assert mean_where_seen(weights, sees) == pytest.approx(0.3)
    assert np.isnan(mean_where_seen(weights, np.zeros((1, 3), bool))).all()
    visible = np.array([[[True, True, False], [True, True, True], [True, False, False]]])
    assert chance_where_seen(visible, sees)[0] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_the_divergence_of_known_distributions():
    with np.errstate(divide="ignore"):
        first, second = np.log([[0.5, 0.5, 0.0]]), np.log([[0.25, 0.5, 0.25]])
    assert lens_divergence(first, second)[0] == pytest.approx(0.5 * np.log(2))
    assert lens_divergence(second, second)[0] == 0


def test_a_lens_settles_where_its_best_token_stays():
    logits = np.zeros((5, 4))
    logits[np.arange(5), [1, 2, 1, 2, 2]] = 5.0
    lens = lens_of(logits, logits[-1], logits[0], went_on=1, text_of=str)
    assert lens.settles_at == 3
    assert lens.text[0][0] == "1"
    assert lens.next_rank.tolist() == [0, 1, 0, 1, 1]
    assert lens.own_kl_nats[[1, 3, 4]].max() == 0 < lens.own_kl_nats[0]
    steady = lens_of(logits[-1:], logits[-1], logits[-1], went_on=0, text_of=str)
    assert steady.settles_at == 0


# --- what is shown and written


def test_the_tables_hold_every_number():
    found = followed("gemma2")
    names = [table.name for table in member_tables(found)]
    assert len(set(names)) == len(names) == 6
    rows = layers_table(found).rows
    assert [row["depth"] for row in rows] == list(range(found.n_layers + 1))
    assert np.isnan(rows[0]["attention"])
    assert rows[1]["attention"] == pytest.approx(found.member.attention_by_layer[0])
    assert rows[-1]["norm"] == pytest.approx(found.member.norm[-1])
    roles = [row["role"] for row in slots_table(found).rows]
    assert roles == ["member", "sibling", "sibling", "member alone", "prompt slot"]
    assert len(heads_table(found).rows) == found.member.value_norm.size


def test_the_sentences_say_the_numbers_and_claim_nothing_beyond():
    found = followed("llama")
    said = " ".join(found.sentences())
    assert found.member.knocked is not None
    assert f"{found.member.knocked.every_layer_nats:.3g} nats" in said
    assert "one member is one case" in said
    assert "no interval" in said
    assert "Over the 4 layers that see it" in " ".join(followed("gemma2").sentences())
    assert "do not change its states" in said
    assert "Its siblings change its states" in " ".join(followed("llama", "visible").sentences())


def test_the_document_is_plain_json():
    found = followed("gemma3")
    read = json.loads(found.json(), parse_constant=pytest.fail)
    assert read["kind"] == "tempo-follow"
    assert read["member"]["slot"] == found.member.slot
    assert read["n_layers"] == len(read["member"]["knocked"]["one_layer_nats"])
    assert read["rank_correlations"]["member"] == pytest.approx(correlation(found.member))
    assert np.shape(read["member"]["attention"]) == found.member.attention.shape


def test_the_figure_has_four_panels_with_units_and_the_token():
    found = followed("llama")
    figure = member_figure(found)
    panels = figure.axes
    assert [axes.get_ylabel() for axes in panels] == [
        "mean weight",
        "L2 norm",
        "KL, nats",
        "KL of the readout, nats",
    ]
    assert "n = 1 member, 3 queries" in figure.get_suptitle()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert {"chance", "the member alone", "siblings", "odds law from alone"} <= set(labels)
    assert len(labels) == len(set(labels))
    assert "no band" in caption(found)


@pytest.mark.usefixtures("blank_figures")
def test_everything_is_written_and_never_over_something_else(tmp_path: Path):
    found, folder = followed("llama"), tmp_path / "member"
    paths = found.save(folder)
    assert all(path.is_file() for path in paths)
    assert (folder / "follow.json").read_text() == found.json()
    page = (folder / "report.html").read_text()
    assert "One member through the layers" in page
    assert "<svg" in page
    assert all(table.title in page for table in member_tables(found))
    with pytest.raises(OutputError, match="--force"):
        found.save(folder)
    found.save(folder, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="got other files"):
        found.save(tmp_path / "other", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="got a file"):
        found.save(tmp_path / "file")


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "two"
    result = with_tiny(
        "compare", "The cat sat", "A dog ran", *("--arms", "isolated,greedy"), *("--steps", 4),
        *("--threshold", 0.02), *("--eos", "ignore"), "--out", folder,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return folder


CHOSEN = ("--prompt", "p0001", "--arm", "isolated")


@pytest.mark.usefixtures("blank_figures")
def test_the_command_shows_and_writes_what_the_function_finds(run: Path, tmp_path: Path):
    folder = tmp_path / "out"
    result = call("follow", run, *CHOSEN, "--out", folder)
    assert result.exit_code == 0, result.stderr
    expected = follow(tempo.open_run(run).trace("p0001", "isolated"))
    assert (folder / "follow.json").read_text() == expected.json()
    for line in ("member alone", "prompt slot", str(folder / "report.html")):
        assert line in result.stdout
    assert document(call("follow", run, *CHOSEN, "--json")) == json.loads(expected.json())
    assert "got one" in refusal(call("follow", run, *CHOSEN, "--out", folder))
    assert call("follow", run, *CHOSEN, "--out", folder, "--force").exit_code == 0


def test_the_command_takes_a_slot_and_a_model(run: Path):
    trace = tempo.open_run(run).trace("p0000", "isolated")
    slot = follow(trace).member.slot
    asked = call(
        *("follow", run, "--prompt", "p0000", "--arm", "isolated", "--slot", slot, "--json"),
        *("--model", model_folder()),
    )
    found = document(asked)
    assert found["chosen"] == ASKED
    assert found["member"]["slot"] == slot


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "expected one prompt, got 2 (p0000, p0001); give --prompt"),
        (("--prompt", "p0000"), "give --arm"),
        (("--prompt", "p7", "--arm", "isolated"), "got 'p7'"),
        (("--prompt", "p0000", "--arm", "visible"), "'visible'"),
        ((*CHOSEN, "--slot", 0), "which is of the prompt"),
        (("--prompt", "p0001", "--arm", "greedy"), "expected a set of two or more"),
        ((*CHOSEN, "--model", "no-such-model"), "no-such-model"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(run: Path, arguments: tuple, line: str):
    assert line in refusal(call("follow", run, *arguments))


def test_the_command_refuses_a_folder_without_a_run(tmp_path: Path):
    assert str(tmp_path) in refusal(call("follow", tmp_path))


# --- the real model


@pytest.mark.slow
def test_on_the_real_model_the_exact_answers_hold_too():
    model = real_model()
    trace = tempo.generate(model, "Once upon a time there was a", policy="isolated", steps=6)[0]
    found = follow(trace, model=model, siblings=False)
    assert found.own_change.max() < 1e-3
    assert found.lens_error < 1e-2
    np.testing.assert_allclose(found.odds_law[:, 0], found.member.attention[:, 0], atol=1e-5)
    assert found.member.knocked is not None
    assert (found.member.knocked.one_layer_nats > 0).all()
    policy = Policy(forced(trace.slots), prune=Kill(((found.step, found.member.slot),)))
    ids = trace.slots.token[: trace.slots.n_prompt].tolist()
    readouts = [
        run_one(model, rules, prompt=ids, steps=found.later[0])
        .outcomes[found.later[0]]
        .decoding.readout.log_probability
        for rules in (replace(policy, prune=Kill(())), policy)
    ]
    killed = lens_divergence(readouts[0][None], readouts[1][None])[0]
    assert found.member.knocked.every_layer_nats == pytest.approx(killed, rel=1e-3)


def test_members_that_take_whole_rows_alone_share_them():
    alone = np.ones((5, 1, 1, 1), np.float32)
    np.testing.assert_allclose(odds_law(alone).ravel(), 1 / 5, rtol=1e-6)
