"""The tables of a census of heads as data, for whoever shows or stores them."""

from collections.abc import Callable, Iterable, Mapping
from math import nan
from typing import Any

import numpy as np

from tempo.vocabulary import Head
from tempo_analysis.report.document import interval_of, number_of
from tempo_analysis.report.table import Column, Table
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
    columns = (
        Column("role", "role", "text", lambda role, reason: label_of(role)),
        Column("reason", "reason", "text", lambda role, reason: reason),
    )
    return Table.of("refusals", "Not answered", columns, document["refused"].items())


def _roles(document: HeadsDocument, roles: Iterable[RoleHeads]) -> Table:
    def depth(role: RoleHeads, name: str) -> Interval | None:
        found = document["depth"].get(role.role)
        # A role without a score for any head has no depth either.
        return interval_of(found[name]) if found and name in found and role.best_first() else None

    columns = (
        Column("role", "role", "text", lambda role: label_of(role.role)),
        Column("assigned", "assigned", "count", lambda role: len(role.holders())),
        Column("best", "best heads", "text", _best_heads),
        Column("score", "score", "number", _best_score),
        Column("threshold", "threshold", "number", lambda role: role.threshold),
        Column("chance", "chance", "number", lambda role: role.mean_chance()),
        Column("null_p99", "null p99", "number", lambda role: role.null_p99),
        *_ends("centroid", "depth", lambda role: depth(role, "centroid")),
        *_ends("median", "median depth", lambda role: depth(role, "median_of_best")),
        Column("unit", "unit", "text", lambda role: role.unit),
    )
    return Table.of("roles", "Roles", columns, roles, _ROLES_NOTE)


def _best_heads(role: RoleHeads) -> str:
    return " ".join(map(str, role.best_first()[:N_BEST]))


def _best_score(role: RoleHeads) -> float:
    best = role.best_first()
    return float(role.score[best[0]]) if best else nan


def _comparison(document: HeadsDocument) -> Table:
    """Nothing where one model alone was asked."""
    found = document.get("comparison", {"first": "", "second": "", "roles": {}})

    def n_heads(side: str) -> Column:
        heading = f"heads, {found[side]}"
        return Column(
            f"{side}_assigned", heading, "count", lambda role, row: int(row[side]["n_assigned"])
        )

    def depth(side: str) -> Column:
        def centroid(_: str, row: Mapping[str, Any]) -> float:
            return number_of(row[side]["centroid"]["estimate"])

        return Column(f"{side}_depth", f"depth, {found[side]}", "number", centroid)

    columns = (
        Column("role", "role", "text", lambda role, row: label_of(role)),
        *map(n_heads, ("first", "second")),
        *map(depth, ("first", "second")),
        *_ends("difference", "difference", lambda role, row: interval_of(row["difference"])),
        Column("verdict", "verdict", "text", lambda role, row: str(row["verdict"])),
    )
    items = found["roles"].items()
    return Table.of("comparison", "Beside the other model", columns, items, _COMPARISON_NOTE)


def _holders(document: HeadsDocument, roles: Iterable[RoleHeads]) -> Table:
    losses = losses_of(document)
    columns = (
        Column("role", "role", "text", lambda role, head: label_of(role.role)),
        Column("head", "head", "text", lambda role, head: str(head)),
        *map(_score, ("score", "low", "high", "chance")),
        Column("null_p99", "null p99", "number", lambda role, head: role.null_p99),
        *map(_score, ("q", "percentile")),
        Column("n", "n", "count", lambda role, head: int(role.column["n"][head])),
        *_ends("loss", "loss, nats", lambda role, head: losses.get(head)),
    )
    items = ((role, head) for role in roles for head in role.holders())
    return Table.of("role_heads", "Heads that hold a role", columns, items, _HEADS_NOTE)


def _score(name: str) -> Column:
    return Column(name, name, "number", lambda role, head: role.column[name][head])


def _losses(document: HeadsDocument, roles: Iterable[RoleHeads]) -> Table:
    held = list(roles)

    def roles_held(head: Head, _: Interval) -> str:
        return ", ".join(label_of(role.role) for role in held if role.assigned[head])

    columns = (
        Column("head", "head", "text", lambda head, loss: str(head)),
        Column("roles", "roles", "text", roles_held),
        *_ends("loss", "loss, nats", lambda head, loss: loss),
        Column("n", "n", "count", lambda head, loss: loss.n),
    )
    items = sorted(losses_of(document).items(), key=lambda each: -each[1].estimate)
    return Table.of("silenced", "Heads silenced", columns, items, _LOSS_NOTE)


def _spectrum(document: HeadsDocument) -> Table:
    found = spectrum_of(document)
    columns = [Column("head", "head", "text", lambda *head: str(Head(*head)))]
    for name, (value, chance) in found.items():
        columns += [_by_head(name, label_of(name), value)]
        columns += [_by_head(f"{name}_chance", f"{label_of(name)}, even rows", chance)]
    shape = next(iter(found.values()))[0].shape if found else (0, 0)
    items = np.ndindex(*shape)
    return Table.of("spectrum", "How every head spreads", columns, items, _SPECTRUM_NOTE)


def _by_head(key: str, heading: str, values: np.ndarray) -> Column:
    return Column(key, heading, "number", lambda *head: values[head])


def _facts(document: HeadsDocument) -> Table:
    columns = (
        Column("fact", "fact", "text", lambda fact, value: fact),
        Column("value", "value", "text", lambda fact, value: value),
    )
    return Table.of("facts", "How this was made", columns, census_facts(document).items())


def _ends(key: str, heading: str, get: Callable[..., Interval | None]) -> tuple[Column, ...]:
    """Three numbers: an estimate without limits keeps its cell."""

    def end(name: str) -> Callable[..., float]:
        return lambda *item: getattr(get(*item), name, nan)

    return (
        Column(key, heading, "number", end("estimate")),
        Column(f"{key}_low", "low", "number", end("low")),
        Column(f"{key}_high", "high", "number", end("high")),
    )


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
