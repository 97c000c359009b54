"""The document of a census of attention heads, read back as arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from tempo.errors import CorruptTraceError, InputError
from tempo.trace.store import read_json
from tempo.vocabulary import Head, parse_head
from tempo_analysis.report.document import DASH, Document, array_of, interval_of, number, number_of
from tempo_analysis.report.notebook import (
    cells_markup,
    refused_markup,
    region_markup,
    shown_markup,
    table_markup,
)
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.stats.intervals import Interval

HeadsDocument = Mapping[str, Any]

COLUMNS = ("score", "chance", "low", "high", "q", "percentile", "n")
_WORDS = {"ov": "OV", "qk": "QK", "bos": "BOS", "s": "S", "nll": "NLL"}
_MEASURES = {
    "entropy_nats": "entropy, nats",
    "normalised": "entropy / ln n",
    "entropy_without_sink_nats": "entropy without slot 0, nats",
    "normalised_without_sink": "entropy / ln n without slot 0",
    "effective_keys": "effective keys, exp H",
    "max_weight": "largest weight",
    "participation": "1 / sum of squared weights",
    "distance": "mean distance",
    "distance_without_sink": "mean distance without slot 0",
    "value_share_of_sink": "share written from slot 0",
}
_APART = ("spectrum", "offsets", "effects")
"""Details that have readers of their own."""


@dataclass(frozen=True, slots=True)
class RoleHeads:
    """One role for every head, as the document has it; NaN where it says nothing.

    Attributes:
        role: Its name.
        is_further: Whether it is a further version of a role, listed apart.
        unit: What a score is a share, multiple or difference of.
        threshold: A role needs a score above this, and above `null_p99`.
        column: Each of `COLUMNS`, for every head.
        assigned: Whether the head holds the role.
    """

    role: str
    is_further: bool
    unit: str
    threshold: float
    null_p99: float
    column: Mapping[str, ByHead]
    assigned: Bool[np.ndarray, "layer head"]

    @property
    def score(self) -> ByHead:
        """The score of every head."""
        return self.column["score"]

    def mean_chance(self) -> float:
        """Over heads; NaN where none has one."""
        known = self.column["chance"][~np.isnan(self.column["chance"])]
        return float(known.mean()) if len(known) else float("nan")

    def best_first(self) -> list[Head]:
        """Heads with data, by falling score."""
        order = np.argsort(-np.nan_to_num(self.score, nan=-np.inf), axis=None, kind="stable")
        places = (divmod(int(place), self.score.shape[1]) for place in order)
        return [Head(*place) for place in places if not np.isnan(self.score[place])]

    def holders(self) -> list[Head]:
        """Heads that hold the role, best first."""
        return [head for head in self.best_first() if self.assigned[head]]


def label_of(name: str) -> str:
    """A role or measure of the document in words: `ov_copying` is `OV copying`."""
    if name in _MEASURES:
        return _MEASURES[name]
    words = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return words.replace("S inhibition", "S-inhibition")


def shape_of(document: HeadsDocument) -> tuple[int, int]:
    """Layers and heads of the model.

    Raises:
        CorruptTraceError: The document does not say.
    """
    try:
        facts = document["model_facts"]
        return int(facts["n_layers"]), int(facts["n_heads"])
    except (KeyError, TypeError, ValueError):
        raise CorruptTraceError(
            "expected n_layers and n_heads in model_facts of a census, got none; make it again"
        ) from None


def roles_of(document: HeadsDocument) -> tuple[RoleHeads, ...]:
    """Every role that was answered, in the order of the document.

    Raises:
        CorruptTraceError: A role lacks a column, or names a head that the model does not have.
    """
    shape = shape_of(document)
    try:
        return tuple(
            _role(role, entries, document["rules"][role], shape, group == "more_roles")
            for group in ("roles", "more_roles")
            for role, entries in document[group].items()
        )
    except (KeyError, TypeError, ValueError, IndexError, InputError) as error:
        raise CorruptTraceError(
            f"expected every role of a census to score the {shape[0]} x {shape[1]} heads of its "
            f"model, got {error!r}; make it again"
        ) from None


def spectrum_of(document: HeadsDocument) -> dict[str, tuple[ByHead, ByHead]]:
    """Measures of how each head spreads its rows: value, and chance for even rows."""
    found = document["detail"].get("spectrum", {})
    return {
        name: (array_of(column["value"]), array_of(column["chance"]))
        for name, column in found.items()
    }


def losses_of(document: HeadsDocument) -> dict[Head, Interval]:
    """Added loss of every head that was silenced."""
    found = document["detail"].get("effects", {}).get("heads", {})
    return {parse_head(name): interval_of(value) for name, value in found.items()}


def further_of(document: HeadsDocument) -> dict[str, ByHead]:
    """Whatever else the document has for every head, by where it stands: `weights suppression qk`.

    Estimates that are known for some heads only, as effects of silencing them, are NaN elsewhere.
    """
    shape = shape_of(document)
    rest = {name: each for name, each in document["detail"].items() if name not in _APART}
    return {
        label_of("_".join(path).replace(" ", "_")): values
        for path, values in _found(rest, shape, ())
    }


def _role(
    role: str,
    entries: list[dict[str, Any]],
    rule: Mapping[str, Any],
    shape: tuple[int, int],
    is_further: bool,
) -> RoleHeads:
    column = {name: np.full(shape, np.nan) for name in COLUMNS}
    assigned = np.zeros(shape, bool)
    for entry in entries:
        head = parse_head(entry["head"])
        assigned[head] = bool(entry["assigned"])
        for name in COLUMNS:
            column[name][head] = number_of(entry[name])
    return RoleHeads(
        role=role,
        is_further=is_further,
        unit=str(rule["unit"]),
        threshold=number_of(rule["threshold"]),
        null_p99=number_of(rule["null_p99"]),
        column=column,
        assigned=assigned,
    )


def _found(
    value: Any, shape: tuple[int, int], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], ByHead]]:
    """Arrays of the shape, and mappings from heads to intervals, at any depth."""
    if isinstance(value, list):
        if _is_by_head(value, shape):
            yield path, array_of(value)
    elif isinstance(value, Mapping):
        if value and all(_is_head(name) for name in value):
            yield from _of_some_heads(value, shape, path)
        else:
            for name, each in value.items():
                yield from _found(each, shape, (*path, str(name)))


def _of_some_heads(
    value: Mapping[str, Any], shape: tuple[int, int], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], ByHead]]:
    """One array for each interval that heads have; where that is all of them, under one name."""
    kinds = dict.fromkeys(kind for each in value.values() for kind in _intervals(each))
    for kind in kinds:
        array = np.full(shape, np.nan)
        for name, each in value.items():
            found = _intervals(each).get(kind, {})
            array[parse_head(name)] = number_of(found.get("estimate"))
        yield (*path, kind) if kind else path, array


def _intervals(value: Any) -> dict[str, Mapping[str, Any]]:
    """The interval that something is, or those it holds by name."""
    if not isinstance(value, Mapping):
        return {}
    if "estimate" in value:
        return {"": value}
    return {
        str(name): each
        for name, each in value.items()
        if isinstance(each, Mapping) and "estimate" in each
    }


def _is_head(name: object) -> bool:
    try:
        parse_head(str(name))
    except InputError:
        return False
    return True


def _is_by_head(value: list[Any], shape: tuple[int, int]) -> bool:
    rows = [row for row in value if isinstance(row, list)]
    flat = [cell for row in rows for cell in row]
    is_square = len(rows) == len(value) == shape[0] and {len(row) for row in rows} == {shape[1]}
    return is_square and all(cell is None or isinstance(cell, int | float) for cell in flat)


MOST_BEST = 5
_HEADINGS = ("role", "heads", "best heads", "chance", "null p99", "threshold")
_NOTE = (
    "A head holds a role if its score is above the threshold, above the 99th percentile of the "
    "null over heads, and above its own control at q &lt; 0.05. Scores stand behind the best "
    "heads, whether they hold the role or not."
)


def census_markup(document: Mapping[str, Any]) -> str:
    """Every role of a census with the heads that hold it and the best heads; what was refused.

    Raises:
        CorruptTraceError: The document lacks what a census has.
    """
    body = "".join(_role_row(role) for role in roles_of(document))
    refused = [f"{label_of(role)}: {reason}" for role, reason in document["refused"].items()]
    said = f"Heads of {shown_markup(str(document['model']))}. {_NOTE}"
    return region_markup("Heads", said, table_markup(_HEADINGS, body) + refused_markup(refused))


def _role_row(role: RoleHeads) -> str:
    best = ", ".join(f"{head} {number(role.score[head])}" for head in role.best_first()[:MOST_BEST])
    beside = [number(role.mean_chance()), number(role.null_p99), number(role.threshold)]
    return cells_markup([label_of(role.role), str(len(role.holders())), best or DASH, *beside])


FORMAT = 1
KIND = "tempo-heads"
CENSUS_FILE = "heads.json"


def read_census(path: Path) -> Document:
    """The document of a census, from its file or the folder that holds it.

    Raises:
        CorruptTraceError: There is none, or a damaged one.
    """
    place = Path(path)
    file = place / CENSUS_FILE if place.is_dir() else place
    return read_json(file, kind=KIND, format_number=FORMAT)
