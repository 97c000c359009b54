"""Silent heads, resumed forwards and logits taken apart, against the plain definitions."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tempo.causal.attribution import direct_attribution
from tempo.causal.eager_rows import eager_rows
from tempo.causal.name_effects import direct_name_effects, inhibition_effect, name_movers
from tempo.causal.silence import ablated, delta_nll, kept_layer_outputs, mean_inputs, resumed
from tempo.errors import InputError, ModelError
from tempo.models.head_weights import circuit_weights
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.projections import output_projections
from tempo.prompts.names import NamePrompt, name_prompts
from tempo.prompts.sequences import bundled_corpus, text_windows
from tempo.prompts.tokens import token_facts
from tempo.testing.tiny import FAMILIES, tiny_model
from tests.decoding import model_of, random_prompt, real_model

T = 14


def ids_of(model: LanguageModel, n: int = 3, length: int = T) -> np.ndarray:
    return np.array([random_prompt(model, length, seed) for seed in range(n)])


def logits_of(model: LanguageModel, ids: np.ndarray) -> torch.Tensor:
    with torch.inference_mode(), attention_as(model.hf, "eager"):
        return model.hf(torch.from_numpy(ids)).logits


def loss_of(logits: torch.Tensor, ids: np.ndarray, counted: int = 1) -> np.ndarray:
    logs = logits.log_softmax(-1)[:, :-1]
    lost = -logs.gather(-1, torch.from_numpy(ids[:, 1:, None]))[..., 0]
    return lost[:, counted - 1 :].mean(-1).numpy()


def without_columns(model: LanguageModel, layer: int, head: int) -> LanguageModel:
    """A copy in which the head's columns of W_O are zero."""
    other = copy.deepcopy(model)
    weight = output_projections(other, (layer,))[layer].weight
    width = model.head_dim
    weight.data[:, head * width : (head + 1) * width] = 0
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_silencing_a_head_equals_deleting_its_columns_of_the_projection(family: str):
    model = model_of(family)
    ids = ids_of(model)
    untouched = logits_of(model, ids)
    for layer, head in ((0, 1), (1, 3)):
        with ablated(model, [(layer, head)]):
            silent = logits_of(model, ids)
        deleted = logits_of(without_columns(model, layer, head), ids)
        torch.testing.assert_close(silent, deleted, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(silent, untouched, atol=1e-3)
    assert torch.equal(logits_of(model, ids), untouched)


def test_heads_of_several_layers_are_silent_together():
    model = model_of("llama")
    ids = ids_of(model)
    with ablated(model, [(0, 1), (1, 3), (1, 0), (0, 1)]):
        silent = logits_of(model, ids)
    other = without_columns(without_columns(without_columns(model, 0, 1), 1, 3), 1, 0)
    torch.testing.assert_close(silent, logits_of(other, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "gpt_neox"])
def test_the_loss_is_that_of_whole_forwards(family: str):
    model = model_of(family)
    ids = ids_of(model, n=5)
    heads = [(layer, head) for layer in range(model.n_layers) for head in (0, 2)]
    found = delta_nll(model, ids, heads, batch=2)
    base = loss_of(logits_of(model, ids), ids)
    np.testing.assert_allclose(found.base, base, atol=1e-5)
    for number, head in enumerate(heads):
        with ablated(model, [head]):
            silent = loss_of(logits_of(model, ids), ids)
        np.testing.assert_allclose(found.delta[number], silent - base, atol=1e-5)
    assert (found.replacement, found.heads) == ("zero", tuple(heads))
    assert (abs(found.delta) > 1e-4).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_forward_is_the_whole_one_bit_for_bit(family: str):
    model = model_of(family)
    ids = ids_of(model)
    with torch.inference_mode(), kept_layer_outputs(model) as streams:
        whole = logits_of(model, ids)
    for layer in range(model.n_layers):
        with resumed(model, layer, streams):
            assert torch.equal(logits_of(model, ids), whole)


def test_layers_below_are_not_run_again():
    model = tiny_model("llama", num_hidden_layers=3)
    calls: list[int] = []
    for number, layer in enumerate(model.hf.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: calls.append(number))
    delta_nll(model, ids_of(model), [(2, 0), (1, 1)])
    assert calls == [0, 1, 2, 2, 1, 2]


def test_sequences_of_several_lengths_keep_their_order():
    model = model_of("llama")
    sequences = [np.array(random_prompt(model, n, n)) for n in (5, 9, 9, 5)]
    together = delta_nll(model, sequences, [(1, 1)])
    alone = [delta_nll(model, [ids], [(1, 1)]).delta[0, 0] for ids in sequences]
    np.testing.assert_allclose(together.delta[0], alone, atol=1e-5)


def test_only_counted_tokens_count():
    model = model_of("llama")
    ids = ids_of(model)
    found = delta_nll(model, ids, [(0, 0)], counted=8)
    np.testing.assert_allclose(found.base, loss_of(logits_of(model, ids), ids, 8), atol=1e-5)


def test_a_head_held_at_its_mean_gives_the_mean():
    model = model_of("llama")
    ids = ids_of(model)
    rows = list(eager_rows(model, ids, keep=("head_outputs",)))
    means = mean_inputs(model, ids, batch=2)
    expected = np.mean([one.head_outputs.mean(1) for one in rows], axis=0)
    np.testing.assert_allclose(means, expected, atol=1e-6)
    with ablated(model, [(1, 2)], means=means):
        held = list(eager_rows(model, ids, keep=("final",)))
    other = copy.deepcopy(model)
    linear = output_projections(other, (1,))[1]
    columns = slice(2 * model.head_dim, 3 * model.head_dim)
    linear.bias = torch.nn.Parameter(linear.weight.data[:, columns] @ torch.from_numpy(means[1, 2]))
    linear.weight.data[:, columns] = 0
    for one, expected in zip(held, eager_rows(other, ids, keep=("final",)), strict=True):
        np.testing.assert_allclose(one.final, expected.final, atol=1e-5)
    assert delta_nll(model, ids, [(1, 2)], means=means).replacement == "mean"


def test_a_constant_head_costs_nothing_at_its_mean():
    model = tiny_model("llama")
    for projection in ("k_proj", "q_proj"):
        getattr(model.hf.model.layers[0].self_attn, projection).weight.data.zero_()
    ids = np.repeat(ids_of(model, n=1)[:, :1], T, axis=1)  # one token again and again
    found = delta_nll(model, ids, [(0, 1)], means=mean_inputs(model, ids))
    np.testing.assert_allclose(found.delta, 0, atol=1e-5)
    assert abs(delta_nll(model, ids, [(0, 1)]).delta).max() > 1e-3


def test_nothing_is_left_behind_by_an_error():
    model = tiny_model("llama")
    before = model.hf.config._attn_implementation
    block = model.hf.model.layers[1]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = block.mlp.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        delta_nll(model, ids_of(model), [(1, 0)])
    hook.remove()
    modules = list(model.hf.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert not any("forward" in vars(module) for module in modules)
    assert model.hf.config._attn_implementation == before


@pytest.mark.parametrize(
    ("heads", "counted", "says"),
    [
        ([(2, 0)], 1, "from L0H0 to L1H3, got L2H0"),
        ([(0, 4)], 1, "got L0H4"),
        ([(-1, 0)], 1, "got L-1H0"),
        ([], 1, "got 0 heads and 1"),
        ([(0, 0)], T, "from 1 to 13, got 1 heads and 14"),
        ([(0, 0)], 0, "got 1 heads and 0"),
    ],
)
def test_bad_heads_and_counts_are_refused(heads: Any, counted: int, says: str):
    model = model_of("llama")
    with pytest.raises(InputError, match=says):
        delta_nll(model, ids_of(model), heads, counted=counted)


# --- direct logit attribution


def uncapped(model: LanguageModel, ids: np.ndarray) -> torch.Tensor:
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits_of(model, ids[None])[0].double()
    return logits if cap is None else cap * torch.atanh(logits / cap)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_the_logit(family: str):
    model = model_of(family)
    ids = ids_of(model)[0]
    logits = uncapped(model, ids)
    for token, against, position in ((40, None, -1), (40, 77, -1), (77, None, 3)):
        found = direct_attribution(model, ids, token=token, against=against, position=position)
        expected = logits[position, token] - (0 if against is None else logits[position, against])
        assert found.logit == pytest.approx(float(expected), abs=1e-3)
        assert found.total == pytest.approx(found.logit, abs=1e-3)
        assert found.heads.shape == (model.n_layers, model.n_heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_silent_heads_have_no_part_and_biases_only_where_there_are_any(family: str):
    model = model_of(family)
    ids = ids_of(model)[0]
    found = direct_attribution(model, ids, token=40)
    assert (found.biases[-1] != 0) == (output_projections(model, (1,))[1].bias is not None)
    assert np.abs(found.heads).min() > 0
    last = model.n_layers - 1
    with ablated(model, [(last, head) for head in range(model.n_heads)]):
        silent = direct_attribution(model, ids, token=40)
    np.testing.assert_allclose(silent.heads[last], 0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mlps_part_is_what_the_mlp_branch_adds(family: str):
    model = model_of(family)
    ids = ids_of(model)[0]
    layer = model.n_layers - 1
    block: Any = model.hf.get_decoder().layers[layer]
    source = getattr(block, "post_feedforward_layernorm", None) or block.mlp
    added: list[torch.Tensor] = []
    hook = source.register_forward_hook(
        lambda _, __, out: added.append(out[0] if isinstance(out, tuple) else out)
    )
    stream: list[torch.Tensor] = []
    final = model.hf.get_decoder()
    norm = final.norm if hasattr(final, "norm") else final.final_layer_norm
    hooks = [hook, norm.register_forward_pre_hook(lambda _, args: stream.append(args[0]))]
    found = direct_attribution(model, ids, token=40)
    for one in hooks:
        one.remove()
    last, mlp = stream[0][0, -1].double(), added[0].reshape(-1, 64)[-1].double()
    exported = circuit_weights(model).final_norm
    if exported.kind == "layer":
        last, mlp = last - last.mean(), mlp - mlp.mean()
    size = (last.square().mean() + exported.eps).sqrt()
    row = exported.gain * model.hf.get_output_embeddings().weight[40].detach().numpy()
    assert found.mlps[layer] == pytest.approx(float(row @ (mlp / size).detach().numpy()), abs=1e-4)


def test_a_projection_or_a_head_that_does_something_else_is_refused():
    model = tiny_model("llama")
    ids = ids_of(model)[0]
    hook = model.hf.model.layers[1].self_attn.o_proj.register_forward_hook(
        lambda _, __, out: 2 * out
    )
    with pytest.raises(ModelError, match="add up to what layer 1 writes"):
        direct_attribution(model, ids, token=40)
    hook.remove()
    assert direct_attribution(model, ids, token=40).gap < 1e-4
    model.hf.lm_head.register_forward_hook(lambda _, __, out: 2 * out)
    with pytest.raises(ModelError, match="parts that add up to the logit"):
        direct_attribution(model, ids, token=40)


@pytest.mark.parametrize(
    "options", [{"token": 128}, {"token": 4, "against": -1}, {"token": 4, "position": T}]
)
def test_a_token_or_position_that_is_not_there_is_refused(options: Any):
    with pytest.raises(InputError, match="expected tokens below 128 and a position among 14"):
        direct_attribution(model_of("llama"), ids_of(model_of("llama"))[0], **options)


# --- S-inhibition by its effect


def made_up_prompts(model: LanguageModel) -> list[NamePrompt]:
    found = []
    for number, length in enumerate((9, 12, 9, 12, 9)):
        ids = np.array(random_prompt(model, length, number))
        ids[[2, 4, 6]] = [30 + number, 90, 90]
        found.append(NamePrompt(ids, "ABBA", 2, 4, 6, length - 1, 30 + number, 90, False, number))
    return found


def test_the_effect_is_that_of_whole_forwards_in_the_order_given():
    model = model_of("llama")
    prompts = made_up_prompts(model)
    heads, movers = [(0, 1), (1, 2)], [(1, 0), (0, 3)]
    found = inhibition_effect(model, prompts, heads, movers=movers, batch=2)

    def looked(prompt: NamePrompt) -> tuple[float, float]:
        last = logits_of(model, prompt.ids[None])[0, -1]
        (rows,) = eager_rows(model, [prompt.ids])
        paid = np.mean([rows.weights[layer, head, -1, prompt.io] for layer, head in movers])
        return float(last[prompt.io_token] - last[prompt.s_token]), float(paid)

    for number, prompt in enumerate(prompts):
        base = looked(prompt)
        assert found.base[number] == pytest.approx(base[0], abs=1e-4)
        assert found.io_attention[number] == pytest.approx(base[1], abs=1e-5)
        for place, head in enumerate(heads):
            with ablated(model, [head]):
                silent = looked(prompt)
            assert found.drop[place, number] == pytest.approx(base[0] - silent[0], abs=1e-4)
            assert found.io_drop[place, number] == pytest.approx(base[1] - silent[1], abs=1e-5)


def test_name_movers_look_at_the_indirect_object_and_write_most_towards_it():
    model = model_of("llama")
    prompts = made_up_prompts(model)
    effects = direct_name_effects(model, prompts).mean(0)
    looks = np.zeros(effects.shape, bool)
    for layer, head in np.ndindex(effects.shape):
        rows = [next(eager_rows(model, [each.ids])).weights[layer, head, -1] for each in prompts]
        io = np.mean([row[each.io] for row, each in zip(rows, prompts, strict=True)])
        s = np.mean([row[each.s] + row[each.s2] for row, each in zip(rows, prompts, strict=True)])
        looks[layer, head] = io > s
    found = name_movers(model, prompts, n=8)
    expected = np.argwhere(looks & (effects > 0))
    assert sorted(found) == [tuple(pair) for pair in expected.tolist()]
    assert found[0] == max(found, key=lambda head: effects[head])
    assert name_movers(model, prompts, n=1) == found[:1]


def test_a_model_without_a_name_mover_is_refused():
    model = tiny_model("llama")
    for layer in model.hf.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    with pytest.raises(ModelError, match="that looks at the indirect object and writes it"):
        name_movers(model, made_up_prompts(model))


def test_no_heads_no_movers_and_no_prompts_are_refused():
    model = model_of("llama")
    prompts = made_up_prompts(model)
    with pytest.raises(InputError, match="got 0 and 1"):
        inhibition_effect(model, prompts, [], movers=[(0, 0)])
    with pytest.raises(InputError, match="got 1 and 0"):
        inhibition_effect(model, prompts, [(0, 0)], movers=[])
    with pytest.raises(InputError, match="got 0 and 3"):
        name_movers(model, [])


@pytest.mark.slow
def test_the_real_model_prefers_the_indirect_object_and_its_movers_look_at_it():
    model = real_model()
    prompts = name_prompts(token_facts(model), n=12).prompts
    movers = name_movers(model, prompts[:4])
    found = inhibition_effect(model, prompts, movers[:1], movers=movers)
    assert (found.base > 0).mean() > 0.7
    assert found.io_attention.mean() > 0.05


@pytest.mark.slow
def test_a_silent_head_of_the_real_model_is_silent_at_the_projection():
    model = real_model()
    ids = text_windows(token_facts(model), bundled_corpus(), n=2, length=32).ids
    found = delta_nll(model, ids, [(0, 0), (29, 8)])
    assert np.isfinite(found.delta).all()
    assert found.base.min() > 0.5
