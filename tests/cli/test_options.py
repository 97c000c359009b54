"""Every option shows its effect on what comes out, from the command line and from a file."""

import json
from pathlib import Path
from typing import Any

import pytest

import tempo.run.api
from tempo import open_run, open_trace
from tempo.cli.options import EVERYTHING
from tempo.run.options import Options, make_options
from tempo.trace.trace import Trace
from tests.command_line import CAT, call, document, generated, model_folder, refusal, with_tiny

ENDING = "dogs in a mat"
"""Its eighth set would hold an end of sequence."""


def kept(folder: Path, *arguments: object) -> Trace:
    """The only trace of a run in a folder."""
    result = with_tiny("generate", *(arguments or (CAT,)), "--out", folder)
    assert result.exit_code == 0, result.stderr
    return open_trace(folder)


def widths(trace: Any) -> list[int]:
    return [len(step["members"]) for step in trace["steps"]]


def probabilities(trace: Any) -> list[list[float]]:
    return [[member["probability"] for member in step["members"]] for step in trace["steps"]]


def tokens(trace: Trace) -> list[int]:
    """What was decoded, without the prompt."""
    return trace.slots.token[trace.slots.n_prompt :].tolist()


def positions(trace: Any) -> list[float]:
    return [step["position"] for step in trace["steps"]]


def test_every_field_of_the_options_has_a_place_in_the_help():
    assert sorted(EVERYTHING) == sorted(Options.model_fields)


# --- decoding


def test_policy_names_the_arm_and_decides_the_positions():
    isolated = generated(CAT, "--policy", "isolated")
    unique = generated(CAT, "--policy", "unique")
    assert (isolated["arm"], unique["arm"]) == ("isolated", "unique")
    n_prompt = positions(isolated)[0]
    assert positions(isolated) == [n_prompt + k for k in range(10)]
    assert positions(unique) == [n_prompt + sum(widths(unique)[:k]) for k in range(10)]


@pytest.mark.parametrize("policy", ["isolated", "visible", "ordered", "unique"])
def test_every_policy_decodes(policy: str):
    assert len(generated(CAT, "--policy", policy, "--steps", 2)["steps"]) == 2


def test_greedy_keeps_one_token_a_step():
    assert widths(generated(CAT, "--policy", "greedy")) == [1] * 10


def test_a_lower_threshold_lets_more_tokens_in():
    low, high = (generated(CAT, "--threshold", tau) for tau in (0.02, 0.3))
    assert sum(widths(low)) > sum(widths(high))
    assert all(m["probability"] >= 0.02 for step in low["steps"] for m in step["members"])


def test_a_threshold_may_follow_the_steps():
    falling = generated(CAT, "--threshold", "linear:0.9:0.02:4", "--steps", 4)
    flat, low = (generated(CAT, "--threshold", tau, "--steps", 1) for tau in (0.9, 0.02))
    assert falling["steps"][0] == flat["steps"][0] != low["steps"][0]
    assert widths(falling)[0] == 1 < widths(falling)[3]
    assert min(probabilities(falling)[3]) >= 0.02
    rising = generated(CAT, "--threshold", "relu:0.02:1:0.5:1", "--steps", 4)
    assert rising["steps"][0] == low["steps"][0]
    assert widths(rising)[2:] == [1, 1]
    shapes = ("linear:0.9:0.02:6", "bezier:0.9:0.02:0.02:0.02:6")
    line, bent = (generated(CAT, "--threshold", shape, "--steps", 4) for shape in shapes)
    assert (widths(line), widths(bent)) == ([1, 1, 1, 1], [1, 1, 1, 3])
    assert min(probabilities(bent)[3]) >= 0.4**3 * 0.88 + 0.02


def test_a_run_keeps_its_threshold_as_it_was_given(tmp_path: Path):
    texts = ("0.05", "bezier:0.3:0.05:0.1:5")
    for number, text in enumerate(texts):
        kept(tmp_path / str(number), CAT, "--threshold", text, "--steps", 1)
    runs = [open_run(tmp_path / str(number)) for number in (0, 1)]
    assert [run.settings["threshold"] for run in runs] == [0.05, texts[1]]
    assert [run.policies["isolated"]["select"]["tau"] for run in runs] == [
        0.05,
        {"rule": "Bezier", "start": 0.3, "control": [0.05], "end": 0.1, "steps": 5},
    ]


