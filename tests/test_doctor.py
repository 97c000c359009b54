"""Every family is healthy, and every check fails on the fault that it is there to find."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

import tempo.attention
import tempo.capture
import tempo.engine
import tempo.oracle
from tempo import guards
from tempo.doctor import CHECKS, Check, Diagnosis, diagnose
from tempo.doctor import examination as examining
from tempo.doctor.arms import jumping_positions
from tempo.doctor.tolerances import tolerances
from tempo.model import LanguageModel
from tempo.sight import View
from tempo.testing.tiny import FAMILIES, tiny_model
from tempo.visibility import ISOLATED, BeforeSlot, Both, SameStep, Window, visible_slots
from tests.decoding import model_of, real_model

NAMES = ["decoding", *(check.__name__.replace("_", " ") for check in CHECKS)]
SHARES = {"gpt_oss"}
CAPPED = {"gemma2"}


def failed(model: LanguageModel) -> set[str]:
    return {check.name for check in diagnose(model).failed}


# every family is healthy


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_healthy(family: str) -> None:
    diagnosis = diagnose(model_of(family))
    assert diagnosis.healthy, diagnosis
    left_out = {check.name for check in diagnosis.checks if check.status == "not applicable"}
    without = {"soft cap": family not in CAPPED, "attention sinks": family not in SHARES}
    assert left_out == {name for name, absent in without.items() if absent}
    assert [check.name for check in diagnosis.checks] == NAMES


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_healthy_in_half_precision(family: str, dtype: str) -> None:
    diagnosis = diagnose(model_of(family, dtype))
    assert diagnosis.healthy, diagnosis
    assert f"allowed in {dtype}" in diagnosis["eager logits"].detail


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_is_healthy(dtype: str) -> None:
    diagnosis = diagnose(real_model(dtype))
    assert diagnosis.healthy, diagnosis


def test_an_examination_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gemma3")
    model.hf.set_attn_implementation("eager")
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    assert diagnose(model).healthy
    assert model.hf.config._attn_implementation == "eager"
    assert not any(module._forward_pre_hooks for module in model.hf.modules())
    assert all(torch.equal(before[name], now) for name, now in model.hf.state_dict().items())


def test_windows_are_measured_in_positions_for_each_layer_type() -> None:
    detail = diagnose(model_of("gemma3"))["sliding windows"].detail
    assert "sliding_attention: declared 8, engine 8, eager 8" in detail
    assert "full_attention: declared none, engine none up to 499, eager none" in detail


@pytest.mark.parametrize("window", [3, 40, 100])
def test_windows_narrower_and_wider_than_the_prompt_are_measured(window: int) -> None:
    detail = diagnose(tiny_model("mistral", sliding_window=window))["sliding windows"].detail
    assert f"declared {window}, engine {window}, eager {window}" in detail


def test_a_window_that_no_context_reaches_is_no_fault() -> None:
    detail = diagnose(tiny_model("mistral", sliding_window=4096))["sliding windows"].detail
    assert "declared 4096, engine none up to 499, eager not measured" in detail


def test_what_transformers_gets_wrong_is_shown() -> None:
    diagnosis = diagnose(model_of("llama"))
    assert "earlier logits by 4.4" in diagnosis["mask dtype"].detail
    assert "second sibling by 0 in transformers" in diagnosis["packed sequences"].detail


def test_frequencies_that_follow_the_length_are_named() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    diagnosis = diagnose(tiny_model("llama", rope_parameters=rope, max_position_embeddings=64))
    assert diagnosis.healthy, diagnosis
    assert "go past the original length are refused" in diagnosis["rope type"].detail
    assert diagnosis["translation"].status == "not applicable"


def test_a_model_that_tells_positions_apart_is_not_ill(monkeypatch) -> None:
    model = tiny_model("llama")
    rotary = model.hf.model.rotary_emb
    turn = rotary.forward
    monkeypatch.setattr(rotary, "forward", lambda x, position_ids: turn(x, position_ids**1.01))
    diagnosis = diagnose(model)
    assert diagnosis.healthy, diagnosis
    assert diagnosis["translation"].status == "not applicable"


# every check can fail


def attention_that_attends_twice(monkeypatch, model: LanguageModel) -> None:
    inner = tempo.engine.forward

    def forward(session, cache, views, **options):
        return inner(session, cache, views, **options)

    monkeypatch.setattr(tempo.engine, "forward", forward)


def output_off(monkeypatch, _) -> None:
    inner = tempo.attention.attend
    monkeypatch.setattr(tempo.attention, "attend", lambda *given: inner(*given) * 1.01)


def rows_times(factor: float, monkeypatch, _) -> None:
    inner = tempo.capture._rows

    def rows(*given, **named):
        kept = inner(*given, **named)
        return replace(kept, weights=kept.weights * factor)

    monkeypatch.setattr(tempo.capture, "_rows", rows)


def rows_that_leak(monkeypatch, _) -> None:
    inner = tempo.capture._rows

    def rows(*given, **named):
        kept = inner(*given, **named)
        return replace(kept, weights=kept.weights + 1e-9)

    monkeypatch.setattr(tempo.capture, "_rows", rows)


def capture_that_perturbs(monkeypatch, _) -> None:
    inner = tempo.engine.captured

    def captured(forward, sight, capture):
        kept = inner(forward, sight, capture)
        for keys in forward.cache._keys.values():
            keys *= 1 + len(capture.layers) * 2**-23
        return kept

    monkeypatch.setattr(tempo.engine, "captured", captured)


def window_seen_as(window: Callable[[int], int], monkeypatch, _) -> None:
    def visible(view: View, width: int | None):
        width = None if width is None else window(width)
        return visible_slots(view.policy.see, view.table, view.queries, window=width)

    monkeypatch.setattr(View, "visible", visible)


def window_in_slots(monkeypatch, _) -> None:
    def sees(window: Window, table, queries):
        slots = torch.arange(len(table)).numpy()
        return queries[:, None] - slots[None, :] < window.width

    monkeypatch.setattr(Window, "sees", sees)


def siblings_without_the_prompt(monkeypatch, _) -> None:
    def visible(view: View, window: int | None):
        seen = visible_slots(view.policy.see, view.table, view.queries, window=window)
        if view.policy.see == ISOLATED and len(view.queries) == 3:
            seen[1:, : view.table.n_prompt] = False
        return seen

    monkeypatch.setattr(View, "visible", visible)


def ordered_that_looks_ahead(monkeypatch, _) -> None:
    monkeypatch.setattr(BeforeSlot, "sees", lambda _, table, queries: SameStep().sees(table, queries) | (table.step[None] < table.step[queries, None]))


def siblings_unseen(monkeypatch, _) -> None:
    inner = SameStep.sees

    def sees(relation, table, queries):
        own = torch.arange(len(table)).numpy()[None] == queries[:, None]
        return inner(relation, table, queries) & own

    monkeypatch.setattr(SameStep, "sees", sees)


def edits_without_effect(monkeypatch, _) -> None:
    monkeypatch.setattr(Both, "sees", lambda both, *given: both.left.sees(*given))


def boolean_masks(monkeypatch, _) -> None:
    inner = tempo.oracle._mask
    monkeypatch.setattr(tempo.oracle, "_mask", lambda *given: (inner(*given) == 0).float())


def whole_positions(monkeypatch, model: LanguageModel) -> None:
    inner = model.hf.forward

    def forward(*args, position_ids=None, **named):
        whole = None if position_ids is None else position_ids.long()
        return inner(*args, position_ids=whole, **named)

    monkeypatch.setattr(model.hf, "forward", forward)


def oracle_tied_to_a_place(monkeypatch, _) -> None:
    inner = tempo.oracle._visible

    def visible(table, see, window, q, k):
        return inner(table, see, window, q, k) and (table.position[k] < 100 or q == k)

    monkeypatch.setattr(tempo.oracle, "_visible", visible)


def setting_left_behind(monkeypatch, _) -> None:
    @contextlib.contextmanager
    def attention_as(hf, name):
        hf.set_attn_implementation(name)
        yield

    monkeypatch.setattr(tempo.engine, "attention_as", attention_as)


def frequencies_that_drift(monkeypatch, model: LanguageModel) -> None:
    rotary = model.hf.model.rotary_emb
    inner = rotary.forward

    def forward(x, position_ids):
        rotary.inv_freq = rotary.inv_freq * (1 - 2**-22)
        return inner(x, position_ids)

    monkeypatch.setattr(rotary, "forward", forward)


def no_facts(name: str, value: object, monkeypatch, _) -> None:
    inner = tempo.engine.layer_facts
    monkeypatch.setattr(tempo.engine, "layer_facts", lambda *given: inner(*given) | {name: value})


FAULTS = {
    "output": (output_off, "llama", {"eager logits", "oracle"}),
    "scaled rows": (partial(rows_times, 1.001), "llama", {"row sums", "eager attention"}),
    "leaking rows": (rows_that_leak, "llama", {"zeros"}),
    "perturbing": (capture_that_perturbs, "llama", {"capture"}),
    "wider": (partial(window_seen_as, lambda w: w + 1), "mistral", {"sliding windows"}),
    "no window": (partial(window_seen_as, lambda w: None), "mistral", {"sliding windows"}),
    "in slots": (window_in_slots, "mistral", {"sliding windows"}),
    "packed": (siblings_without_the_prompt, "llama", {"packed sequences"}),
    "ahead": (ordered_that_looks_ahead, "llama", {"causality"}),
    "siblings": (siblings_unseen, "llama", {"oracle"}),
    "edit": (edits_without_effect, "llama", {"edit"}),
    "boolean": (boolean_masks, "llama", {"mask dtype", "oracle"}),
    "whole": (whole_positions, "llama", {"fractional positions"}),
    "place": (oracle_tied_to_a_place, "llama", {"translation"}),
    "setting": (setting_left_behind, "llama", {"attention setting"}),
    "frequencies": (frequencies_that_drift, "llama", {"rope type"}),
    "cap": (partial(no_facts, "softcap", (None,) * 4), "gemma2", {"soft cap"}),
    "sinks": (partial(no_facts, "sinks", None), "gpt_oss", {"attention sinks", "row sums"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_check_and_by_no_other(fault: str, monkeypatch) -> None:
    break_it, family, expected = FAULTS[fault]
    model = tiny_model(family, **({"sliding_window": 40} if family == "mistral" else {}))
    break_it(monkeypatch, model)
    assert failed(model) == expected
