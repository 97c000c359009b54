"""Exported weights, against what the modules themselves compute."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

from tempo.errors import InputError, ModelError
from tempo.models.circuit_weights import CircuitWeights, kv_head
from tempo.models.head_weights import circuit_weights, processed_embedding
from tempo.models.language_model import LanguageModel, attention_as
from tempo.testing.tiny import FAMILIES, tiny_model
from tests.decoding import model_of, plain_forward, real_model

TOKEN = 17


class Seen:
    """What each layer of a one-token forward was given and what it computed, by hooks.

    At position 0 RoPE turns nothing, though some types scale.
    """

    def __init__(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = model
        self.heads: dict[int, tuple[torch.Tensor, ...]] = {}
        self.streams: dict[int, torch.Tensor] = {}
        code: Any = sys.modules[type(model.hf).__module__]
        own = code.eager_attention_forward

        def watched(module: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any):
            self.heads[module.layer_idx] = tuple(part[0, :, 0] for part in (query, key, value))
            return own(module, query, key, value, *args, **options)

        monkeypatch.setattr(code, "eager_attention_forward", watched)
        decoder = model.hf.get_decoder()
        hooks = [
            layer.register_forward_pre_hook(self._noting(number))
            for number, layer in enumerate(decoder.layers)
        ]
        with torch.inference_mode(), attention_as(model.hf, "eager"):
            self.out = model.hf(torch.tensor([[TOKEN]]), output_hidden_states=True)
        for hook in hooks:
            hook.remove()

    def _noting(self, number: int) -> Any:
        def note(_: Any, args: Any) -> None:
            self.streams[number] = args[0][0, 0]

        return note


def recomputed(weights: CircuitWeights, layer: int, stream: np.ndarray) -> list[np.ndarray]:
    part = weights.layers[layer]
    read = stream if part.input_norm is None else part.input_norm.applied(stream)
    maps = ((part.query, part.query_bias), (part.key, part.key_bias), (part.value, part.value_bias))
    found = [weight @ read + (0 if bias is None else bias) for weight, bias in maps]
    return found if part.clip is None else [np.clip(one, -part.clip, part.clip) for one in found]


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_keys_and_values_follow_from_the_exported_weights(family: str, monkeypatch):
    model = model_of(family)
    weights = circuit_weights(model)
    seen = Seen(model, monkeypatch)
    decoder: Any = model.hf.get_decoder()
    rotary = decoder.rotary_emb
    for layer in range(model.n_layers):
        *inward, value = recomputed(weights, layer, seen.streams[layer].numpy())
        np.testing.assert_allclose(value, seen.heads[layer][2], atol=1e-5, rtol=1e-5)
        block = decoder.layers[layer]
        attention = block.attention if family == "gpt_neox" else block.self_attn
        scale = float(getattr(rotary, "attention_scaling", 1.0))
        for number, name in enumerate(("q_norm", "k_norm")):
            found = normed(getattr(attention, name, None), inward[number])
            np.testing.assert_allclose(
                found * scale, seen.heads[layer][number], atol=1e-5, rtol=1e-5
            )


def normed(module: Any, rows: np.ndarray) -> np.ndarray:
    """Queries or keys behind the family's own norm of them, over a head or over all."""
    if module is None:
        return rows
    whole = torch.from_numpy(rows)
    read = whole if module.weight.shape[-1] == rows.shape[-1] else whole.flatten()
    return module(read).detach().reshape(rows.shape).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lone_token_writes_what_the_exported_weights_say(family: str, monkeypatch):
    """One slot: every head's output is its value, times what a learned sink leaves."""
    model = model_of(family)
    weights = circuit_weights(model)
    seen = Seen(model, monkeypatch)
    paid = plain_forward(model, [TOKEN], attention=True).attentions
    for layer, part in enumerate(weights.layers):
        _, _, values = recomputed(weights, layer, seen.streams[layer].numpy())
        wrote = np.zeros(part.out.shape[1]) if part.out_bias is None else part.out_bias.copy()
        for head in range(weights.n_heads):
            value = values[kv_head(head, weights.n_heads, weights.n_kv_heads)]
            wrote = wrote + paid[layer][0, head, 0, 0].item() * (part.out[head] @ value)
        if part.branch_norm is not None:
            wrote = part.branch_norm.applied(wrote)
        actual = _attention_branch(model, layer)
        np.testing.assert_allclose(wrote, actual, atol=1e-5, rtol=1e-4)


