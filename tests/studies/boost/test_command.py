"""`tempo boost`: what it shows, writes and refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import call, document, model_folder, refusal, with_tiny
from tests.conftest import draw_blank

TEXTS = tuple(f"the cat {i} sat on" for i in range(4))
QUICK = ("--threshold", "0.05", "--steps", 3)
FILES = {"report.html", "boost.json", "response.svg", "response.png", "restoring.svg", "free.svg"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with everything, and what was said on stdout."""
    folder = tmp_path_factory.mktemp("out") / "boost"
    with pytest.MonkeyPatch.context() as patch:
        draw_blank(patch)
        result = with_tiny(
            "boost", *TEXTS, "--betas=-2,2", "--groups", "mine=L0H1,L1H0", *QUICK, "--out", folder
        )
    assert result.exit_code == 0, result.stderr
    return folder, result.stdout


def read(folder: Path) -> Any:
    return json.loads((folder / "boost.json").read_text())


def test_it_shows_responses_sentences_and_where_the_files_lie(written: tuple[Path, str]):
    folder, shown = written
    lines = shown.splitlines()
    assert [line for line in lines if line in read(folder)["sentences"]] == read(folder)[
        "sentences"
    ]
    assert sum(line.startswith("mine ") for line in lines) == 5
    assert lines[-2:] == [str(folder / "report.html"), str(folder / "boost.json")]
    written_files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in written_files} >= FILES
    assert all(path.stat().st_size for path in written_files)


def test_negative_betas_are_read_and_0_is_added(written: tuple[Path, str]):
    folder, _ = written
    assert read(folder)["betas"] == [-2, 0, 2]
    assert read(folder)["targets"]["mine"]["n_heads"] == 2
    with (folder / "tables" / "dose_response.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {float(row["beta"]) for row in rows} == {-2.0, 0.0, 2.0}


def test_the_document_on_stdout_is_the_one_that_is_written(written: tuple[Path, str]):
    result = with_tiny(
        "boost", *TEXTS, "--betas=-2,2", "--groups", "mine=L0H1,L1H0", *QUICK, "--json"
    )
    assert result.stdout == (written[0] / "boost.json").read_text()
    assert document(result)["kind"] == "tempo-boost"


def test_some_targets_without_free_decoding():
    asked = (*QUICK, "--betas", "0,1", "--targets", "all, control", "--no-free", "--json")
    found = document(with_tiny("boost", *TEXTS, *asked))
    assert list(found["targets"]) == ["all", "control"]
    assert found["free"] == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--betas=-1,one",), "expected numbers in --betas, got 'one'"),
        (("--betas=1",), "expected at least two different betas, got 1"),
        (("--betas=0,nan",), "expected finite betas"),
        (("--targets", "al"), "expected targets of all, first third"),
        (("--groups", "mine"), "expected --groups such as 'mine=L3H5,L4H1'"),
        (("--groups", "mine=L0H0;mine=L0H1"), "each name once"),
        (("--groups", "mine="), "expected heads in group 'mine', got none"),
        (("--groups", "mine=L9H9"), "from L0H0 to L1H3 in group 'mine', got L9H9"),
        (("--groups", "mine=head"), "expected a head such as L3H5"),
        (("--threshold", "low"), "expected numbers in --threshold, got 'low'"),
        (("--threshold", "2"), "threshold: expected"),
        (("--steps", "few"), "expected a whole number in --steps, got 'few'"),
        (("--steps", "1"), "expected at least 2 steps, got 1"),
        (("--threshold", "0.99"), "got none of 4; lower the threshold"),
        (("--suite", "demo"), "expected prompts or --suite, got both"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], expected: str):
    assert expected in refusal(with_tiny("boost", *TEXTS, *arguments))


def test_without_prompts_it_is_refused():
    assert "got neither" in refusal(call("boost", "--model", model_folder()))


def test_a_folder_in_use_is_refused_before_anything_is_loaded(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    said = refusal(call("boost", *TEXTS, "--model", "no-such-model", "--out", tmp_path))
    assert "expected an empty folder" in said


@pytest.mark.usefixtures("blank_figures")
def test_a_finding_is_replaced_with_force_only(written: tuple[Path, str]):
    folder, _ = written
    asked = ("boost", *TEXTS, "--betas", "0,1", "--targets", "all", "--no-free", *QUICK)
    assert "or --force to replace it" in refusal(with_tiny(*asked, "--out", folder))
    assert with_tiny(*asked, "--out", folder, "--force").exit_code == 0
    assert list(read(folder)["targets"]) == ["all"]
