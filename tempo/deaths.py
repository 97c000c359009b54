"""The prune phase: which members die, and what becomes of their slots and of later ones."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tempo.cache import SlotCache
from tempo.capture import NOTHING
from tempo.decoding import Decoding, Session
from tempo.passing import Ran, forward
from tempo.policy.presets import Policy
from tempo.policy.pruning import Decision, dead_of, with_descendants
from tempo.policy.slots import SlotTable
from tempo.sight import View


@dataclass(frozen=True, slots=True)
class Pruned:
    """One sequence after the prune phase.

    Attributes:
        logits: Of the living members of the last set, run again where deaths are recomputed.
    """

    decoding: Decoding
    logits: Float[Tensor, "member vocab"]
    decisions: tuple[Decision, ...] = ()


def prune(
    session: Session, cache: SlotCache, number: int, decoding: Decoding, ran: Ran, step: int
) -> Pruned:
    """Judge the members of one sequence, and do what a death does."""
    policy, table = decoding.plan.policy, decoding.table
    decisions = policy.prune.judge(table, step, ran.received)
    if policy.branches:
        decisions = with_descendants(table, decisions)
    dead = dead_of(table, decisions)
    if not dead:
        return Pruned(decoding, ran.logits, decisions)
    table = table.killed(dead, step)
    living = table.survivors(step)
    logits = ran.logits[torch.from_numpy(living - table.members(step)[0]).to(ran.logits.device)]
    held = decoding.held
    if policy.keep != "mask":
        stays = ~np.isin(held, dead)
        cache.evict(number, torch.from_numpy(np.flatnonzero(stays)))
        held = held[stays]
    if policy.keep == "recompute":
        again = held[table.step[held] >= table.step[dead].min()]
        view = View(table, again, policy, held)
        rerun = forward(replace(session, capture=NOTHING), cache, [view], first=number)
        logits = rerun[0].logits[-len(living) :]
    return Pruned(
        replace(decoding, table=_reweighted(table, policy, step), held=held), logits, decisions
    )


def _reweighted(table: SlotTable, policy: Policy, step: int) -> SlotTable:
    """Shares of the readout over the survivors of the last set; the dead have none."""
    members, living = table.members(step), table.survivors(step)
    if len(members) == len(living):
        return table
    with np.errstate(divide="ignore"):
        logs = np.log(table.weight if policy.branches else table.probability)[living]
    share = policy.read.weights(logs)
    return table.reweighted(members, np.zeros(len(members), np.float32)).reweighted(living, share)
