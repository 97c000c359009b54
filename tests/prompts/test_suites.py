"""Prompts of a user: rows that are refused, each with the line and what to do."""

import json
from pathlib import Path

import pytest

from tempo.errors import InputError
from tempo.prompts.suites import load_suite


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "a\nb", "a\0b", "x" * 121])
def test_an_id_that_can_name_no_folder_is_refused(tmp_path: Path, name: str):
    suite = tmp_path / "suite.jsonl"
    suite.write_text(json.dumps({"id": name, "category": "", "text": "a text"}) + "\n")
    with pytest.raises(InputError, match="expected an id of at most 120 bytes"):
        load_suite(str(suite))


def test_ids_that_are_one_folder_on_some_disks_are_refused(tmp_path: Path):
    suite = tmp_path / "suite.jsonl"
    rows = ({"id": name, "text": "a text"} for name in ("Cat", "cat"))
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="'cat' twice"):
        load_suite(str(suite))
