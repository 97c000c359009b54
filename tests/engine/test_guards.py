"""The guards of the first step: silent on every family, loud on every fault."""

import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

import tempo.engine.decode
import tempo.engine.forward
from tempo import policies
from tempo.engine.attention import Forward
from tempo.engine.batch import SequenceBatch
from tempo.engine.capture import NOTHING, Capture, Tensors
from tempo.engine.decode import decode
from tempo.engine.guards import guard_first_step, unguarded
from tempo.engine.state import DecodeContext, SequencePlan
from tempo.errors import ModelError
from tempo.models.hooks import watched_positions
from tempo.models.language_model import LanguageModel
from tempo.testing.tiny import FAMILIES, tiny_model
from tests.decoding import model_of, random_prompt, real_model, whole


@dataclass
class FirstStep:
    """What the engine has at hand when it has fed the first set."""

    model: LanguageModel
    capture: Capture
    state: Forward | None = None
    views: list[SequenceBatch] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    tensors: list[Tensors] = field(default_factory=list)
    elapsed_s: float = 0.0

    def guard(self, **changed) -> None:
        given = {"positions": self.positions, "tensors": self.tensors, "capture": self.capture}
        state, views = changed.pop("state", self.state), changed.pop("views", self.views)
        guard_first_step(self.model, state, views, **(given | changed))


def first_step(
    model: LanguageModel,
    monkeypatch,
    *,
    capture: Capture | None = None,
    steps: int = 1,
    n_prompts: int = 3,
) -> FirstStep:
    """Decode some prompts of different lengths under all presets and look at step 1."""
    found = FirstStep(model, capture or whole(model))
    forward, captured = tempo.engine.decode.packed_forward, tempo.engine.forward.captured

    def watched_forward(session, cache, views, **options):
        with watched_positions(model.hf) as seen:
            ran = forward(session, cache, views, **options)
        if views[0].table.n_steps == 1:
            found.positions = seen
        return ran

    def watched_capture(state, sight, chosen):
        tensors = captured(state, sight, chosen)
        if sight.views[0].table.n_steps == 1:
            found.state, found.views, found.tensors = state, list(sight.views), tensors
        return tensors

    monkeypatch.setattr(tempo.engine.decode, "packed_forward", watched_forward)
    monkeypatch.setattr(tempo.engine.forward, "captured", watched_capture)
    start = time.perf_counter()
    decode(DecodeContext(model, found.capture), plans_of(model, steps, n_prompts))
    found.elapsed_s = time.perf_counter() - start
    return found


def plans_of(model: LanguageModel, steps: int, n_prompts: int) -> list[SequencePlan]:
    prompts = [random_prompt(model, 5 + 4 * number, number) for number in range(n_prompts)]
    presets = {name: policies.preset(name, threshold=0.05) for name in policies.PRESETS}
    return [
        SequencePlan(f"p{number}", name, prompt, policy, steps, "ignore")
        for number, prompt in enumerate(prompts)
        for name, policy in presets.items()
    ]


