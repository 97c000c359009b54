"""`generate` and `compare`: what they accept, refuse, write, and go on with."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import tempo
from tempo import policies
from tempo.errors import InputError, ModelError, NumericalError, OutputError, TempoError
from tempo.policy.positions import Offset
from tempo.policy.presets import Policy
from tempo.policy.selection import TopK
from tempo.run import execute
from tempo.run.options import Options
from tempo.run.request import is_single
from tempo.testing.tiny import tiny_model
from tempo.trace.run_folder import is_whole, open_run, trace_folder
from tests.decoding import model_of

TEXTS = ["the cat sat", "a dog ran to", "so they"]


def same(one: tempo.trace.trace.Trace, other: tempo.trace.trace.Trace) -> bool:
    return set(one.tensors) == set(other.tensors) and all(
        np.array_equal(
            one.tensors[name], other.tensors[name], equal_nan=one.tensors[name].dtype.kind == "f"
        )
        for name in one.tensors
    )


def quick(**options):
    return {"steps": 3, "threshold": 0.08, "eos": "ignore"} | options


def test_prompts_come_as_text_ids_lists_or_pairs() -> None:
    model = model_of("llama")
    text = tempo.generate(model, TEXTS[0], **quick())
    ids = tempo.generate(model, model.encode(TEXTS[0]), **quick())
    several = tempo.generate(model, TEXTS, **quick())
    assert same(text[0], ids[0])
    assert [prompt.id for prompt in several.prompts] == ["p0000", "p0001", "p0002"]
    np.testing.assert_allclose(several[0].attention(0), text[0].attention(0), atol=1e-6)
    pairs = tempo.generate(
        model,
        [
            (TEXTS[0], policies.visible(0.08)),
            (TEXTS[0], "greedy"),
            (TEXTS[1], Policy(TopK(2), Offset(0.5))),
        ],
        steps=3,
    )
    assert [(t.header.prompt_id, t.header.arm) for t in pairs] == [
        ("p0000", "visible"),
        ("p0001", "greedy"),
        ("p0002", "custom"),
    ]
    assert pairs.trace("p0002", "custom").slots.width[-1] == 2


def test_compare_decodes_every_prompt_under_every_arm_and_replays_isolated_as_visible() -> None:
    run = tempo.compare(model_of("llama"), TEXTS, **quick())
    assert run.arms == ("isolated", "visible", "unique", "greedy", "visible@isolated")
    assert len(run) == 15
    for prompt in run.prompts:
        free, replayed = run.trace(prompt.id, "isolated"), run.trace(prompt.id, "visible@isolated")
        assert replayed.slots.token.tolist() == free.slots.token.tolist()
        assert replayed.slots.position.tolist() == free.slots.position.tolist()
        np.testing.assert_allclose(replayed.slots.probability, free.slots.probability, rtol=1e-5)
        np.testing.assert_allclose(replayed.slots.weight, free.slots.weight, rtol=1e-5)
        assert replayed.header.policy["see"] != free.header.policy["see"]
    assert run.settings["replays"] == {"visible@isolated": "isolated"}


def test_arms_may_be_policies_of_ones_own() -> None:
    run = tempo.compare(
        model_of("llama"),
        TEXTS[0],
        arms={"two": Policy(TopK(2)), "three": Policy(TopK(3))},
        steps=2,
        eos="ignore",
    )
    assert [run.trace("p0000", arm).slots.width[-1] for arm in ("two", "three")] == [2, 3]


@pytest.mark.parametrize("level", ["weights", "qk", "reduced"])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_never_stopped(
    tmp_path: Path, level: str
) -> None:
    model = model_of("llama")
    options = quick(capture=level, budget="400KB")
    whole = tempo.compare(model, TEXTS, out=tmp_path / "whole", **options)
    seen = 0

    def stop(_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tempo.compare(model, TEXTS, out=tmp_path / "broken", on_progress=stop, **options)
    manifest = json.loads((tmp_path / "broken/run.json").read_text())
    assert not manifest["complete"]
    assert len(manifest["batches"]) >= 2
    done = {pair for pair in whole.traces if is_whole(trace_folder(tmp_path / "broken", *pair))}
    assert 0 < len(done) < 15
    resumed_steps: list[str] = []
    resumed = tempo.compare(
        model,
        TEXTS,
        out=tmp_path / "broken",
        on_progress=lambda o: resumed_steps.append(o.decoding.plan.prompt_id),
        **options,
    )
    assert 0 < len(resumed_steps) < 15 * 4
    assert json.loads((tmp_path / "broken/run.json").read_text())["complete"]
    assert all(same(resumed.traces[pair], whole.traces[pair]) for pair in whole.traces)


def test_what_an_interrupt_leaves_reads_to_the_last_whole_step(tmp_path: Path) -> None:
    def stop(outcome) -> None:
        if outcome.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tempo.generate(
            model_of("llama"), TEXTS[0], out=tmp_path / "run", on_progress=stop, **quick()
        )
    trace = tempo.open_trace(tmp_path / "run")
    assert trace.n_steps == 2
    assert trace.header.stopped == "running"
    np.testing.assert_allclose(trace.attention(2).sum(-1), 1, atol=1e-5)


def test_a_finished_run_is_not_decoded_again(tmp_path: Path) -> None:
    model = model_of("llama")
    tempo.generate(model, TEXTS[0], out=tmp_path / "run", **quick())
    watched: list[object] = []
    again = tempo.generate(
        model, TEXTS[0], out=tmp_path / "run", on_progress=watched.append, **quick()
    )
    assert again.already_complete
    assert not watched


def test_another_run_is_not_overwritten_without_force(tmp_path: Path) -> None:
    model = model_of("llama")
    tempo.generate(model, TEXTS[0], out=tmp_path / "run", **quick())
    with pytest.raises(OutputError, match=r"other options.*--force"):
        tempo.generate(model, TEXTS[0], out=tmp_path / "run", **quick(steps=4))
    assert open_run(tmp_path / "run").settings["steps"] == 3
    replaced = tempo.generate(model, TEXTS[0], out=tmp_path / "run", force=True, **quick(steps=4))
    assert replaced[0].n_steps == 4


def test_files_that_are_not_ours_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="other files"):
        tempo.generate(model_of("llama"), TEXTS[0], out=tmp_path / "run", **quick())
    tempo.generate(model_of("llama"), TEXTS[0], out=tmp_path / "run", force=True, **quick())
    assert (tmp_path / "run/thesis.tex").read_text() == "years of work"
    assert tempo.open_trace(tmp_path / "run").n_steps == 3


def test_a_run_of_several_traces_lists_them(tmp_path: Path) -> None:
    tempo.generate(model_of("llama"), TEXTS, out=tmp_path / "run", **quick())
    with pytest.raises(InputError, match="p0002"):
        tempo.open_trace(tmp_path / "run")
    with pytest.raises(InputError, match="p0000, p0001, p0002"):
        open_run(tmp_path / "run").trace("p9")


def test_nan_logits_keep_the_steps_before_them(tmp_path: Path, monkeypatch) -> None:
    model = tiny_model("llama")
    forward, calls = type(model.hf).forward, []

    def breaks(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            out.logits[:] = float("nan")
        return out

    monkeypatch.setattr(type(model.hf), "forward", breaks)
    with pytest.raises(NumericalError, match=r"finite logits.*p0000"):
        tempo.generate(model, TEXTS[0], out=tmp_path / "run", **quick())
    assert tempo.open_trace(tmp_path / "run").n_steps == 1


BAD = {
    "an empty prompt": ("", {}, "at least one token"),
    "no prompt": ([], {}, "at least one prompt"),
    "a prompt beyond the context": ("a" * 600, {}, "context of 512"),
    "an impossible token": ([5, 9999], {}, "token ids from 0 to 127"),
    "tau of 0": ("a", {"threshold": 0}, "threshold: expected greater than 0"),
    "tau above 1": ("a", {"threshold": 1.5}, "threshold: expected less than or equal to 1"),
    "no steps": ("a", {"steps": 0}, "steps: expected greater than or equal to 1"),
    "an unknown policy": (
        "a",
        {"policy": "parallel"},
        "isolated, visible, ordered, unique, tree, posterior, greedy",
    ),
    "an unknown option": ("a", {"treshold": 0.1}, "threshold.*got 'treshold'"),
    "an unknown readout": ("a", {"readout": "mean"}, "mixture, product, top, last"),
    "an unknown level": (
        "a",
        {"capture": "all"},
        "capture: expected 'auto', 'weights', 'qk' or 'reduced'",
    ),
    "a layer out of range": ("a", {"layers": "0-7"}, "layers from 0 to 1"),
    "a layer that is no number": ("a", {"layers": "first"}, "layers such as 0,3,10-14"),
    "a tiny offset": ("a", {"positions": "offset:1e-9"}, "position offset of at least"),
    "two choices of positions": (
        "a",
        {"policy": "unique", "positions": "shared"},
        "leave one of them out",
    ),
    "a budget of nothing": ("a", {"budget": "0GB"}, "size such as 2GB"),
    "a budget too small": ("a", {"budget": "1KB"}, "raise --budget"),
    "another dtype than loaded": ("a", {"dtype": "bfloat16"}, "as the loaded model has it"),
    "a policy and its options": (
        "a",
        {"policy": policies.greedy(), "threshold": 0.2},
        "inside the Policy object",
    ),
    "no chat template": ("a", {"chat": True}, "chat template"),
    "prompts mixed with pairs": (["a", ("b", "greedy")], {}, "give a policy to each"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    prompt, options, message = BAD[name]
    with pytest.raises(TempoError, match=message) as caught:
        tempo.generate(model_of("llama"), prompt, out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_unknown_models_and_single_arms_are_refused() -> None:
    with pytest.raises(ModelError, match="smollm2-135m"):
        tempo.generate("smollm3-135m-nope", "a")
    with pytest.raises(InputError, match="at least two different arms"):
        tempo.compare(model_of("llama"), "a", arms=["isolated"])
    with pytest.raises(InputError, match="at least two different arms"):
        tempo.compare(model_of("llama"), "a", arms=["isolated", "isolated"])


OPTION_EFFECTS = {
    "threshold": 0.3,
    "max_width": 1,
    "steps": 5,
    "readout": "top",
    "positions": "unique",
    "policy": "visible",
    "layers": "1",
    "heads": "0",
    "capture": "reduced",
    "readouts": "full",
}


@pytest.mark.parametrize("option", OPTION_EFFECTS)
def test_every_option_changes_the_trace(option: str) -> None:
    model = model_of("llama")
    plain = {"steps": 4, "threshold": 0.05, "eos": "ignore"}
    base = tempo.generate(model, TEXTS[0], **plain)[0]
    changed = tempo.generate(model, TEXTS[0], **(plain | {option: OPTION_EFFECTS[option]}))[0]
    if option == "readouts":  # this vocabulary is smaller than the 256 tokens kept
        assert changed.readout(1).tail_mass == 0
    else:
        assert not same(base, changed)


def test_eos_and_chat_change_what_is_decoded() -> None:
    model = tiny_model("llama")
    greedy = tempo.generate(model, TEXTS[0], policy="greedy", steps=4, eos="ignore")[0]
    model.hf.generation_config.eos_token_id = int(greedy.slots.token[-1])
    assert tempo.generate(model, TEXTS[0], policy="greedy", steps=9)[0].header.stopped == "eos"
    assert (
        tempo.generate(model, TEXTS[0], policy="greedy", steps=9, eos="ignore")[0].header.stopped
        == "steps"
    )
    model.tokenizer.chat_template = "{% for m in messages %}Q {{ m.content }} A{% endfor %}"
    chat = tempo.generate(model, TEXTS[0], steps=1, chat=True)[0]
    assert chat.slots.token[:6].tolist() != greedy.slots.token[:6].tolist()


def test_options_that_load_the_model_are_passed_on(monkeypatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def load(source, **options):
        asked.update(options, source=source)
        return model_of("llama", "bfloat16")

    monkeypatch.setattr("tempo.run.api.load_model", load)
    tempo.generate(
        "some/model", TEXTS[0], steps=1, dtype="bfloat16", revision="main", device_map="auto"
    )
    assert asked == {
        "source": "some/model",
        "dtype": "bfloat16",
        "device": None,
        "device_map": "auto",
        "revision": "main",
    }


def test_the_seed_is_recorded_for_the_intervals() -> None:
    run = tempo.generate(model_of("llama"), TEXTS[0], steps=1, seed=7)
    assert run.settings["seed"] == 7


def test_objects_print_well(tmp_path: Path) -> None:
    run = tempo.generate(model_of("llama"), TEXTS[0], **quick())
    assert "p0000" in repr(run)
    assert "2 layers x 4 heads" in repr(run[0])
    assert run[0].lattice().startswith("the cat sat")
    hostile = tempo.generate(model_of("llama"), "<script>", steps=1)
    assert "<script>" not in hostile._repr_html_() + hostile[0]._repr_html_()


def test_every_option_is_described() -> None:
    assert all(field.description for field in Options.model_fields.values())


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    model = tiny_model("llama", num_attention_heads=32, num_key_value_heads=2, head_dim=8)
    policy = Policy(TopK(2))

    def peak_bytes(steps: int) -> int:
        tracemalloc.start()
        tempo.generate(
            model, TEXTS[0], policy=policy, steps=steps, eos="ignore", out=tmp_path / f"{steps}"
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(10)  # what is imported and cached once
    few, many = peak_bytes(60), peak_bytes(180)
    written = sum(file.stat().st_size for file in (tmp_path / "180").rglob("*.safetensors"))
    longest_shard = max(file.stat().st_size for file in (tmp_path / "180").rglob("*.safetensors"))
    assert written > 15 * 10**6
    assert many - few < 3 * longest_shard < written / 3


def test_traces_that_went_missing_are_decoded_again(tmp_path: Path) -> None:
    model = model_of("llama")
    run = tempo.compare(model, TEXTS[:2], out=tmp_path / "run", **quick())
    shutil.rmtree(trace_folder(tmp_path / "run", "p0001", "unique"))
    again = tempo.compare(model, TEXTS[:2], out=tmp_path / "run", **quick())
    assert not again.already_complete
    assert len(again) == len(run) == 10


def test_a_batch_that_is_not_whole_is_decoded_again_with_the_same_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decodes beside a sequence may turn its tokens in half precision."""
    model, options = model_of("llama"), quick(out=tmp_path / "run", policy="isolated")
    tempo.generate(model, TEXTS, **options)
    shutil.rmtree(trace_folder(tmp_path / "run", "p0001", "isolated"))
    together: list[int] = []
    decode = execute.decode

    def watched(session, plans):
        together.append(len(plans))
        return decode(session, plans)

    monkeypatch.setattr(execute, "decode", watched)
    tempo.generate(model, TEXTS, **options)
    assert together == [3]


def test_a_changed_model_is_another_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = tempo.generate(model, TEXTS[0], out=tmp_path / "run", **quick())
    with torch.no_grad():
        model.hf.model.layers[0].self_attn.o_proj.weight.zero_()
    with pytest.raises(OutputError, match="other options"):
        tempo.generate(model, TEXTS[0], out=tmp_path / "run", **quick())
    after = tempo.generate(model, TEXTS[0], **quick())
    assert after[0].header.model["fingerprint"] != before[0].header.model["fingerprint"]


def test_arrays_and_tensors_of_ids_are_prompts_and_bytes_are_not() -> None:
    model = model_of("llama")
    ids = model.encode(TEXTS[0])
    expected = tempo.generate(model, ids, **quick())[0]
    for given in (np.array(ids), torch.tensor(ids), [torch.tensor(ids)]):
        assert same(tempo.generate(model, given, **quick())[0], expected)
    for wrong in (b"hi", 5, None):
        with pytest.raises(InputError, match="expected text"):
            is_single(wrong)
    with pytest.raises(InputError, match="give a policy to each"):
        tempo.generate(model, [(TEXTS[0], "greedy")], policy="visible", steps=1)
