"""Runs on disk: measured, found complete, stopped, gone on with, and damaged."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tempo import open_run, open_trace
from tempo.cli import interrupts
from tempo.cli import run_results as findings
from tempo.errors import Interrupted
from tempo.trace.run import Run
from tempo_analysis.parallel.results import Results
from tests.command_line import (
    CAT,
    call,
    document,
    model_folder,
    refusal,
    started,
    stop,
    with_tiny,
)

TEXTS = (
    "The cat",
    "a dog is",
    "on the mat",
    "ran in",
    "is a",
    "The dog ran",
    "cats",
    "the",
    "why?",
)
ARMS = ("--arms", "isolated,visible,greedy", "--steps", 3)
REPORTED = ("report.html", "report.md", "results.json", "tables", "figures")
LONG = ("generate", CAT, "--steps", 120, "--eos", "ignore", "--threshold", 0.3)


def files(folder: Path) -> dict[str, bytes]:
    """Everything of a run but where and how it was made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "traces").rglob("*"))
        if path.is_file()
    }


def save_without_figures(results: Results, folder: Path, **_: object) -> None:
    """Stands in for `Results.save`: drawing takes seconds, and most tests do not look."""
    for name in ("figures", "tables"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "results.json").write_text(results.json())
    for name in ("report.md", "report.html"):
        (folder / name).write_text("no figures")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Results, "save", save_without_figures)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of nine prompts under three arms."""
    folder = tmp_path_factory.mktemp("runs") / "compared"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "save", save_without_figures)
        result = with_tiny("compare", *TEXTS, *ARMS, "--out", folder)
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of many steps that nobody stopped."""
    folder = tmp_path_factory.mktemp("runs") / "long"
    assert with_tiny(*LONG, "--out", folder).exit_code == 0
    return folder


# --- compare


def test_compare_writes_a_report_and_says_where(compared: Path):
    lines = (compared / "stdout").read_text().splitlines()
    paths = [compared / name for name in REPORTED]
    assert lines[-5:] == [str(path) for path in paths]
    assert all(path.exists() for path in paths)


def test_compare_shows_a_short_table_of_verdicts(compared: Path):
    shown = (compared / "stdout").read_text()
    metrics = json.loads((compared / "results.json").read_text())["metrics"]
    headlines = [m for m in metrics if m["name"].endswith(("with_sink", "without_sink", "_js"))]
    for metric in (m for m in headlines if not m["name"].startswith("normalised")):
        assert metric["verdict"] in shown
        assert f"{metric['estimate']:.3g}" in shown
    assert "repetition" not in shown


def test_compare_says_which_level_was_chosen(compared: Path):
    assert (compared / "stderr").read_text().startswith("capture: weights (about ")
    result = with_tiny("compare", CAT, *ARMS, "--capture", "reduced", "--dry-run")
    assert result.stderr == ""


@pytest.mark.usefixtures("no_figures")
def test_compare_prints_exactly_what_it_writes(tmp_path: Path):
    result = with_tiny("compare", *TEXTS[:2], *ARMS, "--out", tmp_path, "--json")
    assert result.stdout == (tmp_path / "results.json").read_text()
    assert list(document(result))[:4] == ["format", "arms", "n_prompts", "metrics"]


def test_compare_without_a_folder_measures_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = with_tiny("compare", *TEXTS[:2], *ARMS)
    assert result.exit_code == 0
    assert "attention ratio without sink" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_figures")
def test_compare_reads_a_suite_of_the_users_own(tmp_path: Path):
    suite = tmp_path / "suite.jsonl"
    rows = [
        {"id": f"mine-{n}", "category": "short", "text": text} for n, text in enumerate(TEXTS[:2])
    ]
    suite.write_text("\n".join(json.dumps(row) for row in rows))
    result = with_tiny("compare", "--suite", suite, *ARMS, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    run = open_run(tmp_path / "run")
    assert [(p.id, p.category, p.text) for p in run.prompts] == [
        tuple(row.values()) for row in rows
    ]
    assert run.arms == ("isolated", "visible", "greedy", "visible@isolated")


# --- analyze, report


def test_analyze_shows_every_number_and_writes_the_results(compared: Path):
    (compared / "results.json").rename(compared / "before.json")
    result = call("analyze", compared)
    assert result.exit_code == 0, result.stderr
    assert (compared / "results.json").read_text() == (compared / "before.json").read_text()
    for metric in json.loads((compared / "results.json").read_text())["metrics"]:
        assert metric["name"].replace("_", " ") in result.stdout
    assert result.stdout.endswith(f"{compared / 'results.json'}\n")


def test_analyze_prints_the_results_as_a_document(compared: Path):
    result = call("analyze", compared, "--json")
    assert result.stdout == (compared / "results.json").read_text()
    assert "NaN" not in result.stdout


def test_compare_and_report_write_all_there_is_and_say_where(tmp_path: Path):
    command = ("compare", CAT, "--arms", "isolated,greedy", "--steps", 2, "--layers", "0")
    made = with_tiny(*command, "--out", tmp_path).stdout
    paths = [str(tmp_path / name) for name in REPORTED]
    assert made.splitlines()[-5:] == paths
    report = (tmp_path / "report.md").read_text()
    drawn = sorted((tmp_path / "figures").glob("*.png"))
    assert drawn
    assert all(figure.name in report for figure in drawn)
    (tmp_path / "report.md").unlink()
    assert call("report", tmp_path).stdout.splitlines() == paths
    assert (tmp_path / "report.md").read_text() == report


@pytest.mark.usefixtures("no_figures")
def test_the_document_of_report_says_where_the_files_lie(compared: Path):
    found = document(call("report", compared, "--json"))
    assert list(found) == ["format", "command", "run", "paths"]
    assert found["paths"] == [str(compared / name) for name in REPORTED]


# --- view


@pytest.mark.usefixtures("no_figures")
def test_view_opens_the_page_of_a_run(compared: Path, monkeypatch: pytest.MonkeyPatch):
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: not addresses.append(address))
    call("report", compared)
    result = call("view", compared)
    assert (result.stdout, result.stderr) == (f"{compared / 'report.html'}\n", "")
    assert addresses == [(compared / "report.html").as_uri()]
    found = document(call("view", compared, "--json"))
    assert list(found) == ["format", "command", "run", "path", "opened"]
    assert (found["path"], found["opened"]) == (str(compared / "report.html"), True)