def _attention_branch(model: LanguageModel, layer: int) -> np.ndarray:
    """What the stream gains by a layer whose MLP adds nothing."""
    decoder: Any = model.hf.get_decoder()
    block = decoder.layers[layer]
    noted: dict[str, torch.Tensor] = {}

    def silent(_: Any, __: Any, out: Any) -> Any:
        zero = torch.zeros_like(out[0] if isinstance(out, tuple) else out)
        return (zero, *out[1:]) if isinstance(out, tuple) else zero

    hooks = [
        block.mlp.register_forward_hook(silent),
        block.register_forward_pre_hook(lambda _, args: noted.__setitem__("in", args[0])),
        block.register_forward_hook(lambda _, __, out: noted.__setitem__("out", out)),
    ]
    plain_forward(model, [TOKEN])
    for hook in hooks:
        hook.remove()
    out = noted["out"][0] if isinstance(noted["out"], tuple) else noted["out"]
    return (out - noted["in"])[0, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_ends_are_the_models(family: str, monkeypatch):
    model = model_of(family)
    weights = circuit_weights(model)
    seen = Seen(model, monkeypatch)
    np.testing.assert_allclose(weights.embedding[TOKEN], seen.streams[0], rtol=1e-6)
    decoder: Any = model.hf.get_decoder()
    stream = []
    hook = decoder.layers[-1].register_forward_hook(lambda _, __, out: stream.append(out))
    logits = plain_forward(model, [TOKEN]).logits[0, 0].numpy()
    hook.remove()
    last = (stream[0][0] if isinstance(stream[0], tuple) else stream[0])[0, 0].numpy()
    found = weights.unembedding @ weights.final_norm.applied(last)
    if weights.softcap is not None:
        found = weights.softcap * np.tanh(found / weights.softcap)
    np.testing.assert_allclose(found, logits, atol=1e-4)


def test_families_differ_where_they_are_known_to():
    made = {family: circuit_weights(model_of(family)) for family in FAMILIES}
    assert {name for name, one in made.items() if one.final_norm.kind == "layer"} == {
        "olmo",
        "gpt_neox",
    }
    assert {name for name, one in made.items() if one.is_parallel} == {"gpt_neox"}
    assert {name for name, one in made.items() if one.layers[0].branch_norm is not None} == {
        "gemma2",
        "gemma3",
        "olmo2",
    }
    assert {name for name, one in made.items() if one.layers[0].input_norm is None} == {"olmo2"}
    assert {name for name, one in made.items() if one.layers[0].normalises} == {
        "gemma3",
        "olmo2",
        "qwen3",
    }
    assert {name for name, one in made.items() if one.softcap} == {"gemma2"}
    assert made["olmo"].left_out() == ("clipping of values",)
    assert made["llama"].left_out() == ()
    assert "biases" in made["gpt_oss"].left_out()


def test_a_norms_epsilon_is_found_where_it_is_not_declared():
    olmo = circuit_weights(model_of("olmo")).final_norm
    assert olmo.eps == pytest.approx(1e-5, rel=1e-3)
    assert np.allclose(olmo.gain, 1, atol=1e-6)
    assert olmo.shift is None


def test_gemmas_gain_is_one_plus_what_it_stores():
    model = model_of("gemma2")
    stored = model.hf.get_decoder().norm.weight.detach().numpy()
    np.testing.assert_allclose(circuit_weights(model).final_norm.gain, 1 + stored, rtol=1e-5)


def test_tied_weights_are_known_to_be():
    assert circuit_weights(tiny_model("llama", tie_word_embeddings=True)).is_tied
    assert not circuit_weights(model_of("llama")).is_tied


def test_the_arrays_cannot_be_written_and_show_the_models_memory():
    model = tiny_model("llama")
    weights = circuit_weights(model)
    for array in (weights.embedding, weights.layers[0].query, weights.layers[1].out):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    model.hf.model.layers[0].self_attn.q_proj.weight.data[0, 0] = 7.0
    assert weights.layers[0].query[0, 0, 0] == 7.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processed_embedding_is_what_the_first_mlp_adds_alone(family: str):
    model = model_of(family)
    before = n_hooks(model)
    found = processed_embedding(model, [TOKEN, 40, 99])
    assert n_hooks(model) == before
    block: Any = model.hf.get_decoder().layers[0]
    stream = torch.from_numpy(np.array(found.embedding))
    if family == "olmo2":
        mlp = block.post_feedforward_layernorm(block.mlp(stream))
    elif family.startswith("gemma"):
        read = block.pre_feedforward_layernorm(stream)
        mlp = block.post_feedforward_layernorm(block.mlp(read))
    else:
        mlp = block.mlp(block.post_attention_layernorm(stream)[None])
        mlp = (mlp[0] if isinstance(mlp, tuple) else mlp)[0]
    np.testing.assert_allclose(found.mlp, mlp.detach(), atol=1e-5, rtol=1e-4)
    assert found.tokens == (TOKEN, 40, 99)


def n_hooks(model: LanguageModel) -> int:
    """Transformers leaves some of its own."""
    modules = model.hf.modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def test_no_tokens_cannot_be_embedded():
    with pytest.raises(InputError, match="at least one token"):
        processed_embedding(model_of("llama"), [])


@pytest.mark.parametrize(
    ("n_heads", "n_kv", "expected"),
    [(4, 4, [0, 1, 2, 3]), (4, 2, [0, 0, 1, 1]), (6, 2, [0, 0, 0, 1, 1, 1]), (3, 1, [0, 0, 0])],
)
def test_neighbouring_query_heads_share_a_kv_head(n_heads, n_kv, expected):
    assert [kv_head(head, n_heads, n_kv) for head in range(n_heads)] == expected


@pytest.mark.parametrize(("head", "n_heads", "n_kv"), [(4, 4, 2), (-1, 4, 2), (0, 4, 3)])
def test_a_head_that_is_not_there_is_refused(head, n_heads, n_kv):
    with pytest.raises(InputError, match=f"from 0 to 3 in {n_kv} even groups, got {head}"):
        kv_head(head, n_heads, n_kv)


def test_an_unknown_family_is_refused_by_name():
    model = tiny_model("llama")
    model.hf.config.model_type = "granite"
    with pytest.raises(ModelError, match=r"got granite; leave out the roles"):
        circuit_weights(model)


def test_projections_that_are_not_plain_are_refused_by_name():
    model = tiny_model("llama")

    class Adapted(torch.nn.Linear):
        pass

    model.hf.model.layers[1].self_attn.v_proj = Adapted(64, 32, bias=False)
    with pytest.raises(ModelError, match="got those of LlamaAttention in llama"):
        circuit_weights(model)


@pytest.mark.slow
def test_the_real_models_weights_are_shared_not_copied():
    weights = circuit_weights(real_model())
    assert (weights.n_heads, weights.n_kv_heads, len(weights.layers)) == (9, 3, 30)
    assert weights.is_tied
    assert np.shares_memory(weights.embedding, weights.unembedding)
