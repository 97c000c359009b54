"""Plain forwards with their rows, against transformers' own and against the weights."""

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tempo.causal.eager_rows import QUANTITIES, EagerRows, eager_rows
from tempo.errors import InputError, ModelError
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.projections import output_projections
from tempo.testing.tiny import FAMILIES, tiny_model
from tests.decoding import model_of, random_prompt, real_model

T = 20
ALL = QUANTITIES


def ids_of(model: LanguageModel, n: int = 3, length: int = T) -> np.ndarray:
    return np.array([random_prompt(model, length, seed) for seed in range(n)])


def rows_of(model: LanguageModel, *keep: str, n: int = 3) -> list[EagerRows]:
    return list(eager_rows(model, ids_of(model, n), keep=keep))


def eager(model: LanguageModel, ids: np.ndarray) -> Any:
    with torch.inference_mode(), attention_as(model.hf, "eager"):
        return model.hf(torch.from_numpy(ids), output_attentions=True, output_hidden_states=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_the_models_own_eager_attention_bit_for_bit(family: str):
    model = model_of(family)
    expected = eager(model, ids_of(model))
    for number, one in enumerate(rows_of(model)):
        own = np.stack([layer[number].numpy() for layer in expected.attentions])
        assert np.array_equal(one.weights, own)
        assert one.tokens.tolist() == ids_of(model)[number].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_times_values_through_the_projection_are_what_the_module_writes(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    model = model_of(family)
    code: Any = sys.modules[type(model.hf).__module__]
    own, values, written = code.eager_attention_forward, {}, {}

    def watched(module: Any, query: Any, key: Any, value: torch.Tensor, *args: Any, **options: Any):
        values[module.layer_idx] = value[0]
        return own(module, query, key, value, *args, **options)

    monkeypatch.setattr(code, "eager_attention_forward", watched)
    linears = output_projections(model, range(model.n_layers))
    hooks = [
        linear.register_forward_hook(partial(_note, written, layer))
        for layer, linear in linears.items()
    ]
    one = next(eager_rows(model, ids_of(model), batch=1, keep=("head_outputs", "value_norm")))
    for hook in hooks:
        hook.remove()
    for layer, linear in linears.items():
        read = values[layer].repeat_interleave(model.n_heads // model.n_kv_heads, 0)
        given = (torch.from_numpy(one.weights[layer]) @ read).transpose(0, 1)
        np.testing.assert_allclose(one.head_outputs[layer], given, atol=1e-5)
        again = linear(given.flatten(1)).detach()
        torch.testing.assert_close(again, written[layer], atol=1e-5, rtol=1e-5)
        slices = linear.weight.detach().reshape(-1, model.n_heads, model.head_dim)
        norms = torch.einsum("mhc,hsc->hsm", slices, read).norm(dim=-1)
        np.testing.assert_allclose(one.value_norm[layer], norms, rtol=1e-3, atol=1e-6)


def _note(into: dict[int, torch.Tensor], layer: int, _: Any, __: Any, out: torch.Tensor) -> None:
    into[layer] = out[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_final_states_and_the_stream_are_transformers_own(family: str):
    model = model_of(family)
    ids = ids_of(model)
    expected = eager(model, ids)
    for number, one in enumerate(rows_of(model, *ALL)):
        logs = expected.logits[number].log_softmax(-1)
        lost = -logs[torch.arange(T - 1), torch.from_numpy(ids[number, 1:])]
        np.testing.assert_allclose(one.predictions.nll, lost, atol=1e-5)
        assert one.predictions.best.tolist() == logs.argmax(-1).tolist()
        hidden = [state[number] for state in expected.hidden_states]
        np.testing.assert_allclose(one.final, hidden[-1], atol=1e-6)
        stream = one.activations
        assert stream.norm.shape == (model.n_layers + 1, T)
        for depth, state in enumerate(hidden[:-1]):  # the last one is behind the final norm
            np.testing.assert_allclose(stream.norm[depth], state.norm(dim=-1), rtol=1e-5)
            largest = state[stream.token[depth], stream.channel[depth]].abs()
            assert stream.largest[depth] == largest == state.abs().max()
            assert stream.median[depth] == state.abs().median()


def test_final_states_do_not_depend_on_what_else_is_asked():
    model = model_of("gemma2")
    alone = rows_of(model, "final")
    for one, other in zip(alone, rows_of(model, *ALL), strict=True):
        np.testing.assert_allclose(one.final, other.final, atol=1e-6)
        assert np.array_equal(one.weights, other.weights)


def test_what_was_not_asked_for_is_absent():
    (one,) = rows_of(model_of("llama"), n=1)
    absent = (
        one.head_outputs,
        one.value_norm,
        one.activations,
        one.final,
        one.predictions,
        one.visible,
    )
    assert absent == (None,) * 6


def test_batches_give_what_single_sequences_give_in_the_order_given():
    model = model_of("llama")
    sequences = [np.array(random_prompt(model, n, n)) for n in (5, 5, 9, 9, 9, 5)]
    together = list(eager_rows(model, sequences, batch=2, keep=ALL))
    for one, ids in zip(together, sequences, strict=True):
        (alone,) = eager_rows(model, [ids], keep=ALL)
        assert one.tokens.tolist() == ids.tolist()
        np.testing.assert_allclose(one.weights, alone.weights, atol=1e-6)
        np.testing.assert_allclose(one.predictions.nll, alone.predictions.nll, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "gpt_oss"])
def test_windows_show_in_what_a_row_may_see(family: str):
    model = model_of(family)
    (one,) = rows_of(model, n=1)
    gap = np.arange(T)[:, None] - np.arange(T)
    for layer, window in enumerate(model.windows):
        expected = (gap >= 0) & (gap < (window or T))
        assert np.array_equal(one.visible[layer], expected)
        assert (one.weights[layer][:, ~expected] == 0).all()
    assert rows_of(model_of("llama"), n=1)[0].visible is None


# --- heads and groups


def with_kv_heads(model: LanguageModel, order: list[int]) -> LanguageModel:
    """A copy whose KV heads are those numbered; more of them make fewer query heads share one."""
    other = tiny_model("llama", num_key_value_heads=len(order))
    state = model.hf.state_dict()
    for name, weight in state.items():
        if "k_proj" in name or "v_proj" in name:
            parts = weight.reshape(model.n_kv_heads, model.head_dim, -1)
            state[name] = parts[order].flatten(0, 1)
    other.hf.load_state_dict(state)
    return other


def test_a_model_with_duplicated_kv_heads_has_identical_rows():
    model = model_of("llama")
    copy = with_kv_heads(model, [0, 0, 1, 1])
    assert (model.n_kv_heads, copy.n_kv_heads) == (2, 4)
    for one, other in zip(rows_of(model, *ALL), rows_of(copy, *ALL), strict=True):
        assert np.array_equal(one.weights, other.weights)
        np.testing.assert_allclose(one.head_outputs, other.head_outputs, atol=1e-6)
        np.testing.assert_allclose(one.value_norm, other.value_norm, rtol=1e-5)
        np.testing.assert_allclose(one.predictions.nll, other.predictions.nll, atol=1e-5)


def test_permuting_kv_heads_permutes_the_groups_of_the_first_layer():
    model = model_of("llama")
    swapped = with_kv_heads(model, [1, 0])
    state = swapped.hf.state_dict()
    heads = [2, 3, 0, 1]
    for name, weight in state.items():
        if "q_proj" in name:
            state[name] = weight.reshape(4, model.head_dim, -1)[heads].flatten(0, 1)
        if "o_proj" in name:
            state[name] = weight.reshape(-1, 4, model.head_dim)[:, heads].flatten(1)
    swapped.hf.load_state_dict(state)
    for one, other in zip(rows_of(model, *ALL), rows_of(swapped, *ALL), strict=True):
        np.testing.assert_allclose(one.weights[:, heads], other.weights, atol=1e-5)
        np.testing.assert_allclose(one.head_outputs[:, :, heads], other.head_outputs, atol=1e-5)
        np.testing.assert_allclose(one.value_norm[:, heads], other.value_norm, rtol=1e-4)


# --- what it leaves behind, and what it refuses


def test_the_model_is_as_before_between_two_sequences_and_after_an_error():
    model = tiny_model("llama")
    before = model.hf.config._attn_implementation
    rows = eager_rows(model, ids_of(model), batch=1, keep=ALL)
    next(rows)
    assert model.hf.config._attn_implementation == before
    rows.close()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.hf.model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        next(eager_rows(model, ids_of(model), keep=ALL))
    hook.remove()
    assert model.hf.config._attn_implementation == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules()
    )


def test_a_gate_before_the_projection_is_refused():
    model = tiny_model("llama")
    model.hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda _, args: (args[0] * 0.5,)
    )
    with pytest.raises(ModelError, match="reads its heads as they are, got other inputs in layer"):
        rows_of(model, "value_norm")


def test_half_precision_gives_float32_rows():
    (one,) = rows_of(model_of("llama", "bfloat16"), *ALL, n=1)
    assert one.weights.dtype == one.head_outputs.dtype == one.final.dtype == np.float32
    np.testing.assert_allclose(one.weights.sum(-1), 1, atol=0.02)


@pytest.mark.parametrize(
    ("sequences", "options", "says"),
    [
        ([], {}, "at least one sequence"),
        ([np.array([], np.int64)], {}, "at least one token"),
        ([np.array([5, 128])], {}, "from 0 to 127, got 5 to 128"),
        ([np.array([-1, 5])], {}, "from 0 to 127, got -1 to 5"),
        ([np.arange(600) % 100], {}, "at most 512 tokens, got 600"),
        ([np.array([5])], {"keep": ("keys",)}, "got keys; choose"),
        ([np.array([5])], {"batch": 0}, "a batch of at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(sequences: Any, options: Any, says: str):
    with pytest.raises(InputError, match=says):
        eager_rows(model_of("llama"), sequences, **options)


@pytest.mark.slow
def test_rows_of_the_real_model_are_its_own():
    model = real_model()
    ids = ids_of(model, n=1)
    own = eager(model, ids)
    (one,) = eager_rows(model, ids)
    assert np.array_equal(one.weights, np.concatenate([layer.numpy() for layer in own.attentions]))