@pytest.mark.usefixtures("no_figures")
def test_view_makes_a_page_that_is_missing_or_older_than_its_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    page = tmp_path / "report.html"
    assert with_tiny("generate", CAT, "--steps", 2, "--out", tmp_path).exit_code == 0
    result = call("view", tmp_path)
    assert result.stderr == "no browser was found; open the page yourself\n"
    page.write_text("kept")
    call("view", tmp_path)
    assert page.read_text() == "kept"
    os.utime(page, (0, 0))
    call("view", tmp_path)
    assert page.read_text() == "no figures"


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("command", ["analyze", "report"])
def test_seed_is_that_of_the_analysis(
    compared: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    seeds = []
    ask = findings.ask_everything

    def watched(run: Run) -> Results:
        seeds.append(run.settings["seed"])
        return ask(run)

    monkeypatch.setattr(findings, "ask_everything", watched)
    assert call(command, compared).exit_code == 0
    assert call(command, compared, "--seed", 7).exit_code == 0
    assert seeds == [0, 7]


@pytest.mark.usefixtures("no_figures")
def test_the_seed_of_compare_is_kept_with_the_run(tmp_path: Path):
    assert with_tiny("compare", CAT, *ARMS, "--seed", 5, "--out", tmp_path).exit_code == 0
    assert open_run(tmp_path).settings["seed"] == 5


@pytest.mark.parametrize("command", ["analyze", "report", "view"])
def test_what_is_no_run_is_refused(tmp_path: Path, command: str):
    assert "got no run.json" in refusal(call(command, tmp_path / "none"))
    (tmp_path / "run.json").write_text("{")
    assert "expected JSON in" in refusal(call(command, tmp_path))
    (tmp_path / "run.json").write_text('{"kind": "tempo-run", "format": 99}')
    assert "expected format 1 in" in refusal(call(command, tmp_path))


# --- a run that is there already


def test_a_complete_run_is_not_decoded_again(tmp_path: Path):
    command = ("generate", CAT, "--steps", 2, "--out", tmp_path)
    first = document(with_tiny(*command, "--json"))
    before = files(tmp_path)
    result = with_tiny(*command)
    assert (result.exit_code, result.stdout) == (0, f"already complete: {tmp_path}\n")
    again = with_tiny(*command, "--json")
    assert document(again) == first
    assert again.stderr == f"already complete: {tmp_path}\n"
    assert files(tmp_path) == before


@pytest.mark.usefixtures("no_figures")
def test_a_complete_comparison_is_not_measured_again(tmp_path: Path):
    command = ("compare", CAT, "--arms", "isolated,greedy", "--steps", 2, "--out", tmp_path)
    first = with_tiny(*command)
    written = (tmp_path / "results.json").stat().st_mtime_ns
    again = with_tiny(*command)
    assert (again.exit_code, again.stdout) == (0, f"already complete: {tmp_path}\n")
    assert (tmp_path / "results.json").stat().st_mtime_ns == written
    assert with_tiny(*command, "--json").stdout == (tmp_path / "results.json").read_text()
    (tmp_path / "report.md").unlink()
    healed = with_tiny(*command)
    assert healed.stdout == f"already complete: {tmp_path}\n{first.stdout}"
    assert (tmp_path / "report.md").is_file()


# --- stopped


def wait_until(is_so: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_can_be_read_and_the_same_command_goes_on(
    tmp_path: Path, long_run: Path, number: signal.Signals
):
    command = (*LONG, "--model", model_folder(), "--out", tmp_path)
    process = started(*command)
    header = tmp_path / "traces" / "p0000" / "isolated" / "trace.json"
    wait_until(lambda: header.exists() or process.poll() is not None)
    stop(process, number)
    stdout, stderr = process.communicate(timeout=60)
    cut = open_trace(tmp_path)
    assert cut.header.stopped == "running"
    assert 0 < cut.n_steps < 120
    assert np.isfinite(cut.attention(cut.n_steps)).all()
    if number == signal.SIGINT:
        assert (process.returncode, stdout) == (130, "")
        (line,) = stderr.splitlines()
        assert line.startswith(f"tempo: stopped; {tmp_path} can be read up to the last whole step")
        assert "the same command goes on" in line
    assert call(*command).exit_code == 0
    assert files(tmp_path) == files(long_run)


def test_a_run_stopped_without_a_folder_says_that_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    interrupt_at(monkeypatch, step=2)
    result = with_tiny("generate", CAT, "--steps", 5)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "tempo: stopped; nothing is kept without --out FOLDER\n"


@pytest.mark.usefixtures("no_figures")
def test_a_comparison_that_was_stopped_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = ("compare", *TEXTS[:3], *ARMS, "--budget", "100KB", "--out")
    whole = with_tiny(*command, tmp_path / "whole")
    assert whole.exit_code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=2, prompt_id="p0001")
        assert with_tiny(*command, tmp_path / "cut").exit_code == 130
    run = open_run(tmp_path / "cut")
    assert 0 < sum(trace.header.stopped == "steps" for trace in run) < 9
    unfinished = call("analyze", tmp_path / "cut")
    assert "unfinished: " in unfinished.stderr
    assert with_tiny(*command, tmp_path / "cut").exit_code == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    results = [(tmp_path / name / "results.json").read_text() for name in ("cut", "whole")]
    assert results[0] == results[1]


@pytest.mark.usefixtures("no_figures")
def test_a_comparison_stopped_while_it_is_measured_keeps_its_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(_run):
        raise KeyboardInterrupt

    command = ("compare", CAT, "--arms", "isolated,greedy", "--steps", 2, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tempo.cli.run_results.ask_everything", interrupted)
        result = with_tiny(*command)
    assert result.exit_code == 130
    assert f"the traces in {tmp_path} are whole" in result.stderr
    again = with_tiny(*command)
    assert again.exit_code == 0
    assert (tmp_path / "report.md").is_file()


def test_a_second_interrupt_does_not_wait_for_the_end_of_a_step():
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    before = signal.getsignal(signal.SIGINT)

    def press_twice() -> None:
        with interrupts.interruptible(lambda _: None, "enough"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(Interrupted, match="enough"):
        press_twice()
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, ours)


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.interruptible(lambda _: None, "never"):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, *, step: int, prompt_id: str = "p0000") -> None:
    """Press Ctrl-C during a step of a prompt, also where it is ignored, as in a background job."""
    from tempo.cli import live

    monkeypatch.setattr(interrupts.signal, "getsignal", lambda _: signal.default_int_handler)

    def press(outcome) -> None:
        if outcome.step == step and outcome.decoding.plan.prompt_id == prompt_id:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(live, "_look_away", press)
    take = live.StepCount.take

    def take_and_press(self, outcome) -> None:
        take(self, outcome)
        press(outcome)

    monkeypatch.setattr(live.StepCount, "take", take_and_press)


# --- damaged


def damaged(folder: Path, edit: Callable[[Path], object]) -> str:
    """What `analyze` says of a run whose second trace was edited."""
    assert with_tiny("generate", CAT, "a dog", "--steps", 2, "--out", folder).exit_code == 0
    edit(folder / "traces" / "p0001" / "isolated")
    return refusal(call("analyze", folder))


def test_a_trace_in_a_future_format_is_refused(tmp_path: Path):
    def edit(trace: Path) -> None:
        header = json.loads((trace / "trace.json").read_text())
        (trace / "trace.json").write_text(json.dumps(header | {"format": 99}))

    says = damaged(tmp_path, edit)
    assert "expected format 1 in" in says
    assert "read it with the version of tempo that wrote it" in says


def test_a_damaged_header_is_refused(tmp_path: Path):
    assert "expected JSON in" in damaged(tmp_path, lambda t: (t / "trace.json").write_text("{"))


def test_a_damaged_shard_is_refused(tmp_path: Path):
    def edit(trace: Path) -> None:
        shard = next(trace.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:100])

    assert "expected a whole shard at" in damaged(tmp_path, edit)


# --- the real model


@pytest.mark.slow
def test_the_first_command_of_the_manual_gives_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    command = ("generate", CAT, "--policy", "isolated", "--threshold", "0.1", "--steps", 10)
    found = document(call(*command, "--out", "runs/cat", "--json"))
    (trace,) = found["traces"]
    assert (found["model"], found["out"]) == ("smollm2-135m", "runs/cat")
    assert trace["path"] == "runs/cat/traces/p0000/isolated"
    assert [step["step"] for step in trace["steps"]] == list(range(1, 11))
    assert [step["position"] for step in trace["steps"]] == [5.0 + k for k in range(10)]
    assert any(len(step["members"]) > 1 for step in trace["steps"])
    read = open_trace("runs/cat")
    assert (len(read.layers), len(read.heads)) == (30, 9)
    assert call(*command, "--out", "runs/cat").stdout == "already complete: runs/cat\n"
