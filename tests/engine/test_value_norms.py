"""The norm of each slot's value through the output projection, against plain slow sums."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tempo
from tempo import open_trace, policies
from tempo.engine.capture import Capture
from tempo.engine.decode import PREFILL_ROWS
from tempo.engine.state import DecodeContext
from tempo.engine.value_norms import projections
from tempo.errors import InputError, LevelError, ModelError
from tempo.models.language_model import LanguageModel
from tempo.models.projections import head_slices, output_projections
from tempo.oracle import run_oracle
from tempo.run.budget import Demand, Shape, batches, memory_plan, trace_bytes
from tempo.testing.tiny import FAMILIES, tiny_model
from tempo.trace.trace import Trace
from tests.command_line import CAT, refusal, with_tiny
from tests.decoding import (
    Decoded,
    model_of,
    plain_forward,
    random_prompt,
    real_model,
    run_one,
)


def with_values(model: LanguageModel, level: str = "weights", **chosen: Any) -> Capture:
    everything = {
        "layers": tuple(range(model.n_layers)),
        "heads": tuple(range(model.n_heads)),
    }
    return Capture(level, **(everything | chosen), values=True)


def norms(decoded: Decoded) -> np.ndarray:
    """Of all slots of a decoding, [layer, head, slot]."""
    return np.concatenate([outcome.tensors["value_norm"] for outcome in decoded.outcomes], axis=2)


class Spy:
    """What the family's own eager attention got and gave, by layer.

    Attributes:
        values: As each query head reads them, [head, slot, channel], by the model's own map.
        given: What went into the output projection.
        written: What came out of it.
    """

    def __init__(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[int, torch.Tensor] = {}
        self.given: dict[int, torch.Tensor] = {}
        self.written: dict[int, torch.Tensor] = {}
        self.linears = output_projections(model, range(model.n_layers))
        self.hooks = [
            linear.register_forward_hook(partial(self._note, layer))
            for layer, linear in self.linears.items()
        ]
        code: Any = sys.modules[type(model.hf).__module__]
        eager = code.eager_attention_forward

        def watched(module: Any, query: Any, key: Any, value: torch.Tensor, *args: Any, **options):
            group = getattr(module, "num_key_value_groups", 1)
            read = value if group == 1 else code.repeat_kv(value, group)
            self.values[module.layer_idx] = read[0]
            return eager(module, query, key, value, *args, **options)

        monkeypatch.setattr(code, "eager_attention_forward", watched)

    def _note(self, layer: int, _: Any, args: Any, output: torch.Tensor) -> None:
        self.given[layer], self.written[layer] = args[0][0], output[0]

    def slow_norms(self) -> np.ndarray:
        """`|| W_O[:, slice of h] v ||` of every layer, head and slot, one at a time."""
        return np.stack([self._slow(layer) for layer in self.linears])

    def _slow(self, layer: int) -> np.ndarray:
        weight = self.linears[layer].weight.detach().double()
        values = self.values[layer].double()
        n_channels = values.shape[2]
        found = np.zeros(values.shape[:2])
        for head, of_head in enumerate(values):
            columns = weight[:, head * n_channels : (head + 1) * n_channels]
            for slot, value in enumerate(of_head):
                found[head, slot] = float((columns @ value).norm())
        return found


@pytest.fixture
def spied(monkeypatch) -> Any:
    spies: list[Spy] = []

    def spy_on(model: LanguageModel) -> Spy:
        spies.append(Spy(model, monkeypatch))
        return spies[-1]

    yield spy_on
    for hook in [hook for spy in spies for hook in spy.hooks]:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_values_through_each_heads_slice(
    family: str, spied: Callable[[LanguageModel], Spy]
) -> None:
    model = model_of(family)
    decoded = run_one(model, policies.visible(0.05), capture=with_values(model))
    spy = spied(model)
    run_oracle(model, decoded.table, decoded.decoding.plan.policy)
    assert norms(decoded).shape == (model.n_layers, model.n_heads, len(decoded.table))
    np.testing.assert_allclose(norms(decoded), spy.slow_norms(), rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lone_slot_reads_its_own_value(
    family: str, spied: Callable[[LanguageModel], Spy]
) -> None:
    """With one slot the projection's input is the value, times what a learned sink leaves."""
    model = model_of(family)
    prompt = random_prompt(model, 1)
    decoded = run_one(model, policies.greedy(), prompt=prompt, steps=1, capture=with_values(model))
    spy = spied(model)
    paid = torch.cat(plain_forward(model, prompt, attention=True).attentions)[..., 0, 0].numpy()
    for layer, linear in spy.linears.items():
        given = spy.given[layer][0].reshape(model.n_heads, model.head_dim)
        for head in range(model.n_heads):
            alone = torch.zeros_like(given)
            alone[head] = given[head]
            through = (linear.weight.detach() @ alone.flatten()).norm() / paid[layer, head]
            found = decoded.outcomes[0].tensors["value_norm"][layer, head, 0]
            np.testing.assert_allclose(found, through, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_weighted_values_through_the_slices_add_up_to_what_the_layer_writes(
    family: str, spied: Callable[[LanguageModel], Spy]
) -> None:
    model = model_of(family)
    decoded = run_one(model, policies.isolated(0.05), capture=with_values(model))
    spy, last = spied(model), decoded.table.n_steps
    run_oracle(model, decoded.table, decoded.decoding.plan.policy)
    for layer, linear in spy.linears.items():
        row = torch.from_numpy(decoded.weights(last)[layer, :, -1])
        slices = head_slices(linear.weight.detach(), model.n_heads)
        parts = torch.einsum("hs,hsc,hcm->hm", row, spy.values[layer], slices)
        bias = 0.0 if linear.bias is None else linear.bias.detach()
        np.testing.assert_allclose(parts.sum(0) + bias, spy.written[layer][-1], atol=1e-4)
        # a head writes no more than the norms that its weights pay for
        bound = (row.numpy() * norms(decoded)[layer]).sum(-1)
        assert (parts.norm(dim=-1).numpy() <= bound * 1.0001).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "gpt_neox"])
