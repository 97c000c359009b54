"""The shipped suites carry published numbers, so their rows are held to a standard of their own.

The files are read as plain JSON lines, without the code that loads suites.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

SUITES = Path(__file__).parents[2] / "tempo" / "prompts"
CATEGORIES = {
    "narrative",
    "factual",
    "technical",
    "conversational",
    "simple",
    "complex",
    "question",
    "incomplete",
    "list",
    "code",
}


def rows_of(suite: str) -> list[dict[str, str]]:
    text = (SUITES / f"{suite}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


CRAFTED = {"bigram", "phrase", "code", "sequence", "repetition", "structure"}

both_suites = pytest.mark.parametrize("suite", ["standard", "demo"])
every_suite = pytest.mark.parametrize("suite", ["standard", "demo", "crafted"])


def test_the_standard_suite_has_at_least_a_hundred_prompts():
    assert len(rows_of("standard")) >= 100


def test_the_standard_suite_has_at_least_ten_prompts_of_each_of_ten_categories():
    counts = Counter(row["category"] for row in rows_of("standard"))
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 10


def test_standard_ids_are_their_category_and_a_running_number():
    seen = Counter[str]()
    for row in rows_of("standard"):
        seen[row["category"]] += 1
        assert row["id"] == f"{row['category']}-{seen[row['category']]:02d}"


def test_the_demo_suite_has_twelve_prompts_of_every_category_and_opens_with_the_cat():
    rows = rows_of("demo")
    assert len(rows) == 12
    assert {row["category"] for row in rows} == CATEGORIES
    assert rows[0]["text"] == "The cat sat on the"


def test_the_crafted_suite_has_at_least_eight_prompts_of_each_of_its_categories():
    rows = rows_of("crafted")
    counts = Counter(row["category"] for row in rows)
    assert len(rows) >= 45
    assert set(counts) == CRAFTED
    assert min(counts.values()) >= 8


def test_crafted_ids_are_their_category_and_a_running_number():
    seen = Counter[str]()
    for row in rows_of("crafted"):
        seen[row["category"]] += 1
        assert row["id"] == f"crafted-{row['category']}-{seen[row['category']]:02d}"


@every_suite
def test_a_row_is_an_id_a_category_and_a_text(suite: str):
    rows = rows_of(suite)
    assert all(list(row) == ["id", "category", "text"] for row in rows)
    assert all(isinstance(value, str) and value for row in rows for value in row.values())


@every_suite
def test_no_prompt_begins_or_ends_in_white_space(suite: str):
    assert [row["id"] for row in rows_of(suite) if row["text"] != row["text"].strip()] == []


@both_suites
def test_no_prompt_ends_a_sentence(suite: str):
    ended = [row["id"] for row in rows_of(suite) if row["text"].endswith((".", "!", "?"))]
    # A numbered item and a method call also end in a dot, and both go on.
    assert set(ended) <= {"list-06", "code-09"}


def test_ids_and_texts_are_unique_across_the_suites():
    rows = rows_of("standard") + rows_of("demo") + rows_of("crafted")
    assert max(Counter(row["id"] for row in rows).values()) == 1
    assert max(Counter(row["text"].casefold() for row in rows).values()) == 1
