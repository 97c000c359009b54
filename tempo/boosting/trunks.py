"""Prompts that are read once and gone on with many times, each time under other edits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tempo.attention import NAME
from tempo.cache import SlotCache
from tempo.decoding import Decoding, Plan, Session
from tempo.engine import advance, prefill
from tempo.model import LanguageModel, attention_as
from tempo.policy.presets import greedy

Ids = tuple[int, ...]
TOGETHER = 128
"""Sequences that go on together."""


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


def read_prompts(model: LanguageModel, prompts: Sequence[tuple[str, Ids]]) -> Trunk:
    """Read every prompt once; given as (id, tokens)."""
    plans = [Plan(name, "trunk", ids, greedy(), 1, "ignore") for name, ids in prompts]
    with torch.inference_mode(), attention_as(model.hf, NAME):
        decodings, cache = prefill(Session(model), plans)
    return Trunk(model, tuple(decodings), cache)


def gone_on(
    trunk: Trunk, plans: Sequence[Plan], *, session: Session, of: Sequence[int] | None = None
) -> list[Decoding]:
    """Decode each plan from the end of its prompt.

    Args:
        of: For each plan, the place of its prompt in the trunk; one plan for each where None.
        session: Told every step from the first on.

    Raises:
        NumericalError: The model gave NaN or infinite logits.
    """
    places = list(range(len(plans))) if of is None else list(of)
    decodings = [
        replace(trunk.decodings[place], plan=plan)
        for place, plan in zip(places, plans, strict=True)
    ]
    with torch.inference_mode(), attention_as(trunk.model.hf, NAME):
        cache = trunk.cache.take(places)
        for step in range(1, max(plan.steps for plan in plans) + 1):
            decodings = advance(session, decodings, cache=cache, step=step)
    return decodings
