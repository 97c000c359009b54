"""Decodes many sequences that leave a common one at some step, without running its past again."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from tempo.attention import NAME
from tempo.cache import SlotCache
from tempo.decoding import Decoding, Plan, Session, StepOutcome
from tempo.engine import advance, prefill
from tempo.model import attention_as


@dataclass(frozen=True, slots=True)
class Fork:
    """A sequence that is the same as its trunk before a step.

    Attributes:
        number: Its place among all forks; the number of its outcomes.
        trunk: Its trunk's place among the trunks.
        step: The first step that differs.
    """

    number: int
    trunk: int
    step: int
    plan: Plan


@dataclass(slots=True)
class _Trunks:
    """The common sequences, with what every step left."""

    decodings: list[Decoding]
    cache: SlotCache
    past: list[list[StepOutcome]] = field(default_factory=list)


def decode_forks(
    session: Session, trunks: Sequence[Plan], groups: Sequence[Sequence[Fork]]
) -> dict[int, Decoding]:
    """Decode forks to the end of their plans; what is left of each, by its number.

    Every fork tells all its steps, those of its past with the trunk's outcome and without rows.

    Args:
        trunks: Plans of what the forks have in common; only read as far as the last fork.
        groups: Forks that decode together; those of one group leave at the same step.

    Raises:
        NumericalError: The model gave NaN or infinite logits.
    """
    found: dict[int, Decoding] = {}
    past: list[list[StepOutcome]] = [[] for _ in trunks]
    unseen = [replace(plan, rows_from=plan.steps + 1) for plan in trunks]
    quiet = replace(session, on_step=lambda outcome: past[outcome.number].append(outcome))
    last = max((group[0].step for group in groups), default=0)
    with torch.inference_mode(), attention_as(session.model.hf, NAME):
        decodings, cache = prefill(quiet, unseen)
        for step in range(1, last + 1):
            trunk = _Trunks(decodings, cache, past)
            for group in (one for one in groups if one[0].step == step):
                found |= _branch_off(session, trunk, group)
            if step < last:
                decodings = advance(quiet, decodings, cache=cache, step=step)
    return found


def _branch_off(session: Session, trunk: _Trunks, group: Sequence[Fork]) -> dict[int, Decoding]:
    """Decode one group from where the trunks are now."""
    for fork in group:
        for outcome in trunk.past[fork.trunk]:
            then = replace(outcome.decoding, plan=fork.plan)
            session.on_step(replace(outcome, number=fork.number, decoding=then))

    def renumbered(outcome: StepOutcome) -> None:
        session.on_step(replace(outcome, number=group[outcome.number].number))

    cache = trunk.cache.take([fork.trunk for fork in group])
    decodings = [replace(trunk.decodings[fork.trunk], plan=fork.plan) for fork in group]
    own = replace(session, on_step=renumbered)
    for step in range(group[0].step, max(fork.plan.steps for fork in group) + 1):
        decodings = advance(own, decodings, cache=cache, step=step)
    return {
        fork.number: replace(decoding, stopped=decoding.stopped or "steps")
        for fork, decoding in zip(group, decodings, strict=True)
    }
