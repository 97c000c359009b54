"""What every command says on stdout and stderr, and with which exit code it ends."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from scipy.special import log_softmax, logsumexp, softmax

from tempo import cli
from tempo.cli.main import COMMANDS
from tempo.doctor import Check, Diagnosis
from tempo.models import registry
from tempo.policy.readout import READOUTS, Mixture, combine
from tempo.run.options import Options
from tests.command_line import (
    CAT,
    call,
    document,
    generated,
    model_folder,
    plain,
    refusal,
    with_tiny,
)

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "scipy", "matplotlib")


# --- the roof


def in_a_process(*arguments: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh interpreter that says at its end what it has imported."""
    program = (
        f"import os, sys\n{first}\nfrom tempo.cli import main\nsys.argv = ['tempo', *{arguments}]\n"
        f"try: main()\nfinally: print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_help_names_every_command_quickly_and_without_heavy_imports():
    before = os.times()
    done = in_a_process("--help")
    after = os.times()
    spent_s = after.children_user + after.children_system
    spent_s -= before.children_user + before.children_system
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    assert all(name in done.stdout for name in COMMANDS)
    assert spent_s < 0.5


def test_no_command_imports_anything_heavy_before_it_runs():
    homes = ", ".join(f"tempo.cli.{home.module}" for home in COMMANDS.values())
    done = in_a_process("generate", "--help", first=f"import {homes}")
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout


def test_measuring_a_run_needs_no_torch():
    done = in_a_process("--version", first="import tempo.cli.run_results")
    assert done.returncode == 0, done.stderr
    assert "HEAVY ['scipy', 'matplotlib']" in done.stdout


def test_the_sums_that_replace_those_of_scipy_agree_with_them():
    random = np.random.default_rng(0)
    rows = log_softmax(random.normal(0, 5, (3, 40)), axis=1).astype(np.float32)
    rows[:, 7] = -np.inf
    chosen = np.log(random.dirichlet(np.ones(3))).astype(np.float32)
    np.testing.assert_allclose(Mixture().weights(chosen), softmax(chosen.astype(float)), rtol=1e-6)
    for rule in READOUTS.values():
        share = rule.weights(chosen).astype(float)[:, None]
        expected = logsumexp(rows, axis=0, b=share)
        if rule.mean == "geometric":
            expected = log_softmax((rows * share).sum(0))
        np.testing.assert_allclose(
            combine(rows, share[:, 0].astype(np.float32), mean=rule.mean), expected, atol=1e-6
        )


def test_the_help_of_decoding_describes_every_option():
    pages = [
        plain(call(command, "--help", COLUMNS="200").stdout) for command in ("generate", "compare")
    ]
    for name, field in Options.model_fields.items():
        page = next(page for page in pages if f"--{name.replace('_', '-')} " in page)
        assert str(field.description)[:30] in page


def test_the_help_shows_the_defaults_of_the_command_at_hand():
    assert re.search(
        r"--capture .*default: weights", call("generate", "--help", COLUMNS="200").stdout
    )
    assert re.search(r"--capture .*default: auto", call("compare", "--help", COLUMNS="200").stdout)


def test_the_version_is_that_of_the_distribution():
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"tempo {version('tempo-decoding')}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["genrate", CAT],
        ["generate"],
        ["generate", CAT, "--tresh", "0.1"],
        ["analyze"],
        ["models", "pul"],
    ],
)
def test_a_command_line_that_cannot_be_read_ends_with_2(arguments: list[str]):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly():
    away = "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
    done = in_a_process("models", "list", first=away)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch):
    streams = {name: TextIOWrapper(BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["tempo", "analyze", "naïve"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    streams["stderr"].seek(0)
    assert "na\\xefve" in streams["stderr"].read()
    assert stopped.value.code == 2


# --- generate


def test_generate_shows_the_lattice_on_stdout_and_the_rest_on_stderr():
    result = with_tiny("generate", CAT, "--steps", 3)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert re.fullmatch(re.escape(CAT) + r"\[l\|\S\].*", line)
    assert result.stderr.startswith("3 sets, ")
    assert "not kept: --out FOLDER" in result.stderr


def test_several_prompts_take_a_line_each_with_their_ids():
    result = with_tiny("generate", CAT, "a dog", "--steps", 2)
    first, second = result.stdout.splitlines()
    assert first.startswith(f"p0000  {CAT}")
    assert second.startswith("p0001  a dog")


def test_the_document_of_generate_has_stable_keys():
    found = document(with_tiny("generate", CAT, "--json", "--steps", 2))
    assert list(found) == ["format", "command", "model", "out", "traces"]
    assert (found["format"], found["command"]) == (1, "generate")
    assert (found["model"], found["out"]) == (model_folder(), None)
    (trace,) = found["traces"]
    assert list(trace) == ["prompt", "arm", "path", "text", "stopped", "steps"]
    assert (trace["prompt"], trace["arm"], trace["path"]) == (CAT, "isolated", None)
    assert trace["text"].startswith(CAT)
    assert trace["stopped"] == "steps"
    assert [step["step"] for step in trace["steps"]] == [1, 2]
    for step in trace["steps"]:
        assert list(step) == ["step", "position", "members", "dropped"]
        assert [member["rank"] for member in step["members"]] == list(range(len(step["members"])))
        for member in step["members"]:
            assert list(member) == ["slot", "token", "text", "probability", "rank"]


def test_the_document_says_which_tokens_were_dropped_and_why():
    trace = generated(CAT, "--threshold", 0.02, "--max-width", 2, "--steps", 1)
    (step,) = trace["steps"]
    assert len(step["members"]) == 2
    assert {dropped["reason"] for dropped in step["dropped"]} == {"max_width"}
    for dropped in step["dropped"]:
        assert sorted(dropped) == ["probability", "reason", "text", "token"]
        assert 0.02 <= dropped["probability"] <= step["members"][-1]["probability"]


def test_a_json_document_stays_alone_on_stdout():
    result = with_tiny("generate", CAT, "--json", "--steps", 1, "--capture", "auto")
    assert document(result)["command"] == "generate"
    assert result.stderr.startswith("capture: weights (")


# --- what cannot be done takes one line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([""], "at least one token"),
        (["the" * 600], "within the context of 512"),
        ([CAT, "--threshold", "0"], "threshold: expected greater than 0, got '0'"),
        ([CAT, "--threshold", "1.5"], "threshold: expected less than or equal to 1, got '1.5'"),
        ([CAT, "--threshold", "much"], "threshold: expected a valid number"),
        ([CAT, "--steps", "0"], "steps: expected greater than or equal to 1, got '0'"),
        ([CAT, "--max-width", "0"], "max_width: expected greater than or equal to 1"),
        ([CAT, "--policy", "sideways"], "policy: expected a policy of isolated, visible"),
        ([CAT, "--readout", "aloud"], "readout: expected a readout of mixture"),
        ([CAT, "--positions", "offset:x"], "expected offset:NUMBER"),
        ([CAT, "--positions", "offset:1e-9"], "expected a position offset of at least"),
        ([CAT, "--capture", "all"], "capture: expected 'auto', 'weights'"),
        ([CAT, "--layers", "0,9"], "expected layers from 0 to 1, got '0,9'"),
        ([CAT, "--heads", "x"], "expected heads such as 0,3,10-14"),
        ([CAT, "--budget", "lots"], "budget: expected a size such as 2GB"),
        ([CAT, "--budget", "1KB"], "expected a budget of at least"),
        ([CAT, "--dtype", "int8"], "dtype: expected 'float32'"),
        ([CAT, "--device", "abacus"], "expected a device that torch can use, got 'abacus'"),
        ([CAT, "--eos", "maybe"], "eos: expected 'stop' or 'ignore'"),
    ],
)
def test_generate_refuses_in_one_line(arguments: list[str], says: str):
    assert says in refusal(with_tiny("generate", *arguments))


def test_nothing_is_written_when_a_run_is_refused(tmp_path: Path):
    refusal(with_tiny("generate", "", "--out", tmp_path / "run"))
    refusal(with_tiny("generate", CAT, "--steps", "0", "--out", tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("./nowhere", "expected an existing folder or .gguf file, got './nowhere'"),
        ("nobody/nothing", "the hub cannot be reached"),
        ("smollm2-135n", "did you mean smollm2-135m?"),
    ],
)
def test_a_model_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: str, says: str
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert says in refusal(call("generate", CAT, "--model", model))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected prompts or --suite, got neither"),
        ([CAT, "--suite", "demo"], "expected prompts or --suite, got both"),
        (["--suite", "nothing"], "expected a suite of standard, demo, crafted or a .jsonl file"),
        ([CAT, "--arms", "isolated"], "expected at least two different arms, got isolated"),
        ([CAT, "--arms", "isolated,sideways"], "arms: expected a policy of isolated"),
        ([CAT, "--arms", "isolated,isolated"], "arms: expected every arm once"),
        ([CAT, "--positions", "shared"], "expected positions with policies other than unique"),
    ],
)
def test_compare_refuses_in_one_line(arguments: list[str], says: str):
    assert says in refusal(with_tiny("compare", *arguments))


