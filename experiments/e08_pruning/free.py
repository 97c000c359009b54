"""Decoding freely while attention prunes: who dies, when, and what becomes of the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from tempo.engine.decode import decode
from tempo.engine.state import DecodeContext, SequencePlan
from tempo.models.language_model import LanguageModel
from tempo.policy.presets import Policy
from tempo.policy.pruning import AttentionBelow
from tempo.policy.selection import Threshold
from tempo.policy.slots import SlotTable
from tempo.run.recorder import best_path
from tempo.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class FreeRun:
    """One prompt decoded with pruning, beside its run without.

    Attributes:
        ages: Steps from the writing of each dead member to its death.
        n_members: Members of sets of two or more that another set followed: those at risk.
        text_changed: Whether the extracted paths differ.
        first_change: First step whose set differs; 0 if none does.
    """

    ages: Int64[np.ndarray, " dead"]
    n_members: int
    text_changed: bool
    first_change: int


def free_runs(
    model: LanguageModel,
    traces: Sequence[Trace],
    *,
    settings: Mapping[str, Any],
    share: float,
    batch: int,
) -> tuple[list[FreeRun], list[tuple[str, str, SlotTable]]]:
    """Decode every prompt as its trace was, and with members dying below a share of attention.

    Args:
        settings: What the traces were made with.
    """
    rules = Policy(
        Threshold(settings["threshold"], settings["max_width"]),
        prune=AttentionBelow(share, relative=True),
    )
    found: list[FreeRun] = []
    tables: list[tuple[str, str, SlotTable]] = []
    for start in range(0, len(traces), batch):
        some = traces[start : start + batch]
        plans = [_plan(trace, rules, settings) for trace in some]
        decodings = decode(DecodeContext(model), plans)
        for trace, decoding in zip(some, decodings, strict=True):
            found.append(compared(trace.slots, decoding.table))
            tables.append((trace.header.prompt_id, "pruned", decoding.table))
    return found, tables


def compared(reference: SlotTable, pruned: SlotTable) -> FreeRun:
    """What pruning did to one prompt."""
    at_risk = (pruned.width >= 2) & (pruned.step < pruned.n_steps)
    dead = ~pruned.alive
    return FreeRun(
        ages=(pruned.died_at_step - pruned.step)[dead].astype(np.int64),
        n_members=int(at_risk.sum()),
        text_changed=best_path(reference) != best_path(pruned),
        first_change=_first_change(reference, pruned),
    )


def _first_change(first: SlotTable, second: SlotTable) -> int:
    for step in range(1, max(first.n_steps, second.n_steps) + 1):
        ours, theirs = (table.token[table.members(step)] for table in (first, second))
        if not np.array_equal(ours, theirs):
            return step
    return 0


def _plan(trace: Trace, rules: Policy, settings: Mapping[str, Any]) -> SequencePlan:
    ids = tuple(trace.slots.token[: trace.slots.n_prompt].tolist())
    return SequencePlan(
        trace.header.prompt_id, "pruned", ids, rules, settings["steps"], settings["eos"]
    )
