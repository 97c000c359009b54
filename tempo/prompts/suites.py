"""Prompt suites: the bundled ones and JSON lines of the user."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tempo.errors import InputError
from tempo.trace.run import Prompt

BUNDLED_SUITES = ("standard", "demo", "crafted")
# File systems allow 255 bytes in a name, and an id is part of longer names.
LONGEST_ID = 120
"""In bytes; an id names a folder and a file."""


def load_suite(name: str | Path) -> tuple[Prompt, ...]:
    """A bundled suite by name, or rows `{"id", "category", "text"}` of a `.jsonl` file.

    Args:
        name: "standard", "demo", "crafted", or the path of a file; categories may be left out.

    Returns:
        Prompts in the order of the file, as `tempo.generate`, `tempo.compare` and studies take
        them.

    Raises:
        InputError: No such suite, or a row that is not a prompt; the message names the line.

    Example:
        >>> tempo.compare(model, tempo.load_suite("demo"), out="runs/demo")
    """
    name = str(name)
    if name in BUNDLED_SUITES:
        return _prompts(
            (files("tempo.prompts") / f"{name}.jsonl").read_text(encoding="utf-8"), name
        )
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"expected a suite of {', '.join(BUNDLED_SUITES)} or a .jsonl file, got {name!r}"
        )
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
    # Ids name folders, and some disks do not tell upper from lower case.
    ids = [prompt.id.casefold() for prompt in prompts]
    repeated = sorted({one for one in ids if ids.count(one) > 1})
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
    if not all(isinstance(value, str) and value for value in (row["id"], row["text"])):
        raise InputError(f"{expected} with text in both, in {place}, got {line[:60]!r}")
    if not _names_a_folder(row["id"]):
        raise InputError(
            f"expected an id of at most {LONGEST_ID} bytes without slash or control character, "
            f"in {place}, got {row['id'][:60]!r}; rename it"
        )
    return Prompt(row["id"], row["text"], str(row.get("category", "")))


def _names_a_folder(identifier: str) -> bool:
    """Whether an id can be the name of a folder on any file system."""
    # A slash or backslash would make a path of the id, and leave the run folder.
    plain = identifier.isprintable() and not set(identifier) & set("/\\")
    return plain and identifier not in (".", "..") and len(identifier.encode()) <= LONGEST_ID
