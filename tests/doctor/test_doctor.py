"""Every family is healthy, and every check fails on the fault that it is there to find."""

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tempo.engine.attention
import tempo.engine.capture
import tempo.engine.decode
import tempo.engine.forward
import tempo.oracle
from tempo.doctor import CHECKS, Check, Diagnosis, diagnose
from tempo.doctor.arms import jumping_positions
from tempo.doctor.examination import tolerances
from tempo.engine.batch import SequenceBatch
from tempo.models.language_model import LanguageModel
from tempo.policy.selection import Greedy
from tempo.policy.visibility import (
    ISOLATED,
    VISIBLE,
    BeforeSlot,
    Both,
    SameStep,
    Window,
    visible_slots,
)
from tempo.testing.tiny import FAMILIES, tiny_model
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


# Every family in one of the two, by turns: what is particular to a family does not depend on which
# half precision it is, and the three with sinks, caps or two layer types are asked in both.
HALF = [
    *zip(FAMILIES, ["bfloat16", "float16"] * len(FAMILIES), strict=False),
    *(("gemma2", "bfloat16"), ("gemma3", "float16"), ("gpt_oss", "bfloat16")),
]


@pytest.mark.parametrize(("family", "dtype"), HALF)
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


def shown_as(monkeypatch, visible: Callable[[SequenceBatch, int | None], np.ndarray]) -> None:
    """Let rows see what a function says, without a bias."""

    def sees(view: SequenceBatch, window: int | None):
        seen = visible(view, window)
        return seen, np.zeros(seen.shape, np.float32)

    monkeypatch.setattr(SequenceBatch, "sees", sees)


def greedy_rows_without_slot_one(monkeypatch, _) -> None:
    def visible(view: SequenceBatch, window: int | None):
        seen = visible_slots(view.policy.see, view.table, view.queries, window=window)
        if isinstance(view.policy.select, Greedy) and view.table.n_steps:
            seen[:, 1] = False
        return seen

    shown_as(monkeypatch, visible)


def output_off(monkeypatch, _) -> None:
    inner = tempo.engine.attention.attend
    monkeypatch.setattr(tempo.engine.attention, "attend", lambda *given: inner(*given) * 1.01)


def rows_times(factor: float, monkeypatch, _) -> None:
    inner = tempo.engine.capture._rows

    def rows(*given, **named):
        kept = inner(*given, **named)
        return replace(kept, weights=kept.weights * factor)

    monkeypatch.setattr(tempo.engine.capture, "_rows", rows)


def rows_that_leak(monkeypatch, _) -> None:
    inner = tempo.engine.capture._rows

    def rows(*given, **named):
        kept = inner(*given, **named)
        return replace(kept, weights=kept.weights + 1e-9)

    monkeypatch.setattr(tempo.engine.capture, "_rows", rows)


def capture_that_perturbs(monkeypatch, _) -> None:
    inner = tempo.engine.forward.captured

    def captured(forward, sight, capture):
        kept = inner(forward, sight, capture)
        for keys in forward.cache._keys.values():
            keys.mul_(1 + len(capture.layers) * 2**-23)
        return kept

    monkeypatch.setattr(tempo.engine.forward, "captured", captured)


def window_seen_as(window: Callable[[int], int], monkeypatch, _) -> None:
    def visible(view: SequenceBatch, width: int | None):
        width = None if width is None else window(width)
        return visible_slots(view.policy.see, view.table, view.queries, window=width)

    shown_as(monkeypatch, visible)


def window_in_slots(monkeypatch, _) -> None:
    def sees(window: Window, table, queries):
        slots = np.arange(len(table))
        return queries[:, None] - slots[None, :] < window.width

    monkeypatch.setattr(Window, "sees", sees)


def siblings_without_the_prompt(monkeypatch, _) -> None:
    def visible(view: SequenceBatch, window: int | None):
        seen = visible_slots(view.policy.see, view.table, view.queries, window=window)
        three = view.policy.see == ISOLATED and len(view.queries) == 3
        if three and np.ptp(view.table.position[view.queries]) == 0:
            seen[1:, : view.table.n_prompt] = False
        return seen

    shown_as(monkeypatch, visible)


