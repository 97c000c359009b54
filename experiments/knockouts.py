"""Runs that are fed a reference's tokens again while members of its sets die."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from tempo.engine.branch import Fork, decode_forks
from tempo.engine.decode import decode
from tempo.engine.state import DecodeContext, SequencePlan, StepOutcome
from tempo.models.language_model import LanguageModel
from tempo.policy.override import forced
from tempo.policy.presets import Policy
from tempo.policy.pruning import Keep, Kill
from tempo.policy.slots import SlotTable
from tempo_analysis.stats.distributions import kl_nats, log_probabilities

LARGEST_GROUP = 128
"""Runs that decode together."""
Readout = Float32[np.ndarray, " vocab"]


@dataclass(frozen=True, slots=True)
class Reference:
    """An isolated run that nothing died in, to be fed again."""

    prompt_id: str
    table: SlotTable

    def plan(
        self,
        *,
        steps: int,
        deaths: tuple[tuple[int, int], ...] = (),
        keep: Keep = "mask",
    ) -> SequencePlan:
        """The plan that feeds its sets, with these deaths."""
        policy = Policy(forced(self.table), prune=Kill(deaths), keep=keep)
        ids = tuple(self.table.token[: self.table.n_prompt].tolist())
        return SequencePlan(self.prompt_id, keep, ids, policy, steps, "ignore")


@dataclass(frozen=True, slots=True)
class Knock:
    """Members of one reference that die.

    Attributes:
        reference: Its place among the references.
        slots: Who dies.
        step: Once this step has run.
        after: The step whose readout is asked for.
    """

    reference: int
    slots: tuple[int, ...]
    step: int
    after: int
    keep: Keep = "mask"


def full_readouts(
    model: LanguageModel, references: Sequence[Reference]
) -> list[dict[int, Readout]]:
    """The whole readouts of every reference, by step."""
    found: list[dict[int, Readout]] = [{} for _ in references]

    def keep(outcome: StepOutcome) -> None:
        found[outcome.number][outcome.step] = outcome.decoding.readout.log_probability

    decode(
        DecodeContext(model, on_step=keep),
        [one.plan(steps=one.table.n_steps) for one in references],
    )
    return found


def knocked_readouts(
    model: LanguageModel, references: Sequence[Reference], knocks: Sequence[Knock]
) -> list[Readout]:
    """The whole readout of every knock-out; what it shares with its reference runs once."""
    found: dict[int, Readout] = {}

    def keep(outcome: StepOutcome) -> None:
        if outcome.step == knocks[outcome.number].after:
            found[outcome.number] = outcome.decoding.readout.log_probability

    trunks = [one.plan(steps=one.table.n_steps) for one in references]
    decode_forks(DecodeContext(model, on_step=keep), trunks, list(_groups(references, knocks)))
    return [found[number] for number in range(len(knocks))]


def divergence(first: Readout, second: Readout) -> float:
    """KL(first || second) over the whole vocabulary, in nats; both normalised in float64."""
    return float(kl_nats(log_probabilities(first), log_probabilities(second)))


def _groups(references: Sequence[Reference], knocks: Sequence[Knock]) -> Iterator[list[Fork]]:
    """Forks that leave at the same step, no more than go together."""
    forks = [
        Fork(
            number,
            knock.reference,
            knock.step,
            references[knock.reference].plan(
                steps=knock.after,
                deaths=tuple((knock.step, slot) for slot in knock.slots),
                keep=knock.keep,
            ),
        )
        for number, knock in enumerate(knocks)
    ]
    for step in sorted({fork.step for fork in forks}):
        same = [fork for fork in forks if fork.step == step]
        for start in range(0, len(same), LARGEST_GROUP):
            yield same[start : start + LARGEST_GROUP]
