"""The tutorial runs as it is written, and what it shows is what it would show today."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"
LARGEST_BYTES = 400_000
LONGEST_S = 240
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
TOLERANCE = 0.02
"""Numbers are printed with two or three decimals; another machine may round them otherwise."""

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
nbformat.validate(notebook)
nbformat.write(notebook, sys.argv[2])
"""

Cells = list[dict[str, Any]]


def code_cells(path: Path) -> Cells:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    """What a cell wrote to stdout."""
    streams = (one for one in cell["outputs"] if one.get("name") == "stdout")
    return "".join("".join(one["text"]) for one in streams)


def last_data(cell: dict[str, Any]) -> dict[str, Any]:
    return cell["outputs"][-1].get("data", {})


@pytest.fixture(scope="module")
def stored() -> Cells:
    return code_cells(TUTORIAL)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """The cells after the notebook ran in an empty folder, which it left empty."""
    folder, home = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("jupyter")
    settings = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = os.environ | dict.fromkeys(settings, str(home))
    result = home / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(TUTORIAL), str(result)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir()), "the tutorial wrote outside its temporary folder"
    return code_cells(result)


def test_what_is_stored_is_small_whole_and_of_no_particular_machine(stored: Cells):
    text = TUTORIAL.read_text(encoding="utf-8")
    assert TUTORIAL.stat().st_size < LARGEST_BYTES
    assert not re.search(r"/(home|root|tmp|usr|Users|work)/", text)
    assert [cell["execution_count"] for cell in stored] == [*range(1, len(stored) + 1)]
    kinds = {one["output_type"] for cell in stored for one in cell["outputs"]}
    assert kinds == {"execute_result", "stream"}


def test_the_stored_tutorial_ends_in_a_picture(stored: Cells):
    assert "image/png" in last_data(stored[-1])


@pytest.mark.slow
def test_the_tutorial_runs_without_an_error_and_ends_in_a_picture(executed: Cells):
    assert not [
        one for cell in executed for one in cell["outputs"] if one["output_type"] == "error"
    ]
    assert len(last_data(executed[-1])["image/png"]) > 10_000


@pytest.mark.slow
def test_what_the_tutorial_prints_still_holds(stored: Cells, executed: Cells):
    assert sum(bool(printed(cell)) for cell in stored) >= 8
    for before, after in zip(stored, executed, strict=True):
        assert NUMBER.sub("#", printed(after)) == NUMBER.sub("#", printed(before))
        numbers = [[float(one) for one in NUMBER.findall(printed(c))] for c in (after, before)]
        assert numbers[0] == pytest.approx(numbers[1], abs=TOLERANCE)


@pytest.mark.slow
def test_every_object_the_tutorial_shows_has_the_same_kinds_of_output(
    stored: Cells, executed: Cells
):
    for before, after in zip(stored, executed, strict=True):
        shown = [
            [sorted(one["data"]) for one in cell["outputs"] if "data" in one]
            for cell in (before, after)
        ]
        assert shown[0] == shown[1]
