"""Every experiment asks, quickly and mostly on a tiny model, and what it leaves makes a page."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests.command_line import model_folder

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(run.parent for run in (ROOT / "experiments").glob("e*/run.py"))
# They ask what a tiny model lacks: many heads and layers, words as tokens, known continuations.
ON_THE_REAL_MODEL = ("e09_layers_and_heads", "e14_forks", "e15_heads", "e16_boost")
STATUSES = ("supported", "refuted", "inconclusive")


def ask(monkeypatch: pytest.MonkeyPatch, program: Path, *arguments: object) -> None:
    """Run a program of the experiments as its command line would, in this process."""
    monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
    runpy.run_path(str(program), run_name="__main__")


@pytest.fixture
def tiny_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in which the model of the experiments is a tiny one: only the plumbing is asked."""
    place = tmp_path / "cache" / "models" / "smollm2-135m"
    shutil.copytree(model_folder(), place)
    (place / "tempo-model.json").write_text("{}")
    monkeypatch.setenv("TEMPO_CACHE", str(tmp_path / "cache"))


def results_of(monkeypatch: pytest.MonkeyPatch, folders: list[Path], place: Path) -> None:
    """Ask some experiments quickly in an empty folder."""
    monkeypatch.chdir(place)
    for folder in folders:
        out = place / "results" / folder.name
        ask(monkeypatch, folder / "run.py", "--quick", "--out", out)
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        assert result["experiment"] == folder.name
        assert result["metrics"]
    page = place / "page.md"
    findings = ROOT / "experiments" / "findings.py"
    ask(monkeypatch, findings, "--results", place / "results", "--page", page)
    text = page.read_text(encoding="utf-8")
    assert sum(text.count(f"**{status}.**") for status in STATUSES) >= len(folders)
    assert "nan" not in text.replace("dominant", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("tiny_stands_in")
def test_every_experiment_runs_quickly_and_its_result_makes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = [folder for folder in FOLDERS if folder.name not in ON_THE_REAL_MODEL]
    results_of(monkeypatch, tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_every_other_experiment_runs_quickly_on_the_real_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = [folder for folder in FOLDERS if folder.name in ON_THE_REAL_MODEL]
    assert len(real) == len(ON_THE_REAL_MODEL)
    results_of(monkeypatch, real, tmp_path)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_quick_try_never_replaces_the_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        ask(monkeypatch, folder / "run.py", "--quick")
    assert stopped.value.code == 2
    assert "expected --out FOLDER beside --quick" in capsys.readouterr().err
