"""Prediction tables as data, for whoever shows or stores them."""

from collections.abc import Iterator, Mapping, Sequence

from analysis.ablation.predictions import TOP, Prediction, PredictionTable, PromptTokens, Shift
from analysis.grid import Cell, Column, Table
from tempo.errors import InputError
from tempo.trace.glyphs import token_glyphs

PREDICTIONS = "predictions"
SHIFTS = "prediction_shifts"
_LONGEST = 400
"""A file keeps what a page cuts."""

_NOTE = (
    "Changes against the condition named, at the last position. Softmax ignores what all logits "
    "share: the change of the mean logit is that share, and log-probability is free of it. Both "
    "changes are of the token that the baseline predicts. Lists are ranked by the change of the "
    "raw logit: token, change of the logit, change of the log-probability."
)


def prediction_sheet(tables: Sequence[PredictionTable]) -> Table:
    """One row for each prompt and condition, the target first; NaN where the target has no change.

    Raises:
        InputError: Two prompts have one id.
    """
    check_prompts(tables)
    columns = (
        Column("id", "prompt", "text"),
        Column("category", "category", "text"),
        Column("prompt", "text", "text"),
        Column("at", "t", "count"),
        Column("token", "token t", "text"),
        Column("condition", "condition", "text"),
        Column("against", "against", "text"),
        Column("predicted_id", "id of predicted", "count"),
        Column("predicted", "predicted", "text"),
        Column("equals_target", "equals target", "text"),
        Column("logit", "Δ logit", "number"),
        Column("log_probability", "Δ log-prob, nats", "number"),
        Column("mean_logit", "Δ mean logit", "number"),
        Column("up", f"{TOP} most up", "text"),
        Column("down", f"{TOP} most down", "text"),
    )
    rows = tuple(_sheet_row(table.prompt, row) for table in tables for row in table.rows)
    return Table(PREDICTIONS, "Predictions", _NOTE, columns, rows)


def shift_sheet(tables: Sequence[PredictionTable]) -> Table:
    """One row for each token of every list.

    Raises:
        InputError: Two prompts have one id.
    """
    check_prompts(tables)
    columns = (
        Column("id", "prompt", "text"),
        Column("condition", "condition", "text"),
        Column("direction", "direction", "text"),
        Column("rank", "rank", "count"),
        Column("token_id", "token id", "count"),
        Column("token", "token", "text"),
        Column("logit", "Δ logit", "number"),
        Column("log_probability", "Δ log-prob, nats", "number"),
    )
    rows = tuple(row for table in tables for row in _shift_rows(table))
    return Table(SHIFTS, "Tokens that moved", _NOTE, columns, rows)


def check_prompts(tables: Sequence[PredictionTable]) -> None:
    """Refuse two tables of one prompt: their rows could not be told apart."""
    ids = [table.prompt.id for table in tables]
    repeated = sorted({one for one in ids if ids.count(one) > 1})
    if repeated:
        raise InputError(
            f"expected one prediction table for each prompt, got {repeated[0]!r} twice; give each "
            "prompt an id of its own"
        )


def _sheet_row(prompt: PromptTokens, row: Prediction) -> Mapping[str, Cell]:
    return {
        "id": prompt.id,
        "category": prompt.category,
        "prompt": "".join(map(_glyphs, prompt.tokens)),
        "at": prompt.at,
        "token": _glyphs(prompt.tokens[prompt.at]),
        "condition": row.condition,
        "against": row.against,
        "predicted_id": row.token,
        "predicted": _glyphs(row.text),
        "equals_target": "yes" if row.equals_target else "no",
        "logit": row.logit,
        "log_probability": row.log_probability,
        "mean_logit": row.mean_logit,
        "up": _listed(row.up),
        "down": _listed(row.down),
    }


def _shift_rows(table: PredictionTable) -> Iterator[Mapping[str, Cell]]:
    for row in table.conditions:
        for direction, shifts in (("up", row.up), ("down", row.down)):
            for rank, shift in enumerate(shifts, 1):
                yield {
                    "id": table.prompt.id,
                    "condition": row.condition,
                    "direction": direction,
                    "rank": rank,
                    "token_id": shift.token,
                    "token": _glyphs(shift.text),
                    "logit": shift.logit,
                    "log_probability": shift.log_probability,
                }


def _listed(shifts: Sequence[Shift]) -> str:
    """A glyph has no plain space, so spaces part its numbers from it."""
    return " | ".join(f"{_glyphs(s.text)} {s.logit:+.3g} {s.log_probability:+.3g}" for s in shifts)


def _glyphs(text: str) -> str:
    return token_glyphs(text, longest=_LONGEST)