# --- models


def test_the_list_of_models_says_name_size_licence_and_whether_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TEMPO_CACHE", str(tmp_path))
    result = call("models", "list")
    assert result.exit_code == 0
    assert re.search(r"smollm2-135m +542 MB +Apache-2\.0 +no ", result.stdout)
    (row,) = document(call("models", "list", "--json"))["models"]
    assert (row["name"], row["installed"]) == ("smollm2-135m", False)


def test_the_path_of_a_model_is_all_that_path_prints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TEMPO_CACHE", str(tmp_path))
    says = "expected smollm2-135m in the cache folder, got nothing; run `tempo models pull"
    assert says in refusal(call("models", "path", "smollm2-135m"))
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "tempo-model.json").write_text("{}")
    assert call("models", "path", "smollm2-135m").stdout == f"{folder}\n"


def test_pulling_says_what_it_does_and_prints_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def pull(name: str, *, progress) -> Path:
        progress(f"fetching {name}")
        return tmp_path

    monkeypatch.setattr("tempo.cli.models.pull_model", pull)
    result = call("models", "pull", "smollm2-135m")
    assert (result.stdout, result.stderr) == (f"{tmp_path}\n", "fetching smollm2-135m\n")


@pytest.mark.parametrize("command", ["pull", "path"])
def test_an_unknown_name_is_refused_and_the_known_ones_are_named(command: str):
    assert ", ".join(registry.names()) in refusal(call("models", command, "gpt-17"))


# --- doctor


def test_the_doctor_shows_a_line_for_each_check_and_a_summary():
    result = call("doctor", "--model", model_folder())
    found = document(call("doctor", "--model", model_folder(), "--json"))
    assert list(found) == ["format", "command", "model", "healthy", "facts", "checks"]
    assert result.exit_code == 0
    assert "healthy: " in result.stdout.splitlines()[-1]
    for check in found["checks"]:
        assert re.search(rf"{re.escape(check['name'])} +{check['status']}", result.stdout)


def test_a_check_that_fails_ends_the_doctor_with_1(monkeypatch: pytest.MonkeyPatch):
    broken = Diagnosis({"name": "tiny"}, (Check("row sums", "fail", "they add up to 3"),), 0.1)
    monkeypatch.setattr("tempo.doctor.diagnose", lambda _model: broken)
    result = call("doctor", "--model", model_folder())
    assert result.exit_code == 1
    assert "they add up to 3" in result.stdout
    as_json = call("doctor", "--model", model_folder(), "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["healthy"] is False
