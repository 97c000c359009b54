"""What each member of a set got, and what the next prediction loses without it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from experiments.knockouts import Knock, Reference, divergence, full_readouts, knocked_readouts
from tempo.models.language_model import LanguageModel
from tempo.trace.trace import Trace
from tempo_analysis.parallel.relevance import value_weighted

PREDICTORS = ("attention", "value-weighted", "probability", "rank")
PROMPT_STEP = 0
Member = Float64[np.ndarray, " member"]


@dataclass(frozen=True, slots=True)
class KnockedSet:
    """One set of two or more members.

    Attributes:
        prompt: Place of its prompt.
        step: Which set.
        effect: KL in nats of the readout after the next set, with each member || without it.
        predictors: One row for each of `PREDICTORS`, more for what should matter more.
        stored_error: Largest difference of a stored log-probability to the one run again.
    """

    prompt: int
    step: int
    effect: Member
    predictors: Float64[np.ndarray, "predictor member"]
    stored_error: float


def knocked_sets(
    model: LanguageModel, traces: Sequence[Trace], *, batch: int
) -> Iterator[KnockedSet]:
    """Every set of two or more that another follows, each member knocked out in turn."""
    for start in range(0, len(traces), batch):
        some = traces[start : start + batch]
        references = [Reference(one.header.prompt_id, one.slots) for one in some]
        knocks = [knock for place in range(len(some)) for knock in _knocks(place, some[place])]
        full = full_readouts(model, references)
        without = knocked_readouts(model, references, knocks)
        effect = {
            (knock.reference, knock.slots[0]): divergence(
                full[knock.reference][knock.after], readout
            )
            for knock, readout in zip(knocks, without, strict=True)
        }
        for place, step in dict.fromkeys((knock.reference, knock.step) for knock in knocks):
            trace = some[place]
            slots = trace.members(step)
            yield KnockedSet(
                prompt=start + place,
                step=step,
                effect=np.array([effect[place, slot] for slot in slots.tolist()]),
                predictors=predictors(trace, step),
                stored_error=_stored_error(trace, step + 1, full[place][step + 1]),
            )


def predictors(trace: Trace, step: int) -> Float64[np.ndarray, "predictor member"]:
    """What says, before anything dies, that a member of a set may matter."""
    slots = trace.members(step)
    rows = trace.attention(step + 1)
    weighted = value_weighted(rows, trace.value_norm(step + 1))
    return np.stack(
        [
            _received(rows, slots),
            _received(weighted, slots),
            trace.slots.probability[slots].astype(np.float64),
            -trace.slots.rank[slots].astype(np.float64),
        ]
    )


def _knocks(place: int, trace: Trace) -> Iterator[Knock]:
    for step in range(PROMPT_STEP + 1, trace.n_steps):
        slots = trace.members(step).tolist()
        if len(slots) >= 2:
            yield from (Knock(place, (slot,), step, step + 1) for slot in slots)


def _received(rows: np.ndarray, slots: Int64[np.ndarray, " member"]) -> Member:
    """Mean over layers, heads and queries."""
    return np.nanmean(rows[..., slots].astype(np.float64), axis=(0, 1, 2))


def _stored_error(trace: Trace, step: int, readout: np.ndarray) -> float:
    stored = trace.readout(step)
    return float(np.abs(stored.log_probability - readout[stored.token]).max())