def test_values_change_neither_tokens_nor_logits_nor_rows(family: str, dtype: str) -> None:
    model = model_of(family, dtype)
    plain = run_one(model, policies.visible(0.05))
    kept = run_one(model, policies.visible(0.05), capture=with_values(model))
    assert kept.table.token.tolist() == plain.table.token.tolist()
    for one, other in zip(kept.outcomes, plain.outcomes, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert one.tensors.keys() - other.tensors.keys() == {"value_norm"}
        assert np.array_equal(one.tensors["weights"], other.tensors["weights"])


def test_norms_are_float32_in_half_precision(spied: Callable[[LanguageModel], Spy]) -> None:
    model = model_of("llama", "bfloat16")
    decoded = run_one(model, policies.greedy(), capture=with_values(model))
    spy = spied(model)
    run_oracle(model, decoded.table, decoded.decoding.plan.policy)
    assert norms(decoded).dtype == np.float32
    np.testing.assert_allclose(norms(decoded)[0], spy.slow_norms()[0], rtol=0.02)


@pytest.mark.parametrize("level", ["weights", "qk", "reduced"])
def test_only_captured_layers_and_heads_are_kept_at_any_level(level: str) -> None:
    model = model_of("gemma2")
    whole = run_one(model, policies.tree(0.1), steps=3, capture=with_values(model))
    capture = with_values(model, level, layers=(1, 2), heads=(0, 3))
    some = run_one(model, policies.tree(0.1), steps=3, capture=capture)
    np.testing.assert_allclose(norms(some), norms(whole)[1:3][:, [0, 3]], rtol=1e-6)


def test_a_prompt_longer_than_a_chunk_has_all_its_norms(
    spied: Callable[[LanguageModel], Spy],
) -> None:
    n = PREFILL_ROWS + 40
    model = tiny_model("llama", max_position_embeddings=2 * n)
    prompt = random_prompt(model, n)
    decoded = run_one(model, policies.greedy(), prompt=prompt, steps=1, capture=with_values(model))
    spy = spied(model)
    plain_forward(model, prompt, attention=True)
    found = decoded.outcomes[0].tensors["value_norm"]
    assert found.shape == (2, 4, n)
    np.testing.assert_allclose(found, spy.slow_norms(), rtol=2e-4)


@pytest.mark.parametrize("keep", ["mask", "evict"])
def test_deaths_leave_the_norms_as_they_were_written(keep: str) -> None:
    model = model_of("llama")
    run = tempo.generate(
        model, CAT, steps=4, threshold=0.05, prune="attention-share:0.9", keep=keep, values=True
    )
    trace = run[0]
    assert (trace.slots.died_at_step >= 0).any()
    assert trace.value_norm(4).shape == (2, 4, len(trace.slots))
    assert (trace.value_norm(4) > 0).all()


def test_values_of_members_that_are_run_again_are_refused() -> None:
    with pytest.raises(InputError, match="writes keys and values anew, got values with"):
        tempo.generate(model_of("llama"), CAT, keep="recompute", values=True)


# --- in a trace


def kept(folder: Path, *arguments: object) -> Trace:
    result = with_tiny("generate", CAT, "--steps", 3, "--out", folder, *arguments)
    assert result.exit_code == 0, result.stderr
    return open_trace(folder)


def test_values_keeps_the_norms_on_disk(tmp_path: Path) -> None:
    trace = kept(tmp_path, "--values", "--heads", "1,2")
    run = tempo.generate(tiny_model("llama"), CAT, steps=3, heads="1,2", values=True)
    found = trace.value_norm(3)
    assert found.shape == (2, 2, trace.n_slots(3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, run[0].value_norm(3), rtol=1e-5)
    assert np.array_equal(trace.value_norm(1), found[..., : trace.n_slots(1)])


def test_a_trace_without_values_says_so(tmp_path: Path) -> None:
    trace = kept(tmp_path)
    assert not any(name.endswith("value_norm") for name in trace.tensors)
    with pytest.raises(LevelError, match="expected a trace with the norms of values"):
        trace.value_norm(1)


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_that_was_not_fed_has_no_norms(step: int) -> None:
    run = tempo.generate(model_of("llama"), CAT, steps=3, values=True)
    with pytest.raises(InputError, match="expected a step from 0 to 3"):
        run[0].value_norm(step)


# --- what cannot be measured is refused


class Quantised(nn.Linear):
    """Stands in for the linear layers of quantisers and adapters."""


def _subclass(linear: nn.Linear) -> nn.Module:
    return Quantised(linear.in_features, linear.out_features, bias=False)


def _narrow(linear: nn.Linear) -> nn.Module:
    return nn.Linear(linear.in_features // 2, linear.out_features, bias=False)


def _integers(linear: nn.Linear) -> nn.Module:
    odd = nn.Linear(linear.in_features, linear.out_features, bias=False)
    odd.weight = nn.Parameter(odd.weight.to(torch.int8), requires_grad=False)
    return odd


def _absent(linear: nn.Linear) -> nn.Module:
    return nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")


@pytest.mark.parametrize(
    ("replacement", "says"),
    [
        (_subclass, "got a Quantised in LlamaAttention"),
        (_narrow, "got a Linear in LlamaAttention of 32;"),
        (_integers, r"got a Linear in LlamaAttention \(torch.int8\)"),
        (_absent, "its weight not in memory"),
    ],
)
def test_a_projection_that_is_not_plain_is_refused(replacement: Any, says: str) -> None:
    model = tiny_model("llama")
    attention = model.hf.model.layers[1].self_attn
    attention.o_proj = replacement(attention.o_proj)
    with pytest.raises(ModelError, match=says):
        output_projections(model, (0, 1))
    assert list(output_projections(model, (0,))) == [0]


@pytest.mark.parametrize(("names", "says"), [((), "got 0 in Llama"), (("o_proj", "wo"), "got 2")])
def test_a_projection_that_cannot_be_told_is_refused(names: tuple[str, ...], says: str) -> None:
    model = tiny_model("llama")
    attention = model.hf.model.layers[1].self_attn
    linear = attention.o_proj
    del attention.o_proj
    for name in names:
        setattr(attention, name, copy.deepcopy(linear))
    with pytest.raises(ModelError, match=says):
        output_projections(model, (0, 1))


def test_a_gate_before_the_projection_is_found_at_the_first_set() -> None:
    model = tiny_model("llama")
    attention = model.hf.model.layers[1].self_attn
    attention.o_proj.register_forward_pre_hook(lambda _, args: (args[0].sigmoid() * args[0],))
    run_one(model, policies.greedy(), steps=1)
    with pytest.raises(ModelError, match=r"reads the outputs of its heads as they are.*layer 1"):
        run_one(model, policies.greedy(), steps=1, capture=with_values(model))


def test_nothing_is_written_where_values_cannot_be_measured(tmp_path: Path) -> None:
    model = tiny_model("llama")
    attention = model.hf.model.layers[1].self_attn
    attention.o_proj = _subclass(attention.o_proj)
    with pytest.raises(ModelError, match="leave out values"):
        tempo.generate(model, CAT, values=True, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_values_go_with_no_recomputation_on_the_command_line(tmp_path: Path) -> None:
    result = with_tiny("generate", CAT, "--values", "--keep", "recompute", "--out", tmp_path / "r")
    assert "got values with isolated" in refusal(result)


# --- what it costs


def test_nothing_is_worked_out_where_values_are_not_kept() -> None:
    model = model_of("llama")
    for capture in (Capture("weights", (0,), (0,)), Capture(None, (0,), (0,), values=True)):
        assert projections(model, capture).grams == {}
    session = DecodeContext(model, with_values(model))
    assert {
        layer: gram.shape for layer, gram in session.projections.grams.items()
    } == dict.fromkeys(range(2), (4, 16, 16))


def test_the_memory_plan_counts_the_norms() -> None:
    without = Shape(30, 9, 3, 64, 49152, 4, 30, 9)
    wanted = Shape(30, 9, 3, 64, 49152, 4, 30, 9, values=True)
    demand = Demand(20, 10, 8, "weights")
    more = trace_bytes(wanted, demand, width=2) - trace_bytes(without, demand, width=2)
    assert more == pytest.approx(4 * 30 * 9 * (20 + 10 * 2), abs=8)
    plans = [memory_plan(shape, [[demand]], level="weights") for shape in (without, wanted)]
    assert plans[1].peak_bytes - plans[0].peak_bytes >= 4 * 30 * 9 * 64**2
    with pytest.raises(InputError, match="expected a budget of at least"):
        batches(wanted, [demand], budget_bytes=plans[0].peak_bytes)
    assert batches(wanted, [demand], budget_bytes=plans[1].peak_bytes + 1) == ((0,),)


@pytest.mark.slow
def test_norms_of_the_real_model_are_those_of_its_values(
    spied: Callable[[LanguageModel], Spy],
) -> None:
    model = real_model()
    ids = model.encode("The cat sat on the mat and")
    decoded = run_one(model, policies.visible(0.1), prompt=ids, steps=3, capture=with_values(model))
    spy = spied(model)
    run_oracle(model, decoded.table, decoded.decoding.plan.policy)
    np.testing.assert_allclose(norms(decoded), spy.slow_norms(), rtol=1e-3)