@pytest.mark.parametrize("policy", ["isolated", "tree"])
def test_select_top_k_keeps_that_many(policy: str):
    found = widths(generated(CAT, "--select", "top-k:3", "--policy", policy, "--steps", 3))
    assert found == ([3, 3, 3] if policy == "isolated" else [3, 8, 8])


def test_select_top_p_keeps_a_mass_and_min_p_what_is_near_the_top():
    nucleus = probabilities(generated(CAT, "--select", "top-p:0.5", "--max-width", 99))
    assert all(sum(step) >= 0.5 - 1e-6 > sum(step[:-1]) for step in nucleus)
    assert max(map(len, nucleus)) > 8
    near = probabilities(generated(CAT, "--select", "min-p:0.5", "--max-width", 99))
    assert all(min(step) >= 0.5 * max(step) - 1e-6 for step in near)
    assert max(map(len, near)) > 1
    for rule in ("top-p:0.9", "min-p:0.1"):
        cut = generated(CAT, "--select", rule, "--max-width", 2)["steps"]
        assert {len(step["members"]) for step in cut} == {2}
        assert {item["reason"] for step in cut for item in step["dropped"]} == {"max_width"}


def test_select_sample_draws_sets_and_heat_spreads_them():
    cold, plain, hot = (
        generated(CAT, "--select", f"sample:2{heat}", "--eos", "ignore")
        for heat in (":0.001", "", ":50")
    )
    assert widths(cold) == widths(plain) == widths(hot) == [2] * 10
    assert cold["steps"] == generated(CAT, "--select", "top-k:2", "--eos", "ignore")["steps"]
    assert plain["steps"] != cold["steps"]
    heats = [sum(sum(step) for step in probabilities(trace)) for trace in (cold, plain, hot)]
    assert heats[0] > heats[1] > heats[2]


def test_what_is_drawn_does_not_depend_on_what_decodes_beside_it(tmp_path: Path):
    command = ("--select", "sample:2", "--eos", "ignore", "--steps", 6)
    alone = document(with_tiny("generate", CAT, *command, "--json"))["traces"]
    batch = document(with_tiny("generate", CAT, "a dog", CAT, *command, "--json"))["traces"]
    members = [[[m["token"] for m in s["members"]] for s in t["steps"]] for t in (*alone, *batch)]
    assert members[0] == members[1]
    assert members[1] != members[3], "the same text under another id is another draw"


@pytest.mark.usefixtures("blank_figures")
def test_seed_decides_what_is_drawn(tmp_path: Path):
    command = ("compare", CAT, "--arms", "isolated,greedy", "--select", "sample:2", "--steps", 4)
    found = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert with_tiny(*command, "--seed", seed, "--out", tmp_path / folder).exit_code == 0
        run = open_run(tmp_path / folder)
        assert run.policies["isolated"]["select"]["seed"] == seed
        assert run.policies["greedy"]["select"] == {"rule": "Greedy"}
        found.append([tokens(run.trace("p0000", arm)) for arm in ("isolated", "greedy")])
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] == found[2][1]
    again = with_tiny(*command, "--seed", 1, "--out", tmp_path / "a")
    assert "already complete" in again.stdout
    other = with_tiny(*command, "--seed", 2, "--out", tmp_path / "a")
    assert other.exit_code == 2
    assert "other options" in other.stderr