def ordered_that_looks_ahead(monkeypatch, _) -> None:
    monkeypatch.setattr(BeforeSlot, "sees", lambda _, *given: VISIBLE.sees(*given))


def siblings_unseen(monkeypatch, _) -> None:
    inner = SameStep.sees

    def sees(relation, table, queries):
        own = np.arange(len(table))[None] == queries[:, None]
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

    monkeypatch.setattr(tempo.engine.decode, "attention_as", attention_as)


def frequencies_that_drift(monkeypatch, model: LanguageModel) -> None:
    rotary = model.hf.model.rotary_emb
    inner = rotary.forward

    def forward(x, position_ids):
        if not position_ids.is_floating_point() and position_ids.max() >= 100:
            rotary.inv_freq = rotary.inv_freq * (1 - 2**-22)
        return inner(x, position_ids)

    monkeypatch.setattr(rotary, "forward", forward)


def no_facts(name: str, value: object, monkeypatch, _) -> None:
    inner = tempo.engine.forward.layer_facts
    monkeypatch.setattr(
        tempo.engine.forward, "layer_facts", lambda *given: inner(*given) | {name: value}
    )


EAGER = {"eager logits", "eager attention"}
WINDOWS = {"sliding windows", "guards"}
FAULTS = {
    "output": (output_off, "llama", {*EAGER, "oracle", "packed sequences"}),
    "greedy": (greedy_rows_without_slot_one, "llama", EAGER),
    "scaled rows": (partial(rows_times, 1.001), "llama", {"row sums", "eager attention", "guards"}),
    "leaking rows": (rows_that_leak, "llama", {"zeros", "guards"}),
    "perturbing": (capture_that_perturbs, "llama", {"capture"}),
    "wider": (partial(window_seen_as, lambda w: w + 1), "mistral", WINDOWS),
    "no window": (partial(window_seen_as, lambda w: None), "mistral", WINDOWS),
    "in slots": (window_in_slots, "mistral", WINDOWS),
    "packed": (siblings_without_the_prompt, "llama", {"packed sequences"}),
    "ahead": (ordered_that_looks_ahead, "llama", {"causality"}),
    "siblings": (siblings_unseen, "llama", {"oracle"}),
    "edit": (edits_without_effect, "llama", {"edit"}),
    "boolean": (boolean_masks, "llama", {"mask dtype", "oracle"}),
    "whole": (whole_positions, "llama", {"fractional positions", "guards"}),
    "place": (oracle_tied_to_a_place, "llama", {"translation"}),
    "setting": (setting_left_behind, "llama", {"attention setting"}),
    "frequencies": (frequencies_that_drift, "llama", {"rope type"}),
    "cap": (partial(no_facts, "softcap", (None,) * 4), "gemma2", {"soft cap"}),
    "sinks": (partial(no_facts, "sinks", None), "gpt_oss", {"attention sinks", "row sums"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_checks_that_look_for_it_and_no_other(fault: str, monkeypatch) -> None:
    break_it, family, expected = FAULTS[fault]
    model = tiny_model(family, **({"sliding_window": 40} if family == "mistral" else {}))
    break_it(monkeypatch, model)
    assert failed(model) == expected


def test_every_check_is_seen_to_fail() -> None:
    assert set().union(*(expected for _, _, expected in FAULTS.values())) == set(NAMES[1:])


def test_a_model_on_which_the_engine_breaks_is_a_finding(monkeypatch) -> None:
    def captured(*_):
        raise RuntimeError("sizes 3 and 4\n do not match")

    monkeypatch.setattr(tempo.engine.forward, "captured", captured)
    first, *others = diagnose(model_of("llama")).checks
    assert first == Check("decoding", "fail", "RuntimeError: sizes 3 and 4 do not match")
    assert {check.status for check in others} == {"not applicable"}
    assert len(others) == len(CHECKS)


def test_a_check_that_breaks_has_failed(monkeypatch) -> None:
    def mask(*_):
        raise KeyError("sliding")

    monkeypatch.setattr(tempo.oracle, "_mask", mask)
    diagnosis = diagnose(model_of("llama"))
    assert {check.name for check in diagnosis.failed} == {"oracle", "mask dtype", "translation"}
    assert diagnosis["oracle"].detail == "KeyError: 'sliding'"


def test_in_half_precision_a_switch_of_experts_is_no_fault(monkeypatch) -> None:
    monkeypatch.setattr(
        tempo.engine.attention, "attend", lambda call, *_: torch.zeros_like(call.query)
    )
    half, whole = (diagnose(model_of("gpt_oss", dtype)) for dtype in ("bfloat16", "float32"))
    assert half["eager logits"].status == "not applicable"
    assert "rounding switches experts" in half["eager logits"].detail
    assert whole["eager logits"].status == "fail"


# how it is done and shown


def test_an_examination_takes_few_forwards() -> None:
    model, calls = tiny_model("llama"), []
    hook = model.hf.register_forward_hook(lambda *_: calls.append(1))
    diagnose(model)
    hook.remove()
    assert len(calls) <= 22


def test_tolerances_grow_with_what_is_compared() -> None:
    usual = tolerances("float32", largest_logit=3.0, largest_score=10.0)
    large = tolerances("float32", largest_logit=30.0, largest_score=20.0)
    assert (usual.logits, usual.attention) == (1e-4, 1e-5)
    assert (large.logits, large.attention) == (pytest.approx(3e-4), pytest.approx(2e-5))
    half = tolerances("bfloat16", largest_logit=10.0, largest_score=10.0)
    assert (half.logits, half.attention) == (pytest.approx(0.625), pytest.approx(0.0625))


@pytest.mark.parametrize("window", [5, 8, 64, 200])
def test_jumps_surround_the_edge_of_every_window(window: int) -> None:
    positions = jumping_positions([None, window], 400)
    distances = {positions[-1] - position for position in positions}
    assert {window - 1, window - 0.5, window, window + 1} <= distances
    assert list(positions) == sorted(positions)
    assert positions[0] >= 12


def diagnosis_of(*checks: Check) -> Diagnosis:
    return Diagnosis({"name": "tiny <1>", "layers": "2"}, checks, 0.25)


GOOD = Check("row sums", "pass", "within 1e-7 & more", trap=12)
BAD = Check("oracle", "fail", "at most 3 from the oracle")
ABSENT = Check("soft cap", "not applicable", "none declared")


def test_a_diagnosis_reads_well_in_a_terminal() -> None:
    assert repr(diagnosis_of(GOOD, BAD, ABSENT)).splitlines() == [
        "tiny <1>: layers 2",
        "ok   row sums  within 1e-7 & more",
        "FAIL oracle    at most 3 from the oracle",
        "-    soft cap  none declared",
        "1 of 2 checks failed, 1 not applicable, 0.2 s",
    ]


def test_a_diagnosis_is_healthy_if_nothing_failed() -> None:
    well, ill = diagnosis_of(GOOD, ABSENT), diagnosis_of(GOOD, BAD)
    assert (well.healthy, well.failed) == (True, ())
    assert well.summary == "healthy: 1 checks passed, 1 not applicable, 0.2 s"
    assert (ill.healthy, ill.failed, ill["oracle"]) == (False, (BAD,), BAD)


def test_a_diagnosis_shows_as_a_table_without_loose_markup() -> None:
    page = diagnosis_of(GOOD, BAD)._repr_html_()
    assert page.count("<tr>") == 2
    assert "tiny &lt;1&gt;" in page
    assert "within 1e-7 &amp; more" in page
    assert "trap 12" in page


def test_a_status_is_one_of_three() -> None:
    with pytest.raises(AssertionError, match="no such status"):
        Check("oracle", "fine", "")


TRAPS = Path(__file__).parents[2] / "docs" / "traps.md"


def test_the_page_of_traps_names_every_check_and_every_trap_that_a_check_names() -> None:
    page = TRAPS.read_text(encoding="utf-8")
    checks = diagnose(model_of("gpt_oss")).checks
    assert [check.name for check in checks if f"`{check.name}`" not in page] == []
    assert [check.trap for check in checks if check.trap and f"## {check.trap}. " not in page] == []


def test_every_test_that_the_page_of_traps_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TRAPS.read_text(encoding="utf-8")))
    files = list(Path(__file__).parents[1].rglob("test_*.py"))
    known = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert named
    assert named - known - {file.stem for file in files} == set()
