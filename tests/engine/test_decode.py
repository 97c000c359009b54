"""What decoding leaves behind, and how it ends."""

import copy

import numpy as np
import pytest
import torch

from tempo import policies
from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.decode import PREFILL_ROWS, decode
from tempo.engine.state import DecodeContext, SequencePlan
from tempo.errors import ModelError, NumericalError
from tempo.models.language_model import attention_as
from tempo.policy.presets import Policy
from tempo.policy.selection import Forced, TopK
from tempo.testing.tiny import tiny_model
from tests.decoding import (
    assert_same_logits,
    model_of,
    plain_forward,
    random_prompt,
    run_one,
    run_plans,
)


def plan_for(
    model, *, steps: int = 4, policy=None, eos: str = "ignore", length: int = 9
) -> SequencePlan:
    return SequencePlan(
        "p0000", "arm", random_prompt(model, length), policy or policies.visible(0.08), steps, eos
    )


def test_the_models_own_attention_comes_back() -> None:
    model = model_of("llama")
    before = model.hf.config._attn_implementation
    decode(DecodeContext(model), [plan_for(model)])
    assert model.hf.config._attn_implementation == before != PACKED_ATTENTION


def test_the_models_own_attention_comes_back_after_an_exception() -> None:
    model = model_of("llama")
    before = model.hf.config._attn_implementation

    def fail(_: object) -> None:
        raise RuntimeError("mid-run")

    with pytest.raises(RuntimeError, match="mid-run"):
        decode(DecodeContext(model, on_step=fail), [plan_for(model)])
    assert model.hf.config._attn_implementation == before


def test_two_models_that_share_one_config_both_stay_usable() -> None:
    one = tiny_model("llama")
    other = tiny_model("llama", seed=1)
    other.hf.config = one.hf.config
    for module in other.hf.modules():
        if hasattr(module, "config"):
            module.config = one.hf.config
    ids = torch.tensor([list(random_prompt(one, 9))])
    with torch.inference_mode():
        before = other.hf(ids).logits
        decode(DecodeContext(one), [plan_for(one)])
        assert torch.equal(other.hf(ids).logits, before)
    assert run_one(other, policies.greedy(), steps=2).table.n_steps == 2


def test_weights_and_buffers_are_left_as_they_were() -> None:
    model = tiny_model("llama")
    before = copy.deepcopy(model.hf.state_dict())
    buffers = {name: value.clone() for name, value in model.hf.named_buffers()}
    hooks = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()
    )
    decode(DecodeContext(model), [plan_for(model)])
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in model.hf.named_buffers())
    after = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()
    )
    assert after == hooks


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt_oss"])
def test_a_prompt_longer_than_a_chunk_is_read_whole(family: str) -> None:
    n = PREFILL_ROWS + 70
    model = tiny_model(family, max_position_embeddings=2 * n)
    long, short = random_prompt(model, n), random_prompt(model, 5, seed=1)
    plans = [
        SequencePlan(f"p{i}", "a", ids, policies.greedy(), 2, "ignore")
        for i, ids in enumerate((short, long, short[:3]))
    ]
    decoded = run_plans(model, plans)[1]
    plain = plain_forward(model, decoded.table.token.tolist(), attention=True)
    assert_same_logits(decoded.logits(0)[-1], plain.logits[0, n - 1])
    assert_same_logits(decoded.logits(2)[-1], plain.logits[0, -1])
    np.testing.assert_allclose(
        decoded.weights(0), torch.cat(plain.attentions)[..., :n, :n], atol=1e-5
    )


def test_an_end_of_sequence_on_top_is_fed_and_ends_the_sequence() -> None:
    model = tiny_model("llama")
    free = run_one(model, policies.greedy(), steps=3)
    end = int(free.table.token[free.table.members(2)[0]])
    model.hf.generation_config.eos_token_id = end
    plan = SequencePlan("p0", "arm", free.decoding.plan.token_ids, policies.isolated(0.01), 6)
    stopped = run_plans(model, [SequencePlan("p0", "arm", plan.token_ids, policies.greedy(), 6)])[0]
    assert stopped.decoding.stopped == "eos"
    assert stopped.table.token[-1] == end
    assert stopped.table.n_steps <= 2
    ignoring = run_plans(
        model, [SequencePlan("p0", "arm", plan.token_ids, policies.greedy(), 6, "ignore")]
    )[0]
    assert ignoring.decoding.stopped == "steps"
    assert end not in ignoring.table.token[9:]


