"""`tempo heads` as a user runs it: table, document, files, a second model, refusals."""

import json
from pathlib import Path

import pytest

from tempo_analysis.studies.heads.plan import ROLES
from tests.command_line import call, document, model_folder, refusal
from tests.conftest import draw_blank

FEW = ("--sequences", 10, "--length", 32, "--no-effects")
CHEAP = "previous_token,induction,bos_sink,ov_copying"


def heads(*arguments: object):
    return call("heads", "--model", model_folder(), *FEW, *arguments)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "kept"
    with pytest.MonkeyPatch.context() as patch:
        draw_blank(patch)
        result = heads("--out", folder)
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_the_document_lists_every_role_with_its_heads_best_first():
    found = document(heads("--roles", CHEAP, "--json"))
    assert list(found["roles"]) == CHEAP.split(",")
    assert set(CHEAP.split(",")) < set(ROLES)
    for rows in found["roles"].values():
        assert len(rows) == 8
        for row in rows:
            assert {"head", "score", "chance", "null_p99", "assigned"} <= set(row)
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)


def test_the_terminal_shows_a_row_for_each_role_and_why_others_have_none(kept: Path):
    shown = (kept / "stdout").read_text()
    for role in ("previous token", "bos sink", "ov copying", "set broadcast"):
        assert f"\n{role} " in shown
    assert "not answered: successor_ov: expected" in shown
    assert (kept / "stderr").read_text().splitlines()[0].endswith(": text")


def test_everything_is_kept_where_out_says(kept: Path):
    paths = [Path(line) for line in (kept / "stdout").read_text().splitlines()[-4:]]
    assert [path.name for path in paths] == ["report.html", "heads.json", "tables", "figures"]
    assert all(path.exists() for path in paths)
    assert json.loads((kept / "heads.json").read_text())["kind"] == "tempo-heads"
    assert list((kept / "tables").glob("*.csv"))
    assert {path.suffix for path in (kept / "figures").iterdir()} == {".svg", ".png"}


def test_a_census_that_lies_there_is_not_overwritten_unasked(kept: Path):
    before = (kept / "heads.json").read_bytes()
    assert "give another --out, or --force" in refusal(heads("--out", kept))
    assert (kept / "heads.json").read_bytes() == before
    assert heads("--roles", "bos_sink", "--out", kept, "--force").exit_code == 0
    assert list(json.loads((kept / "heads.json").read_text())["roles"]) == ["bos_sink"]
    drawn = {path.stem for path in (kept / "figures").iterdir()}
    assert "heads_roles" in drawn


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_asked(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "expected to write to" in refusal(heads("--out", tmp_path / "file" / "sub"))


def test_figures_of_an_earlier_census_do_not_stay(tmp_path: Path):
    folder = tmp_path / "o"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "heads_old.png").write_text("")
    (folder / "figures" / "mine.png").write_text("")
    assert "expected" in refusal(heads("--roles", "bos_sink", "--out", folder))  # whose are they?
    (folder / "heads.json").write_text("{}")
    assert heads("--roles", "bos_sink", "--out", folder, "--force").exit_code == 0
    names = {path.name for path in (folder / "figures").iterdir()}
    assert "mine.png" in names
    assert "heads_old.png" not in names


def test_a_second_model_is_asked_the_same():
    found = document(heads("--roles", CHEAP, "--against", model_folder("qwen3"), "--json"))
    assert list(found["against"]["roles"]) == CHEAP.split(",")
    comparison = found["comparison"]
    assert set(comparison["roles"]) == set(CHEAP.split(","))
    for row in comparison["roles"].values():
        assert {"first", "second", "difference", "verdict"} == set(row)
    shown = heads("--roles", CHEAP, "--against", model_folder("qwen3")).stdout
    assert "held in neither model" in " ".join(shown.split())


def test_a_corpus_of_the_users_own_is_read(tmp_path: Path):
    text = tmp_path / "own.txt"
    text.write_text("the cat sat on the mat, and the dog ran in. " * 60)
    found = document(heads("--roles", "bos_sink", "--corpus", text, "--json"))
    assert found["detail"]["texts"]["source"] == "own.txt"
    text.write_text("the cat")
    assert "expected a corpus of at least" in refusal_among_notes(heads("--corpus", text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--roles", "nothing"), "expected roles of previous_token"),
        (("--corpus", "no-such-file"), "expected a text file, got 'no-such-file'"),
        (("--sequences", "3"), "expected at least 8 sequences"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(arguments: tuple, message: str):
    line = call("heads", "--model", model_folder(), *FEW[2:], *arguments)
    assert message in refusal_among_notes(line)


def refusal_among_notes(result) -> str:
    """The last line on stderr; what is being asked is said before it."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]
