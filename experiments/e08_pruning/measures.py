"""What is left of a set's members once all but one have died, by what a death does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from experiments.knockouts import (
    Knock,
    Readout,
    Reference,
    divergence,
    full_readouts,
    knocked_readouts,
)
from tempo.models.language_model import LanguageModel
from tempo.policy.pruning import Keep
from tempo.trace.trace import Trace

LATER = 2
"""Steps after the deaths at which the readout is compared."""
KEEPS: tuple[Keep, ...] = ("mask", "evict", "recompute")
FULL = "full"
PAIRS = {
    "mask": (FULL, "mask"),
    "recompute": (FULL, "recompute"),
    "ghost": ("recompute", "mask"),
    "evict": ("mask", "evict"),
}
"""What is compared: KL(first || second)."""
Member = Float64[np.ndarray, " member"]


@dataclass(frozen=True, slots=True)
class PrunedSet:
    """One set of two or more members, of which one survives.

    Attributes:
        prompt: Place of its prompt.
        step: Which set.
        nats: Distances of readouts, by the names of `PAIRS`.
        survives: The member that got most attention from the next set.
        probability: Of each member, when it was chosen.
        got: Attention of each member from the next set, by which the survivor is known.
        got_later: The same from the set after that, in the run without deaths.
    """

    prompt: int
    step: int
    nats: Mapping[str, float]
    survives: Bool[np.ndarray, " member"]
    probability: Member
    got: Member
    got_later: Member


def pruned_sets(
    model: LanguageModel, traces: Sequence[Trace], *, batch: int
) -> Iterator[PrunedSet]:
    """Every set of two or more that is followed far enough, pruned once the next set has run."""
    for start in range(0, len(traces), batch):
        some = traces[start : start + batch]
        references = [Reference(one.header.prompt_id, one.slots) for one in some]
        wanted = [(place, step) for place, one in enumerate(some) for step in _steps(one)]
        knocks = [
            _knock(some[place], place, step, keep) for place, step in wanted for keep in KEEPS
        ]
        full = full_readouts(model, references)
        readouts = iter(knocked_readouts(model, references, knocks))
        for place, step in wanted:
            found = {keep: next(readouts) for keep in KEEPS}
            found[FULL] = full[place][step + 1 + LATER]
            yield _pruned(some[place], start + place, step, found)


def received(trace: Trace, step: int, *, by: int) -> Member:
    """Attention of the members of a set from those of another: mean over layers, heads, queries."""
    rows = trace.attention(by)[..., trace.members(step)]
    return rows.astype(np.float64).mean((0, 1, 2))


def _steps(trace: Trace) -> list[int]:
    last = trace.n_steps - 1 - LATER
    return [step for step in range(1, last + 1) if len(trace.members(step)) >= 2]


def _knock(trace: Trace, place: int, step: int, keep: Keep) -> Knock:
    slots = trace.members(step)
    dead = np.delete(slots, received(trace, step, by=step + 1).argmax())
    return Knock(place, tuple(dead.tolist()), step + 1, step + 1 + LATER, keep)


def _pruned(trace: Trace, prompt: int, step: int, found: Mapping[str, Readout]) -> PrunedSet:
    got = received(trace, step, by=step + 1)
    return PrunedSet(
        prompt=prompt,
        step=step,
        nats={name: divergence(found[a], found[b]) for name, (a, b) in PAIRS.items()},
        survives=np.arange(len(got)) == got.argmax(),
        probability=trace.slots.probability[trace.members(step)].astype(np.float64),
        got=got,
        got_later=received(trace, step, by=step + 2),
    )
