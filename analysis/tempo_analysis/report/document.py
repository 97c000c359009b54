"""How findings are written: numbers in words, documents as JSON, files whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo.vocabulary import Head
from tempo_analysis.stats.intervals import Interval


def write_atomic(path: Path, text: str) -> None:
    """Write a file under another name and move it into place; line ends are kept as they are."""
    # In the same folder: a rename is atomic only within one file system.
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(path)


DASH = "\u2013"


def number(value: float) -> str:
    """Three significant digits; a dash where there are no data."""
    return f"{value:.3g}" if np.isfinite(value) else DASH


def stated(found: Interval) -> str:
    """A number with its interval, or alone where there is none."""
    # Estimates of fewer than 8 prompts have no limits; a pair of dashes would tell no more.
    return limits(found) if np.isfinite(found.low) else number(found.estimate)


def limits(found: Interval | None) -> str:
    """A number with its interval; dashes where there are none."""
    if found is None or not found.n:
        return DASH
    return f"{number(found.estimate)} ({number(found.low)} to {number(found.high)})"


Document = dict[str, Any]


def plain(value: Any) -> Any:
    """Dataclasses, arrays and mappings as JSON values; NaN and infinities become `None`.

    A head is its label; a key that is no text is written as `str` writes it.

    Example:
        >>> plain({"mean": float("nan"), "head": Head(3, 5)})
        {'mean': None, 'head': 'L3H5'}
    """
    if isinstance(value, Head):  # before tuples: a head is one
        return str(value)
    if is_dataclass(value):
        return {column.name: plain(getattr(value, column.name)) for column in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    # tolist gives Python numbers, which then go through the test for NaN below.
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        # JSON has no NaN and no infinity.
        return value if np.isfinite(value) else None
    return value


def json_text(document: Mapping[str, Any]) -> str:
    """A document as written to disk; the same values give the same text.

    Raises:
        ValueError: A number is NaN or infinite; `plain` replaces those by `None`.
    """
    # Keys in the order given, which is that of the fields; the same results give the same bytes.
    return json.dumps(document, allow_nan=False, indent=1) + "\n"


def number_of(value: float | int | None) -> float:
    """A number of a document; NaN for `None`."""
    return float("nan") if value is None else float(value)


def interval_of(value: Mapping[str, Any]) -> Interval:
    """An interval of a document."""
    ends = (number_of(value[name]) for name in ("estimate", "low", "high"))
    return Interval(*ends, n=int(value["n"]), method=str(value["method"]))


def array_of(values: Any) -> Float64[np.ndarray, "..."]:
    """Nested lists of numbers as an array; NaN for `None`."""
    return np.array(values, dtype=np.float64)  # numpy reads None as NaN where the type is a float