@pytest.mark.parametrize("level", ["weights", "qk", "reduced"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_guards_are_silent_on_every_family(family: str, level: str, monkeypatch) -> None:
    model = model_of(family)
    step = first_step(model, monkeypatch, capture=whole(model, level))
    assert step.positions
    step.guard()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_the_guards_are_silent_in_half_precision(family: str, dtype: str, monkeypatch) -> None:
    step = first_step(model_of(family, dtype), monkeypatch)
    assert step.tensors
    step.guard()


def test_the_guards_are_silent_without_capture(monkeypatch) -> None:
    step = first_step(model_of("gemma3"), monkeypatch, capture=NOTHING)
    assert step.tensors[0] == {}
    step.guard()


def test_some_layers_and_heads_are_enough(monkeypatch) -> None:
    step = first_step(model_of("gpt_oss"), monkeypatch, capture=Capture("weights", (1, 2), (3,)))
    assert step.tensors[0]["weights"].shape[:2] == (2, 1)
    step.guard()


@pytest.fixture
def llama(monkeypatch) -> FirstStep:
    return first_step(model_of("llama"), monkeypatch)


@pytest.mark.parametrize("off", [1.0, 0.001, -0.5])
def test_positions_that_are_off_are_found(llama: FirstStep, off: float) -> None:
    moved = llama.positions[0].clone()
    moved[0, -1] += off
    with pytest.raises(ModelError, match=r"expected RoPE to get positions 5, .* got 5, "):
        llama.guard(positions=[moved])


def test_slots_given_as_positions_are_found(llama: FirstStep) -> None:
    slots = np.concatenate([view.queries for view in llama.views])
    with pytest.raises(ModelError, match="expected RoPE to get positions"):
        llama.guard(positions=[torch.from_numpy(slots)[None]])


def test_a_rotary_module_that_is_never_called_is_found(llama: FirstStep) -> None:
    with pytest.raises(ModelError, match="expected positions to reach a rotary module"):
        llama.guard(positions=[])


def test_one_wrong_call_of_several_is_found(llama: FirstStep) -> None:
    right = llama.positions[0]
    with pytest.raises(ModelError, match="expected RoPE"):
        llama.guard(positions=[right, right[:, :-1]])


def test_a_window_that_the_layers_do_not_pass_on_is_found(monkeypatch) -> None:
    step = first_step(tiny_model("mistral"), monkeypatch)
    calls = {layer: replace(call, window=None) for layer, call in step.state.calls.items()}
    with pytest.raises(ModelError, match=r"layer 0 to attend with the window .* \(8\), got None"):
        step.guard(state=replace(step.state, calls=calls))


def test_a_window_as_long_as_the_context_is_no_fault(monkeypatch) -> None:
    model = tiny_model("mistral", sliding_window=512)
    step = first_step(model, monkeypatch, capture=whole(model, "qk"))
    calls = {layer: replace(call, window=None) for layer, call in step.state.calls.items()}
    step.guard(state=replace(step.state, calls=calls))
    assert step.model.windows == (512, 512)


@pytest.mark.parametrize(("query", "slot"), [(0, 3), (0, -1)])
def test_a_mask_that_shows_too_much_is_found(monkeypatch, query: int, slot: int) -> None:
    step = first_step(tiny_model("mistral", sliding_window=3), monkeypatch)
    leaky = step.state.mask(3).clone()
    leaky[0, query, 0 if slot == 3 else slot] = 0.0
    with pytest.raises(ModelError, match=r"expected slot 5 not to see slot \d+, .* window 3"):
        step.guard(state=replace(step.state, mask=lambda _: leaky))


@pytest.mark.parametrize("level", ["weights", "reduced"])
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_rows_that_do_not_sum_to_one_are_found(family: str, level: str, monkeypatch) -> None:
    step = first_step(model_of(family), monkeypatch, capture=whole(model_of(family), level))
    name = "weights" if level == "weights" else "group_mass"
    spoiled = [piece | {name: piece[name].copy()} for piece in step.tensors]
    spoiled[2][name][1, 3] *= 1.0001
    with pytest.raises(ModelError, match=r"rows that sum to 1 .* off in captured layer 1"):
        step.guard(tensors=spoiled)


def test_rows_that_are_not_numbers_are_found(llama: FirstStep) -> None:
    spoiled = [piece | {"weights": piece["weights"] * np.nan} for piece in llama.tensors]
    with pytest.raises(ModelError, match="rows that sum to 1"):
        llama.guard(tensors=spoiled)


def test_weight_on_a_slot_that_is_not_seen_is_found(llama: FirstStep) -> None:
    number = next(n for n, view in enumerate(llama.views) if len(view.queries) >= 2)
    spoiled = [piece | {"weights": piece["weights"].copy()} for piece in llama.tensors]
    spoiled[number]["weights"][0, 0, 0, -1] = 1e-9
    with pytest.raises(ModelError, match=r"weight 0 on every slot .* got 1.0e-09 .* layer 0"):
        llama.guard(tensors=spoiled)


def test_the_engine_asks_the_guards_at_the_first_step_only(monkeypatch) -> None:
    model, asked = tiny_model("llama"), []
    monkeypatch.setattr(
        tempo.engine.forward, "guard_first_step", lambda *_, **given: asked.append(given)
    )
    decode(DecodeContext(model), plans_of(model, 3, 1))
    assert len(asked) == 1


def test_a_model_that_changes_its_positions_is_refused_unless_nobody_guards(monkeypatch) -> None:
    model = tiny_model("llama")
    forward = model.hf.forward

    def whole_positions(*args, position_ids, **named):
        return forward(*args, position_ids=position_ids + 1, **named)

    monkeypatch.setattr(model.hf, "forward", whole_positions)
    with unguarded():
        assert len(decode(DecodeContext(model), plans_of(model, 2, 1))) == len(policies.PRESETS)
    with pytest.raises(ModelError, match=r"expected RoPE to get positions 5, .* got 6"):
        decode(DecodeContext(model), plans_of(model, 2, 1))


def test_watching_leaves_no_hooks_behind() -> None:
    model = tiny_model("gemma3")
    with pytest.raises(KeyError), watched_positions(model.hf):
        raise KeyError
    assert not any(module._forward_pre_hooks for module in model.hf.modules())


@pytest.mark.slow
def test_the_guards_take_less_than_a_fiftieth_of_a_run(monkeypatch) -> None:
    model = real_model()
    step = first_step(model, monkeypatch, steps=10, n_prompts=5)
    step.guard()
    start = time.perf_counter()
    step.guard()
    assert time.perf_counter() - start < 0.02 * step.elapsed_s
