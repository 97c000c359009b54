"""The tables of a census of heads as data, for whoever shows or stores them."""

from collections.abc import Iterable, Mapping
from typing import Any

from tempo.vocabulary import Head
from tempo_analysis.report.document import interval_of, number_of
from tempo_analysis.report.table import Cell, Column, Kind, Table
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.heads.result import (
    HeadsDocument,
    RoleHeads,
    label_of,
    losses_of,
    roles_of,
    spectrum_of,
)

N_BEST = 5
NONE = float("nan")

_ROLES_NOTE = (
    "A head holds a role only if its score is above the threshold, above the 99th percentile of "
    "the null pooled over heads, and above its own control at q < 0.05 (Benjamini-Hochberg over "
    "heads). Depth runs from 0, the first layer, to 1, the last: the centroid weighs layers by "
    "score above chance, the median is that of the five best heads."
)
_HEADS_NOTE = (
    "Every head that holds a role, best first. The interval is over sequences; a score that "
    "weights decide has none. Percentile: the share of all heads that score no higher. Loss: what "
    "silencing the head adds, in nats per token; a dash means not silenced."
)
_COMPARISON_NOTE = (
    "Depth is the centroid of the score above chance, from 0 to 1; the difference is that of the "
    "first model less that of the second."
)
_SPECTRUM_NOTE = (
    "How each head spreads its rows, mean over queries and texts, beside the same for even rows "
    "where they have a value. No verdict is made of these."
)
_LOSS_NOTE = (
    "Added loss in nats per token where the output of one head is replaced by zeros. An interval "
    "that holds 0 says that nothing was seen on these few texts."
)


def census_tables(document: HeadsDocument) -> tuple[Table, ...]:
    """Every table of a census that has a row.

    Raises:
        CorruptTraceError: The document lacks what a census has.
    """
    roles = roles_of(document)
    tables = (
        _refusals(document),
        _roles(document, roles),
        _comparison(document),
        _holders(document, roles),
        _losses(document, roles),
        _spectrum(document),
        _facts(document),
    )
    return tuple(table for table in tables if table.rows)


def census_facts(document: HeadsDocument) -> dict[str, str]:
    """How the census was made: model, sequences, corpus, what the tokenizer kept and lost."""
    detail = document["detail"]
    model = {f"model {key}": each for key, each in document["model_facts"].items()}
    asked = dict(detail.get("battery", {}))
    asked["roles"] = ", ".join(asked.get("roles", ()))
    texts = {f"texts {key}": each for key, each in detail.get("texts", {}).items()}
    if texts.get("texts bos", 0) is None:
        texts["texts bos"] = "none: the tokenizer puts no token first"
    further = {
        "families of words": detail.get("successor_runs", {}).get("families"),
        "lost words": detail.get("successor_runs", {}).get("lost_words"),
        "lost names": detail.get("names", {}).get("lost_names"),
        "names": detail.get("names", {}).get("refused"),
        "name movers": detail.get("names", {}).get("effect", {}).get("name_movers"),
        "needles found, of": list(detail.get("needles", {}).values()) or None,
        "what weights alone do not show": detail.get("weights", {}).get("left_out") or None,
        "sink rate, per cent": detail.get("sinks", {}).get("rate_percent"),
        "sink rate counts above": detail.get("sinks", {}).get("epsilon"),
        "receivers, correlation of halves": detail.get("receivers_split_half"),
        "loss on the texts, nats per token": detail.get("nll_nats", {}).get("mean"),
        **_silencing(detail.get("effects")),
    }
    facts = model | asked | texts | further
    return {key.replace("_", " "): _said(each) for key, each in facts.items() if each is not None}


def _refusals(document: HeadsDocument) -> Table:
    rows = (
        {"role": label_of(role), "reason": reason} for role, reason in document["refused"].items()
    )
    columns = _columns(text=("role", "reason"))
    return Table("refusals", "Not answered", "", columns, tuple(rows))


def _roles(document: HeadsDocument, roles: Iterable[RoleHeads]) -> Table:
    columns = (
        *_columns(text=("role",)),
        *_columns(count=("assigned",)),
        Column("best", "best heads", "text"),
        *_columns(number=("score", "threshold", "chance")),
        Column("null_p99", "null p99", "number"),
        *_depth_columns("centroid", "depth"),
        *_depth_columns("median", "median depth"),
        *_columns(text=("unit",)),
    )
    rows = (_role_row(role, document["depth"].get(role.role)) for role in roles)
    return Table("roles", "Roles", _ROLES_NOTE, columns, tuple(rows))


def _comparison(document: HeadsDocument) -> Table:
    """Nothing where one model alone was asked."""
    found = document.get("comparison", {"first": "", "second": "", "roles": {}})
    columns = (
        *_columns(text=("role",)),
        Column("first_assigned", f"heads, {found['first']}", "count"),
        Column("second_assigned", f"heads, {found['second']}", "count"),
        Column("first_depth", f"depth, {found['first']}", "number"),
        Column("second_depth", f"depth, {found['second']}", "number"),
        *_depth_columns("difference", "difference"),
        *_columns(text=("verdict",)),
    )
    rows = tuple(_comparison_row(role, row) for role, row in found["roles"].items())
    return Table("comparison", "Beside the other model", _COMPARISON_NOTE, columns, rows)


