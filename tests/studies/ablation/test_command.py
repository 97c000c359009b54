"""`tempo ablate`: what it shows, writes and refuses."""

import csv
import json
from pathlib import Path

import pytest

from tests.command_line import call, document, plain, refusal, with_tiny
from tests.conftest import draw_blank

CAT = "The cat sat on the mat"
QUICK = ("--heads", "L1H2,L1H0", "--conditions", "head,value:1", "--sweep", 1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ablation") / "cat"
    with pytest.MonkeyPatch.context() as patch:
        draw_blank(patch)
        result = with_tiny("ablate", CAT, "A dog ran over the hill", *QUICK, "--out", folder)
    assert result.exit_code == 0, result.stderr
    return folder, result.stdout


def test_it_shows_every_condition_beside_its_control(written: tuple[Path, str]):
    folder, shown = written
    for name in ("base|head", "base|value:1", "base|control of head", "base|control of value:1"):
        assert name in plain(shown)
    assert str(folder / "report.html") in plain(shown).replace("\n", "")


def test_it_writes_numbers_tables_figures_and_a_page(written: tuple[Path, str]):
    folder, _ = written
    numbers = json.loads((folder / "ablation.json").read_text())
    assert numbers["heads"] == ["L1H0", "L1H2"]
    assert {row["prompt"]["id"] for row in numbers["predictions"]} == {"p0000", "p0001"}
    with (folder / "tables" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"] for row in rows] == ["target", "head", "value:1"] * 2
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= len(list((folder / "figures").glob("*.svg"))) > 3


def test_json_is_the_document_of_the_file(written: tuple[Path, str]):
    folder, _ = written
    found = document(with_tiny("ablate", CAT, "A dog ran over the hill", *QUICK, "--json"))
    assert found == json.loads((folder / "ablation.json").read_text())


@pytest.mark.usefixtures("blank_figures")
def test_a_finished_folder_is_kept_unless_forced(written: tuple[Path, str]):
    folder, _ = written
    result = with_tiny("ablate", CAT, *QUICK, "--out", folder)
    assert "--force to replace it" in refusal(result)
    assert with_tiny("ablate", CAT, *QUICK, "--out", folder, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CAT, "--heads", "L9H0"), "expected heads from L0H0"),
        ((CAT, "--heads", "nine"), "expected a head such as"),
        ((CAT, "--heads", "L0H0,"), "expected heads such as"),
        ((CAT, "--heads", "L0H0", "--conditions", "tail"), "expected a condition of the form"),
        ((CAT, "--heads", "L0H0", "--at", "middle"), "expected last, random or the number"),
        ((CAT, "--heads", "L0H0", "--conditions", "head:resample"), "--donor TEXT"),
        ((CAT, "--suite", "demo", "--heads", "L0H0"), "expected prompts or --suite, got both"),
        (("--heads", "L0H0"), "expected prompts or --suite, got neither"),
        (("--suite", "nowhere", "--heads", "L0H0"), "expected a suite of"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, tmp_path: Path
):
    result = with_tiny("ablate", *arguments, "--out", tmp_path / "out")
    assert message in refusal(result)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_before_the_work(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    result = call("ablate", CAT, *QUICK, "--out", tmp_path, "--model", "nowhere")
    assert "expected an empty folder" in refusal(result)


def test_heads_are_read_in_every_form():
    found = document(
        with_tiny("ablate", CAT, "--heads", "(1, 0),0.2", *QUICK[2:], "--json", "--no-redundancy")
    )
    assert found["heads"] == ["L0H2", "L1H0"]
    assert found["redundancy"] == {}
