"""How goldens are kept, small and free of what is unstable, and how two are compared whole."""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

GOLDEN = Path(__file__).parent / "golden"
PROCESSOR = GOLDEN / "processor.txt"
TOLERANCE, ELSEWHERE = 1e-6, 2e-5
"""Absolute and relative. ELSEWHERE is for other float32 kernels, which were seen to differ by 5e-6
after two layers; there, a number in prose may also differ by one in its last digit."""
DIGITS = 7
"""Of a float in a golden: more would be rounding, and bytes."""

# What differs between machines and runs, though nothing is wrong: by key in a document, by line in
# a table or a report. The hashes are of float32 bits, which differ between processors.
UNSTABLE_KEYS = {"versions", "command", "fingerprint", "configuration_hash", "sha256"}
UNSTABLE_LINES = re.compile(r"^(\| )?(\S+ version|command|model fingerprint)\b")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
INNERMOST = re.compile(r"\[[^\[\]{}]*\]|\{[^\[\]{}]*\}")


def kept(file: Path, model: str) -> str:
    """The text of a file as it is kept: `model` is a path, and so unstable too."""
    text = file.read_text().replace(model, "TINY")
    if file.suffix == ".json":
        text = json.dumps(_stable(json.loads(text)), indent=1, ensure_ascii=False)
        text = INNERMOST.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    else:
        text = "".join(each for each in text.splitlines(True) if not UNSTABLE_LINES.match(each))
    return NUMBER.sub(_shorter, text).rstrip("\n") + "\n"


def differences(name: str, golden: str, text: str) -> list[str]:
    """Where two files differ; the first place alone where the places are not the same."""
    old, new = list(_leaves(name, golden)), list(_leaves(name, text))
    for (place, _), (found, _) in zip(old, new, strict=False):
        if place != found:
            return [f"{name}: expected {place}, got {found}"]
    if len(old) != len(new):
        place, _ = max(old, new, key=len)[min(len(old), len(new))]
        return [f"{name}: expected {len(old)} values, got {len(new)}; one has no {place}"]
    return [
        f"{name}: {place}: expected {one!r}, got {other!r}"
        for (place, one), (_, other) in zip(old, new, strict=True)
        if not same(one, other)
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same; numbers within a text are compared as numbers."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return _close(one, other)
    if not isinstance(one, str):
        return one == other
    numbers = zip(NUMBER.findall(one), NUMBER.findall(other), strict=False)
    words_are_same = NUMBER.split(one) == NUMBER.split(other)
    return words_are_same and all(_same_printed(*pair) for pair in numbers)


def rounding_of_processor() -> str:
    """A hash of what torch alone makes of some numbers: the same where every bit would be."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator) for size in ((12, 64), (64, 128)))
    rows = torch.nn.functional.silu(left @ right).log_softmax(-1)
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


@cache
def is_processor_of_goldens() -> bool:
    return PROCESSOR.read_text().strip() == rounding_of_processor()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(each) for key, each in value.items() if key not in UNSTABLE_KEYS}
    return [_stable(each) for each in value] if isinstance(value, list) else value


def _shorter(number: re.Match[str]) -> str:
    """A number with fewer digits, and still a float where it was one."""
    if len(number[0]) <= DIGITS or number[0].lstrip("+-").isdigit():
        return number[0]
    text = f"{float(number[0]):.{DIGITS}g}"
    return text if re.search(r"[.e]", text) else f"{text}.0"


def _leaves(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """Every value of a file in its order, with its place."""
    if name.endswith(".json"):
        yield from _leaves_of(json.loads(text), "")
    elif name.endswith(".csv"):
        header, *rows = csv.reader(io.StringIO(text))
        yield "header", ",".join(header)
        for line, row in enumerate(rows, 2):
            cells = zip(header, row, strict=True)
            yield from ((f"line {line}, {key}", cell) for key, cell in cells)
    else:
        yield from ((f"line {line}", each) for line, each in enumerate(text.splitlines(), 1))


def _leaves_of(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(each, dict | list) and each:
            yield from _leaves_of(each, f"{place}/{key}")
        else:
            yield f"{place}/{key}", each


def _same_printed(one: str, other: str) -> bool:
    """Whether two numbers in a text are the same; whole ones exactly."""
    decimals = max(len(each.partition(".")[2]) for each in (one, other))
    if not decimals:
        return one == other
    slack = 0.0 if is_processor_of_goldens() else 1.01 * 10.0**-decimals
    return _close(float(one), float(other), slack)


def _close(one: float, other: float, slack: float = 0.0) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    tolerance = TOLERANCE if is_processor_of_goldens() else ELSEWHERE
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=max(tolerance, slack))