def _comparison_row(role: str, row: Mapping[str, Any]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"role": label_of(role), "verdict": str(row["verdict"])}
    for side in ("first", "second"):
        cells[f"{side}_assigned"] = int(row[side]["n_assigned"])
        cells[f"{side}_depth"] = number_of(row[side]["centroid"]["estimate"])
    return cells | _ends("difference", interval_of(row["difference"]))


def _role_row(role: RoleHeads, depth: Mapping[str, Any] | None) -> dict[str, Cell]:
    best = role.best_first()
    row: dict[str, Cell] = {
        "role": label_of(role.role),
        "assigned": len(role.holders()),
        "best": " ".join(map(str, best[:N_BEST])),
        "score": float(role.score[best[0]]) if best else NONE,
        "threshold": role.threshold,
        "chance": role.mean_chance(),
        "null_p99": role.null_p99,
        "unit": role.unit,
    }
    found = depth if depth is not None and best else {}
    for key, name in (("centroid", "centroid"), ("median", "median_of_best")):
        interval = interval_of(found[name]) if name in found else None
        row |= _ends(key, interval)
    return row


def _holders(document: HeadsDocument, roles: Iterable[RoleHeads]) -> Table:
    columns = (
        *_columns(text=("role", "head")),
        *_columns(number=("score", "low", "high", "chance")),
        Column("null_p99", "null p99", "number"),
        *_columns(number=("q", "percentile")),
        *_columns(count=("n",)),
        *_depth_columns("loss", "loss, nats"),
    )
    losses = losses_of(document)
    rows = tuple(_holder_row(role, head, losses) for role in roles for head in role.holders())
    return Table("role_heads", "Heads that hold a role", _HEADS_NOTE, columns, rows)


def _holder_row(role: RoleHeads, head: Head, losses: Mapping[Head, Interval]) -> dict[str, Cell]:
    names = ("score", "low", "high", "chance", "q", "percentile")
    numbers: dict[str, Cell] = {name: float(role.column[name][head]) for name in names}
    return {
        "role": label_of(role.role),
        "head": str(head),
        **numbers,
        "null_p99": role.null_p99,
        "n": int(role.column["n"][head]),
        **_ends("loss", losses.get(head)),
    }


def _losses(document: HeadsDocument, roles: Iterable[RoleHeads]) -> Table:
    held = list(roles)
    columns = (
        *_columns(text=("head", "roles")),
        *_depth_columns("loss", "loss, nats"),
        *_columns(count=("n",)),
    )
    rows = (
        {
            "head": str(head),
            "roles": ", ".join(label_of(role.role) for role in held if role.assigned[head]),
            **_ends("loss", loss),
            "n": loss.n,
        }
        for head, loss in sorted(losses_of(document).items(), key=lambda each: -each[1].estimate)
    )
    return Table("silenced", "Heads silenced", _LOSS_NOTE, columns, tuple(rows))


def _spectrum(document: HeadsDocument) -> Table:
    found = spectrum_of(document)
    columns = [*_columns(text=("head",))]
    for name in found:
        columns += [Column(name, label_of(name), "number")]
        columns += [Column(f"{name}_chance", f"{label_of(name)}, even rows", "number")]
    places = next(iter(found.values()))[0] if found else ()
    rows = tuple(
        {"head": str(Head(layer, head)), **_spectrum_cells(found, Head(layer, head))}
        for layer, row in enumerate(places)
        for head in range(len(row))
    )
    return Table("spectrum", "How every head spreads", _SPECTRUM_NOTE, tuple(columns), rows)


def _spectrum_cells(found: Mapping[str, Any], head: Head) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for name, (value, chance) in found.items():
        cells |= {name: float(value[head]), f"{name}_chance": float(chance[head])}
    return cells


def _facts(document: HeadsDocument) -> Table:
    rows = ({"fact": fact, "value": value} for fact, value in census_facts(document).items())
    return Table("facts", "How this was made", "", _columns(text=("fact", "value")), tuple(rows))


def _columns(**kinds: Iterable[str]) -> tuple[Column, ...]:
    """Columns whose heading is their key, by kind."""
    return tuple(Column(key, key, _KINDS[kind]) for kind, keys in kinds.items() for key in keys)


_KINDS: Mapping[str, Kind] = {"text": "text", "number": "number", "count": "count"}


def _depth_columns(key: str, heading: str) -> tuple[Column, ...]:
    """Three numbers: an estimate without limits keeps its cell."""
    ends = {key: heading, f"{key}_low": "low", f"{key}_high": "high"}
    return tuple(Column(name, shown, "number") for name, shown in ends.items())


def _ends(key: str, found: Interval | None) -> dict[str, Cell]:
    ends = (NONE,) * 3 if found is None else (found.estimate, found.low, found.high)
    return {key: ends[0], f"{key}_low": ends[1], f"{key}_high": ends[2]}


def _silencing(effects: Mapping[str, Any] | None) -> dict[str, Any]:
    if not effects or "texts" not in effects:
        return {}
    base = number_of(effects["base_nll"])
    said = f"by {effects['replacement']}, on {effects['texts']} texts of {effects['tokens']} tokens"
    left = f"{effects['left_out']} further heads that hold a role were not silenced"
    return {"heads silenced": f"{said} with a loss of {base:.4g} nats; {left}"}


def _said(value: Any) -> str:
    """A value in one line; what cannot be seen is written as Python writes it."""
    if isinstance(value, list | tuple):
        parts = [each if str(each).isprintable() else repr(each) for each in value]
        return "; ".join(map(str, parts)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
