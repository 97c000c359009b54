"""Decodes sequences with a common past: it is run once, and its cache is copied at the fork."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.decode import advance, advance_to_end, prefill
from tempo.engine.kv_cache import SlotCache
from tempo.engine.state import DecodeContext, Decoding, SequencePlan, StepOutcome
from tempo.models.language_model import LanguageModel, attention_as
from tempo.policy.presets import greedy


@dataclass(frozen=True, slots=True)
class Fork:
    """A sequence that is the same as its trunk before a step.

    Attributes:
        number: Its index among all forks; the number of its outcomes.
        trunk: Index of its trunk.
        step: The first step that differs.
    """

    number: int
    trunk: int
    step: int
    plan: SequencePlan


@dataclass(slots=True)
class _Trunks:
    """The common sequences, with the outcome of every step."""

    decodings: list[Decoding]
    cache: SlotCache
    past: list[list[StepOutcome]] = field(default_factory=list)


def decode_forks(
    session: DecodeContext, trunks: Sequence[SequencePlan], groups: Sequence[Sequence[Fork]]
) -> dict[int, Decoding]:
    """Decode forks to the end of their plans; return the final state of each, by its number.

    `session.on_step` gets every step of every fork; those of the shared past are the trunk's, with
    the fork's plan and without attention rows.

    Args:
        trunks: Plans of what the forks have in common; only read as far as the last fork.
        groups: Forks that decode together; those of one group leave at the same step.

    Raises:
        NumericalError: The model gave NaN or infinite logits.
    """
    found: dict[int, Decoding] = {}
    past: list[list[StepOutcome]] = [[] for _ in trunks]
    # past its last step nothing is captured: the trunk itself is in no trace
    unseen = [replace(plan, capture_from_step=plan.steps + 1) for plan in trunks]
    quiet = replace(session, on_step=lambda outcome: past[outcome.number].append(outcome))
    last = max((group[0].step for group in groups), default=0)
    with torch.inference_mode(), attention_as(session.model.hf, PACKED_ATTENTION):
        decodings, cache = prefill(quiet, unseen)
        for step in range(1, last + 1):
            trunk = _Trunks(decodings, cache, past)
            # before the trunk takes this step: a fork differs from it in this very step
            for group in (one for one in groups if one[0].step == step):
                found |= _branch_off(session, trunk, group)
            if step < last:
                decodings = advance(quiet, decodings, cache=cache, step=step)
    return found


def _branch_off(
    session: DecodeContext, trunk: _Trunks, group: Sequence[Fork]
) -> dict[int, Decoding]:
    """Decode one group from the current step of the trunks."""
    for fork in group:
        for outcome in trunk.past[fork.trunk]:
            then = replace(outcome.decoding, plan=fork.plan)
            session.on_step(replace(outcome, number=fork.number, decoding=then))

    def renumbered(outcome: StepOutcome) -> None:
        session.on_step(replace(outcome, number=group[outcome.number].number))

    cache = trunk.cache.take([fork.trunk for fork in group])
    decodings = [replace(trunk.decodings[fork.trunk], plan=fork.plan) for fork in group]
    own = replace(session, on_step=renumbered)
    ended = advance_to_end(own, decodings, cache=cache, first=group[0].step)
    return {fork.number: decoding for fork, decoding in zip(group, ended, strict=True)}


PromptIds = tuple[int, ...]
TOGETHER = 128
"""Most sequences decoded in one batch after a fork; bounds memory, not results."""


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """The prompts after step 0, in which no set is seen yet, so that no bias on sets acts.

    Attributes:
        decodings: One for each prompt.
        cache: Theirs; copied before every use.
    """

    model: LanguageModel
    decodings: tuple[Decoding, ...]
    cache: SlotCache


def read_prompts(model: LanguageModel, prompts: Sequence[tuple[str, PromptIds]]) -> Trunk:
    """Read every prompt once; given as (id, tokens)."""
    plans = [SequencePlan(name, "trunk", ids, greedy(), 1, "ignore") for name, ids in prompts]
    with torch.inference_mode(), attention_as(model.hf, PACKED_ATTENTION):
        decodings, cache = prefill(DecodeContext(model), plans)
    return Trunk(model, tuple(decodings), cache)


def gone_on(
    trunk: Trunk,
    plans: Sequence[SequencePlan],
    *,
    session: DecodeContext,
    of: Sequence[int] | None = None,
) -> list[Decoding]:
    """Decode each plan from the end of its prompt.

    Args:
        of: For each plan, the place of its prompt in the trunk; one plan for each where None.
        session: Its `on_step` is called for every step from the first set on.

    Raises:
        NumericalError: The model gave NaN or infinite logits.
    """
    places = list(range(len(plans))) if of is None else list(of)
    decodings = [
        replace(trunk.decodings[place], plan=plan)
        for place, plan in zip(places, plans, strict=True)
    ]
    with torch.inference_mode(), attention_as(trunk.model.hf, PACKED_ATTENTION):
        cache = trunk.cache.take(places)
        return advance_to_end(session, decodings, cache=cache, first=1)