def test_a_run_without_a_threshold_says_so(tmp_path: Path):
    kept(tmp_path, CAT, "--select", "top-k:2", "--steps", 1)
    settings = open_run(tmp_path).settings
    assert (settings["select"], settings["threshold"]) == ("top-k:2", None)
    assert make_options({name: settings[name] for name in Options.model_fields}).threshold is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--select", "best"], "expected a selection of threshold, top-k:K, top-p:P, min-p:R, sa"),
        (["--select", "top-k:0"], "expected k of at least 1, got 0"),
        (["--select", "top-k:9"], "got 'top-k:9'; raise --max-width to 9"),
        (["--select", "top-p:1.5"], "expected top-p of a share above 0 and at most 1, got 1.5"),
        (["--select", "min-p:0"], "expected min-p of a share above 0 and at most 1, got 0"),
        (["--select", "sample:2:0"], "expected a temperature above 0, got 0"),
        (["--select", "top-k:3", "--policy", "greedy"], "expected no --select with policy greedy"),
        (["--select", "top-k:3", "--threshold", "0.1"], "expected a threshold with --select thr"),
        (["--threshold", "linear:0.3:0.1"], "or linear:START:END:STEPS, bezier:START:CONTROL[:"),
        (["--threshold", "linear:0.3:0:9"], "threshold: expected a threshold above 0 and at most"),
        (["--threshold", "linear:0.3:0.1:1"], "threshold: expected a schedule of at least 2 steps"),
        (["--threshold", "relu:0.3:2:0.1:0.1"], "expected a slope that leads from 0.3 to 0.1"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(arguments: list[str], says: str):
    assert says in refusal(with_tiny("generate", CAT, *arguments))


def test_max_width_bounds_the_sets():
    assert max(widths(generated(CAT, "--threshold", 0.02, "--max-width", 3))) == 3
    assert max(widths(generated(CAT, "--threshold", 0.02))) == 8


def test_steps_is_the_number_of_sets():
    assert len(generated(CAT, "--steps", 4)["steps"]) == 4


def test_readout_decides_the_sets_after_the_first():
    mixture, top = (generated(CAT, "--readout", name)["steps"] for name in ("mixture", "top"))
    assert mixture[0] == top[0]
    assert mixture != top


def test_positions_places_the_members(tmp_path: Path):
    slots = kept(tmp_path, CAT, "--positions", "offset:0.25", "--steps", 1).slots
    first = slots.position[slots.step == 1]
    assert first.tolist() == [first[0] + 0.25 * rank for rank in range(len(first))]
    unique = generated(CAT, "--positions", "unique")
    assert positions(unique) == positions(generated(CAT, "--policy", "unique"))


def test_eos_ignore_keeps_an_end_of_sequence_from_being_chosen():
    stop, ignore = (generated(ENDING, "--steps", 8, "--eos", way) for way in ("stop", "ignore"))
    assert [dropped["reason"] for dropped in stop["steps"][7]["dropped"]] == ["eos"]
    assert ignore["steps"][7]["dropped"] == []


def test_chat_applies_the_template(tmp_path: Path):
    read = []
    for flag in ("--no-chat", "--chat"):
        trace = kept(tmp_path / flag, "a", flag, "--steps", 1)
        read.append([trace.token_text(slot) for slot in range(trace.slots.n_prompt)])
    assert read == [["<bos>", "a"], ["U", ":", " a", "\n", "A", ":"]]


# --- the model


def test_model_is_the_one_that_decodes():
    other = model_folder("qwen2")
    found = document(call("generate", CAT, "--model", other, "--json"))
    assert found["model"] == other
    assert found["traces"][0]["steps"] != generated(CAT)["steps"]


def test_dtype_is_that_of_the_weights(tmp_path: Path):
    assert kept(tmp_path, CAT, "--dtype", "bfloat16").header.model["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("option", "value"), [("device", "cpu:0"), ("device_map", "cpu"), ("revision", "main")]
)
def test_where_the_model_comes_from_and_goes_to_reaches_the_loader(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, value: str
):
    asked = {}
    load = tempo.run.api.load_model

    def watched(source: Any, **how: Any):
        asked.update(how)
        return load(source, **how | {"revision": None})  # a folder has none

    monkeypatch.setattr(tempo.run.api, "load_model", watched)
    flag = f"--{option.replace('_', '-')}"
    kept(tmp_path, CAT, flag, value, "--steps", 1)
    assert asked[option] == value
    assert open_run(tmp_path).settings[option] == value


# --- what is kept


def test_capture_is_the_level_of_the_trace(tmp_path: Path):
    levels = ("weights", "qk", "reduced")
    assert [kept(tmp_path / n, CAT, "--capture", n, "--steps", 1).level for n in levels] == [
        *levels
    ]


def test_layers_and_heads_choose_the_rows(tmp_path: Path):
    trace = kept(tmp_path, CAT, "--layers", "1", "--heads", "0,2-3", "--steps", 1)
    assert (trace.layers, trace.heads) == ((1,), (0, 2, 3))
    assert trace.attention(0).shape[:2] == (1, 3)


def test_readouts_full_keeps_every_token(tmp_path: Path):
    folder = model_folder("wide")
    sizes = []
    for kind in ("top", "full"):
        command = ("generate", CAT, "--steps", 1, "--readouts", kind, "--out", tmp_path / kind)
        assert call(*command, "--model", folder).exit_code == 0
        sizes.append(len(open_trace(tmp_path / kind).readout(1).token))
    assert sizes == [256, 300]


def test_a_small_budget_makes_auto_reduce_and_batches_small():
    command = ("compare", CAT, "a dog", "--arms", "isolated,greedy", "--dry-run", "--json")
    large = document(with_tiny(*command))["plan"]
    small = document(with_tiny(*command, "--budget", "300KB", "--steps", 40))["plan"]
    assert (large["level"], large["batch_sizes"]) == ("weights", [4])
    assert small["level"] == "reduced"
    assert len(small["batch_sizes"]) > 1


# --- the command line and a file


def test_a_file_gives_options_and_the_command_line_wins(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text(f'model = "{model_folder()}"\nsteps = 3\nmax_width = 1\nchat = true\n')
    command = ("generate", "a", "--config", config, "--json")
    (read,) = document(call(*command))["traces"]
    assert widths(read) == [1, 1, 1]
    (typed,) = document(call(*command, "--steps", 2, "--no-chat"))["traces"]
    assert widths(typed) == [1, 1]
    assert positions(typed)[0] < positions(read)[0]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("threshold = 0.02", 8),
        ("threshold = 1", 1),
        ('threshold = "linear:1:0.02:2"', 1),
        ('select = "top-k:2"', 2),
    ],
)
def test_a_file_says_which_tokens_enter(tmp_path: Path, content: str, found: int):
    config = tmp_path / "config.toml"
    config.write_text(content)
    assert widths(generated(CAT, "--config", config, "--steps", 1)) == [found]


