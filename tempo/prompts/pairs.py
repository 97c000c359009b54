"""Paired scenarios of a concept: two texts that differ in the concept and little else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tempo.errors import InputError

BUNDLED_PAIRS = ("urgency",)
# The unit of the statistics is the scenario, and below 8 units tempo gives no interval.
FEWEST_PAIRS = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """One scenario with the concept (positive) and without it (negative)."""

    id: str
    positive: str
    negative: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Scenarios of one concept.

    Attributes:
        name: Name of the bundled file, or the stem of the user's file.
    """

    name: str
    pairs: tuple[Pair, ...]


def load_pairs(source: str | Path) -> Pairs:
    """Bundled pairs by name, or rows `{"id", "positive", "negative"}` of a `.jsonl` file.

    Raises:
        InputError: No such file; a row that is not a pair (the message names the line); a side
            that is missing, or the same on both sides; fewer than 8 scenarios.
    """
    name = str(source)
    if name in BUNDLED_PAIRS:
        file = files("tempo.prompts") / f"pairs_{name}.jsonl"
        return _pairs(file.read_text(encoding="utf-8"), name, name)
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"expected pairs of {', '.join(BUNDLED_PAIRS)} or a .jsonl file, got {name!r}; "
            "check the path"
        )
    try:
        return _pairs(path.read_text(encoding="utf-8"), path.stem, path.name)
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in {name}, got {error}; convert it") from None


def _pairs(text: str, name: str, place: str) -> Pairs:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    found = tuple(_pair(line, f"{place}, line {number}") for number, line in lines)
    ids = [pair.id for pair in found]
    repeated = sorted({each for each in ids if ids.count(each) > 1})
    if repeated:
        raise InputError(f"expected one row for each id in {place}, got {repeated[0]!r} twice")
    for side in ("positive", "negative"):
        texts = [getattr(pair, side) for pair in found]
        # A repeated text is not an independent scenario and would make intervals too narrow.
        again = [pair.id for n, pair in enumerate(found) if texts[n] in texts[:n]]
        if again:
            raise InputError(
                f"expected different {side} texts in {place}, got that of {again[0]!r} twice: "
                "repeated texts are no further scenarios; leave one out"
            )
    if len(found) < FEWEST_PAIRS:
        scenarios = "one scenario" if len(found) == 1 else f"{len(found)} scenarios"
        raise InputError(
            f"expected at least {FEWEST_PAIRS} paired scenarios in {place}, got {scenarios}: "
            "so few say more of themselves than of the concept; add pairs"
        )
    return Pairs(name, found)


def _pair(line: str, place: str) -> Pair:
    expected = 'expected {"id": ..., "positive": ..., "negative": ...}'
    try:
        row: Mapping[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{expected} in {place}, got {error}") from None
    if not isinstance(row, dict) or not {"id"} <= set(row) <= {"id", "positive", "negative"}:
        raise InputError(f"{expected} in {place}, got {line[:60]!r}")
    sides = {side: row.get(side) for side in ("positive", "negative")}
    missing = [side for side, text in sides.items() if not (isinstance(text, str) and text.strip())]
    if missing:
        raise InputError(
            f"expected a positive and a negative text in {place}, got no {' and no '.join(missing)}"
            ": unbalanced pairs confound the concept with the scenario; give both"
        )
    if sides["positive"] == sides["negative"]:
        raise InputError(f"expected two different texts in {place}, got the same twice; change one")
    return Pair(str(row["id"]), str(sides["positive"]), str(sides["negative"]))
