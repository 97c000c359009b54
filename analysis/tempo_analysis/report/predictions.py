"""What a model predicts under each condition, beside what it predicts as it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.special import log_softmax

from tempo.errors import InputError
from tempo.trace.glyphs import token_glyphs
from tempo_analysis.report.table import Column, Table

TARGET = "target"
"""The row of the untouched model, and the baseline of a condition that names no other."""

TOP = 20
_NO_DATA = float("nan")


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as the model reads it.

    Attributes:
        tokens: Texts of its tokens, raw.
        at: Place of the token t at which something is ablated, from 0.

    Raises:
        InputError: The place is none of the prompt's.
    """

    id: str
    category: str
    tokens: tuple[str, ...]
    at: int

    def __post_init__(self) -> None:
        if not 0 <= self.at < len(self.tokens):
            raise InputError(
                f"expected a place from 0 to {len(self.tokens) - 1} in prompt {self.id!r}, got "
                f"{self.at}; name a token of the prompt"
            )


@dataclass(frozen=True, slots=True)
class Shift:
    """How one token moved.

    Attributes:
        text: Raw text of the token.
        logit: Change of its raw logit.
        log_probability: Change of its log-probability, in nats.
    """

    token: int
    text: str
    logit: float
    log_probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one condition predicts at the last position.

    Attributes:
        against: The condition that the changes are measured from; empty for the target.
        token: Highest logit, the lowest id where several share it.
        text: Raw text of that token.
        equals_target: Whether the untouched model predicts the same token.
        logit: Change of the logit of the token that the baseline predicts; NaN for the target.
        log_probability: Change of its log-probability in nats; NaN for the target.
        mean_logit: Change of the mean over the vocabulary, which softmax ignores; NaN for the
            target.
        up: The tokens whose raw logit grew most, best first, ties by token id. Where all logits
            fell, those that fell least. Empty where no logit changed.
        down: The same from the other end.
    """

    condition: str
    against: str
    token: int
    text: str
    equals_target: bool
    logit: float = _NO_DATA
    log_probability: float = _NO_DATA
    mean_logit: float = _NO_DATA
    up: tuple[Shift, ...] = ()
    down: tuple[Shift, ...] = ()


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """One prompt under every condition.

    Attributes:
        target: What the untouched model predicts; it has no changes.
        conditions: In the order given.
    """

    prompt: PromptTokens
    target: Prediction
    conditions: tuple[Prediction, ...]

    @property
    def rows(self) -> tuple[Prediction, ...]:
        """The target, then every condition."""
        return (self.target, *self.conditions)


def prediction_table(
    prompt: PromptTokens,
    target: Float[np.ndarray, " vocab"],
    readouts: Mapping[str, Float[np.ndarray, " _"]],
    *,
    text_of: Callable[[int], str],
    baseline: Mapping[str, str] | None = None,
) -> PredictionTable:
    """Compare what is predicted under each condition with what its baseline predicts.

    Args:
        target: Logits of the untouched model at the last position.
        readouts: Logits there under each condition.
        text_of: Text of a token.
        baseline: For a condition, the other condition that it is compared with; the target where
            none is named. A reconstruction of the model is the baseline of its ablations.

    Raises:
        InputError: Logits that are NaN, infinite or of another vocabulary, a condition with the
            name of the target, or a baseline that is no other condition.
    """
    named = {} if baseline is None else baseline
    _check_names(list(readouts), named)
    logits = {TARGET: target, **readouts}
    for condition, values in logits.items():
        _check_logits(condition, values, len(target))
    exact = {condition: values.astype(np.float64) for condition, values in logits.items()}
    predicted = int(exact[TARGET].argmax())
    return PredictionTable(
        prompt,
        Prediction(TARGET, "", predicted, text_of(predicted), True),
        tuple(
            _compared(condition, named.get(condition, TARGET), exact, text_of)
            for condition in readouts
        ),
    )


def _compared(
    condition: str,
    against: str,
    logits: Mapping[str, Float64[np.ndarray, " vocab"]],
    text_of: Callable[[int], str],
) -> Prediction:
    own, base = logits[condition], logits[against]
    token, expected = int(own.argmax()), int(base.argmax())
    change = own - base
    log_change: Float64[np.ndarray, " vocab"] = log_softmax(own) - log_softmax(base)

    def shifts(order: Int64[np.ndarray, " vocab"]) -> tuple[Shift, ...]:
        ids = [int(one) for one in order[:TOP]] if change.any() else []
        return tuple(Shift(i, text_of(i), float(change[i]), float(log_change[i])) for i in ids)

    return Prediction(
        condition=condition,
        against=against,
        token=token,
        text=text_of(token),
        equals_target=token == int(logits[TARGET].argmax()),
        logit=float(change[expected]),
        log_probability=float(log_change[expected]),
        mean_logit=float(own.mean() - base.mean()),
        up=shifts(np.argsort(-change, kind="stable")),
        down=shifts(np.argsort(change, kind="stable")),
    )


def _check_names(conditions: Sequence[str], baseline: Mapping[str, str]) -> None:
    if TARGET in conditions:
        raise InputError(
            f"expected conditions of other names than {TARGET!r}, which is the untouched model; "
            "rename it"
        )
    known = {TARGET, *conditions}
    for condition, other in baseline.items():
        if condition not in conditions or other not in known or condition == other:
            raise InputError(
                f"expected a baseline that is another of {', '.join([TARGET, *conditions])}, got "
                f"{other!r} for {condition!r}; name two of them"
            )


def _check_logits(condition: str, logits: Float[np.ndarray, " _"], n_vocab: int) -> None:
    if logits.shape != (n_vocab,):
        raise InputError(
            f"expected {n_vocab} logits under {condition!r}, got {list(logits.shape)}; read the "
            "last position of the same model"
        )
    if not np.isfinite(logits).all():
        raise InputError(
            f"expected finite logits under {condition!r}, got {int((~np.isfinite(logits)).sum())} "
            "NaN or infinite; check the forward that gave them"
        )


PREDICTIONS = "predictions"
SHIFTS = "prediction_shifts"
_LONGEST = 400
"""A file keeps what a page cuts."""

_LOG_CHANGE = "Δ log-prob, nats"
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
        Column("id", "prompt", "text", lambda prompt, row: prompt.id),
        Column("category", "category", "text", lambda prompt, row: prompt.category),
        Column("prompt", "text", "text", lambda prompt, row: "".join(map(_glyphs, prompt.tokens))),
        Column("at", "t", "count", lambda prompt, row: prompt.at),
        Column("token", "token t", "text", lambda prompt, row: _glyphs(prompt.tokens[prompt.at])),
        Column("condition", "condition", "text", lambda prompt, row: row.condition),
        Column("against", "against", "text", lambda prompt, row: row.against),
        Column("predicted_id", "id of predicted", "count", lambda prompt, row: row.token),
        Column("predicted", "predicted", "text", lambda prompt, row: _glyphs(row.text)),
        Column("equals_target", "equals target", "text", _equals_target),
        Column("logit", "Δ logit", "number", lambda prompt, row: row.logit),
        Column("log_probability", _LOG_CHANGE, "number", lambda prompt, row: row.log_probability),
        Column("mean_logit", "Δ mean logit", "number", lambda prompt, row: row.mean_logit),
        Column("up", f"{TOP} most up", "text", lambda prompt, row: _listed(row.up)),
        Column("down", f"{TOP} most down", "text", lambda prompt, row: _listed(row.down)),
    )
    items = ((table.prompt, row) for table in tables for row in table.rows)
    return Table.of(PREDICTIONS, "Predictions", columns, items, _NOTE)


def shift_sheet(tables: Sequence[PredictionTable]) -> Table:
    """One row for each token of every list.

    Raises:
        InputError: Two prompts have one id.
    """
    check_prompts(tables)
    columns = (
        Column("id", "prompt", "text", lambda shift, rank, way, row, prompt: prompt.id),
        Column("condition", "condition", "text", lambda shift, rank, way, row, _: row.condition),
        Column("direction", "direction", "text", lambda shift, rank, way, *_: way),
        Column("rank", "rank", "count", lambda shift, rank, *_: rank),
        Column("token_id", "token id", "count", lambda shift, *_: shift.token),
        Column("token", "token", "text", lambda shift, *_: _glyphs(shift.text)),
        Column("logit", "Δ logit", "number", lambda shift, *_: shift.logit),
        Column("log_probability", _LOG_CHANGE, "number", lambda shift, *_: shift.log_probability),
    )
    items = (
        (shift, rank, direction, row, table.prompt)
        for table in tables
        for row in table.conditions
        for direction, shifts in (("up", row.up), ("down", row.down))
        for rank, shift in enumerate(shifts, 1)
    )
    return Table.of(SHIFTS, "Tokens that moved", columns, items, _NOTE)


def check_prompts(tables: Sequence[PredictionTable]) -> None:
    """Refuse two tables of one prompt: their rows could not be told apart."""
    ids = [table.prompt.id for table in tables]
    repeated = sorted({one for one in ids if ids.count(one) > 1})
    if repeated:
        raise InputError(
            f"expected one prediction table for each prompt, got {repeated[0]!r} twice; give each "
            "prompt an id of its own"
        )


def _equals_target(_: PromptTokens, row: Prediction) -> str:
    return "yes" if row.equals_target else "no"


def _listed(shifts: Sequence[Shift]) -> str:
    """A glyph has no plain space, so spaces part its numbers from it."""
    return " | ".join(f"{_glyphs(s.text)} {s.logit:+.3g} {s.log_probability:+.3g}" for s in shifts)


def _glyphs(text: str) -> str:
    return token_glyphs(text, longest=_LONGEST)