def test_a_file_names_the_arms_of_a_comparison(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text('arms = ["isolated", "greedy"]\ncapture = "reduced"\n')
    command = ("compare", CAT, "--config", config, "--dry-run", "--json")
    plan = document(with_tiny(*command))["plan"]
    assert (plan["n_traces"], plan["level"]) == (2, "reduced")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("tresh = 0.1", "expected an option of model, revision"),
        ("steps = 0", "steps: expected greater than or equal to 1, got 0"),
        ('arms = ["isolated", "greedy"]', "expected options of this command in"),
        ("steps: 10", "expected TOML in"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, says: str):
    config = tmp_path / "config.toml"
    config.write_text(content)
    assert says in refusal(with_tiny("generate", CAT, "--config", config))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    says = "got nothing there; check --config"
    assert says in refusal(with_tiny("generate", CAT, "--config", tmp_path / "none.toml"))


# --- output


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path):
    result = with_tiny("generate", CAT, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0
    for words in ("level", "weights", "traces", "batches", "KV cache", "at most"):
        assert words in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_a_dry_run_is_a_document_too():
    found = document(with_tiny("generate", CAT, "--dry-run", "--json"))
    assert list(found) == ["format", "command", "model", "plan"]
    plan = found["plan"]
    assert (plan["level"], plan["n_traces"], plan["batch_sizes"]) == ("weights", 1, [1])
    assert 0 < plan["trace_bytes"] <= plan["trace_bytes_at_most"]
    assert 0 < plan["kv_bytes"] < plan["peak_bytes"]


def test_out_keeps_a_run_and_names_each_trace(tmp_path: Path):
    found = document(with_tiny("generate", CAT, "a dog", "--out", tmp_path, "--json"))
    assert found["out"] == str(tmp_path)
    for trace in found["traces"]:
        assert open_trace(trace["path"]).header.prompt == trace["prompt"]
    assert json.loads((tmp_path / "run.json").read_text())["complete"] is True


def test_force_replaces_a_run_and_only_force(tmp_path: Path):
    kept(tmp_path, CAT, "--steps", 1)
    again = ("generate", CAT, "--steps", 2, "--out", tmp_path)
    assert "give another --out, or --force to replace it" in refusal(with_tiny(*again))
    assert open_trace(tmp_path).n_steps == 1
    assert with_tiny(*again, "--force").exit_code == 0
    assert open_trace(tmp_path).n_steps == 2


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "got other files" in refusal(with_tiny("generate", CAT, "--out", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("mine")
    says = f"expected a folder at {file}, got a file"
    assert says in refusal(with_tiny("generate", CAT, "--out", file))
    assert file.read_text() == "mine"
