"""Prompts: the bundled suites and a user's own JSON lines."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tempo.errors import InputError
from tempo.manifest import Prompt

BUNDLED = ("standard", "demo")


def load_suite(name: str) -> tuple[Prompt, ...]:
    """A bundled suite by name, or rows `{"id", "category", "text"}` of a `.jsonl` file.

    Raises:
        InputError: No such suite, or a row that is not a prompt; the message names the line.
    """
    if name in BUNDLED:
        return _prompts((files("tempo.suites") / f"{name}.jsonl").read_text(encoding="utf-8"), name)
    path = Path(name)
    if not path.is_file():
        raise InputError(f"expected a suite of {', '.join(BUNDLED)} or a .jsonl file, got {name!r}")
    try:
        return _prompts(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in {name}, got {error}") from None


def numbered(texts: tuple[str, ...]) -> tuple[Prompt, ...]:
    """Prompts given directly, with ids p0000, p0001, ..."""
    return tuple(Prompt(f"p{number:04d}", text) for number, text in enumerate(texts))


def _prompts(text: str, name: str) -> tuple[Prompt, ...]:
    rows = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    prompts = tuple(_prompt(line, f"{name}, line {number}") for number, line in rows)
    ids = [prompt.id for prompt in prompts]
    repeated = sorted({identifier for identifier in ids if ids.count(identifier) > 1})
    if not prompts or repeated:
        got = f"{repeated[0]!r} twice" if repeated else "no rows"
        raise InputError(f"expected rows with an id each in {name}, got {got}")
    return prompts


def _prompt(line: str, place: str) -> Prompt:
    expected = 'expected {"id": ..., "category": ..., "text": ...}'
    try:
        row: Mapping[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{expected} in {place}, got {error}") from None
    if not isinstance(row, dict) or set(row) - {"category"} != {"id", "text"}:
        raise InputError(f"{expected} in {place}, got {line[:60]!r}")
    if (
        not all(isinstance(value, str) and value for value in (row["id"], row["text"]))
        or "/" in row["id"]
    ):
        raise InputError(
            f"{expected} with text in both and no slash in the id, in {place}, got {line[:60]!r}"
        )
    return Prompt(row["id"], row["text"], str(row.get("category", "")))
