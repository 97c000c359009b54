"""Every experiment asks, quickly, and what it leaves makes a page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(run.parent for run in (ROOT / "experiments").glob("e*/run.py"))
STATUSES = ("supported", "refuted", "inconclusive")


def ask(*arguments: str, cwd: Path) -> None:
    """Run Python on the code of this checkout."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_experiment_runs_quickly_and_its_result_makes_a_page(tmp_path: Path) -> None:
    for folder in FOLDERS:
        out = tmp_path / "results" / folder.name
        ask(str(folder / "run.py"), "--quick", "--out", str(out), cwd=tmp_path)
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        assert result["experiment"] == folder.name
        assert result["metrics"]
    page = tmp_path / "page.md"
    results = str(tmp_path / "results")
    ask("-m", "experiments.findings", "--results", results, "--page", str(page), cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert sum(text.count(f"**{status}.**") for status in STATUSES) >= len(FOLDERS)
    assert "nan" not in text.replace("dominant", "")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_quick_try_never_replaces_the_result(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(folder / "run.py"), "--quick"]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "expected --out FOLDER beside --quick" in done.stderr