def test_forced_sets_end_the_sequence_when_they_are_used_up() -> None:
    model = model_of("llama")
    decoded = run_one(model, Policy(Forced(((20, 30), (40,)))), steps=6)
    assert decoded.decoding.stopped == "forced"
    assert decoded.table.token[11:].tolist() == [20, 30, 40]


def test_a_sequence_stops_before_the_context_runs_over() -> None:
    model = tiny_model("llama", max_position_embeddings=16)
    decoded = run_one(
        model, policies.unique(0.01, max_width=4), prompt=random_prompt(model, 9), steps=6
    )
    assert decoded.decoding.stopped == "context"
    assert decoded.table.position.max() < 16


def test_a_stopped_sequence_does_not_hold_up_or_change_the_others() -> None:
    model = model_of("llama")
    short = SequencePlan("p0", "a", random_prompt(model, 9), Policy(TopK(3)), 2, "ignore")
    long = SequencePlan("p1", "a", random_prompt(model, 4, 1), Policy(TopK(2)), 6, "ignore")
    together = run_plans(model, [short, long])
    alone = run_plans(model, [long])[0]
    assert [d.table.n_steps for d in together] == [2, 6]
    assert together[1].table.token.tolist() == alone.table.token.tolist()
    assert_same_logits(together[1].logits(6), alone.logits(6))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_name_the_prompt(bad: float) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.hf.lm_head.weight[17] = bad
    with pytest.raises(NumericalError, match="prompt p0000"):
        decode(DecodeContext(model), [plan_for(model)])


def test_the_last_readout_is_recorded_and_not_acted_on() -> None:
    decoded = run_one(model_of("llama"), policies.greedy(), steps=4)
    assert decoded.table.n_steps == 4
    best = [int(outcome.decoding.readout.token[0]) for outcome in decoded.outcomes]
    assert decoded.table.token[11:].tolist() == best[:4]


def test_every_run_is_guarded_at_its_first_step(monkeypatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(
        type(model.hf.model),
        "forward",
        _with_positions_one_off(type(model.hf.model).forward),
    )
    with pytest.raises(ModelError, match="expected RoPE to get positions 9"):
        decode(DecodeContext(model), [plan_for(model)])


def _with_positions_one_off(forward):
    def moved(self, *args, position_ids, **kwargs):
        return forward(self, *args, position_ids=position_ids + 1, **kwargs)

    return moved


def test_a_layer_that_attends_twice_is_refused(monkeypatch) -> None:
    model = tiny_model("llama")
    layer = type(model.hf.model.layers[0].self_attn)
    forward = layer.forward

    def twice(self, *args, **kwargs):
        forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", twice)
    with pytest.raises(ModelError, match="attends once in each layer"):
        decode(DecodeContext(model), [plan_for(model)])


def test_a_decoder_that_keeps_keywords_to_itself_is_refused(monkeypatch) -> None:
    model = tiny_model("llama")
    layer = type(model.hf.model.layers[0])
    forward = layer.forward

    def deaf(self, hidden_states, tempo_forward=None, **kwargs):
        return forward(self, hidden_states, **kwargs)

    monkeypatch.setattr(layer, "forward", deaf)
    with pytest.raises(ModelError, match="hands its keywords on"):
        decode(DecodeContext(model), [plan_for(model)])


def test_a_window_that_no_layer_uses_is_no_window() -> None:
    model = tiny_model("llama", sliding_window=8)
    assert set(model.windows) == {None}
    assert run_one(model, policies.visible(0.08), steps=3).table.n_steps == 3


def test_settings_of_the_parts_of_a_model_come_back() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={
            **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64},
        },
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    hf = Gemma3ForConditionalGeneration(config)
    hf.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})

    def settings():
        return [part._attn_implementation for part in (config.text_config, config.vision_config)]

    before = settings()
    with attention_as(hf, "sdpa"):
        assert settings() == ["sdpa", "sdpa"]
    assert settings() == before == ["eager", "sdpa"]
