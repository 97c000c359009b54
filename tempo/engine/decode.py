"""The decode loop: incremental, cached, many prompts and arms in one packed forward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.batch import SequenceBatch
from tempo.engine.capture import NOTHING, Tensors, join_chunks
from tempo.engine.forward import ForwardOutput, packed_forward
from tempo.engine.kv_cache import SlotCache
from tempo.engine.next_distribution import (
    Distribution,
    combined,
    distributions,
    invalid_rows,
    log_probability_rows,
)
from tempo.engine.state import DecodeContext, Decoding, SequencePlan, StepOutcome
from tempo.errors import NumericalError
from tempo.models.language_model import LanguageModel, attention_as
from tempo.policy.next_set import Choosing, Nodes, choose
from tempo.policy.presets import Policy, greedy
from tempo.policy.pruning import DECISIONS, Decision, pruned_slots, with_descendants
from tempo.policy.selection import DROP_REASONS, Choice, Dropped
from tempo.policy.slots import SLOT_COLUMNS, SlotTable, prompt_table

NO_MARGINS = (float("nan"), float("nan"))


def step_tensors(
    table: SlotTable,
    step: int,
    readout: Distribution,
    *,
    dropped: Sequence[Dropped] = (),
    margins: tuple[float, float] = NO_MARGINS,
    decisions: Sequence[Decision] = (),
) -> Tensors:
    """All tensors of a step except its attention.

    Args:
        readout: The distribution after the step.
        margins: Margins of the choice of this set: top-2 log-probability gap, gap to tau.
        decisions: Decisions of the pruning rule after the step.
    """
    members = table.members(step)
    slots = {f"slots/{name}": getattr(table, name)[members] for name in SLOT_COLUMNS}
    return (
        slots
        | {
            "readout/token": readout.token,
            "readout/log_probability": readout.top_log_probability,
            "readout/tail_mass": np.float64(readout.tail_mass).reshape(1),
            "readout/entropy_nats": np.float64(readout.entropy_nats).reshape(1),
            "margins": np.asarray(margins, np.float64),
            "dropped/token": np.asarray([item.token for item in dropped], np.int64),
            "dropped/probability": np.asarray([item.probability for item in dropped], np.float32),
            "dropped/reason": np.asarray(
                [DROP_REASONS.index(item.reason) for item in dropped], np.int8
            ),
        }
        | _judged(decisions)
    )


def _judged(decisions: Sequence[Decision]) -> Tensors:
    if not decisions:
        return {}
    return {
        "judged/slot": np.asarray([item.slot for item in decisions], np.int32),
        "judged/value": np.asarray([item.value for item in decisions], np.float32),
        "judged/reason": np.asarray([DECISIONS.index(item.reason) for item in decisions], np.int8),
    }


@dataclass(frozen=True, slots=True)
class Pruned:
    """One sequence after the prune phase.

    Attributes:
        logits: Logits of the unpruned members of the last set; new ones where pruning recomputes.
    """

    decoding: Decoding
    logits: Float[Tensor, "member vocab"]
    decisions: tuple[Decision, ...] = ()


def prune(
    session: DecodeContext,
    cache: SlotCache,
    number: int,
    decoding: Decoding,
    ran: ForwardOutput,
    step: int,
) -> Pruned:
    """Apply the prune rule to one sequence, and mask, evict or recompute what it pruned."""
    policy, table = decoding.plan.policy, decoding.table
    decisions = policy.prune.judge(table, step, ran.received)
    # A node without its parent would read a past that does not exist.
    if policy.branches:
        decisions = with_descendants(table, decisions)
    chosen = pruned_slots(table, decisions)
    if not chosen:
        return Pruned(decoding, ran.logits, decisions)
    table = table.mark_pruned(chosen, step)
    unpruned = table.unpruned(step)
    # slots of a step are consecutive, so a slot less the first is its row in the logits
    logits = ran.logits[torch.from_numpy(unpruned - table.members(step)[0]).to(ran.logits.device)]
    cached = decoding.cached_slots
    if policy.keep != "mask":
        # Slot numbers are never used again; only columns of the cache move up.
        stays = ~np.isin(cached, chosen)
        cache.evict(number, torch.from_numpy(np.flatnonzero(stays)))
        cached = cached[stays]
    if policy.keep == "recompute":
        # keys and values of the pruned set's step and of every later one may depend on it
        again = cached[table.step[cached] >= table.step[chosen].min()]
        view = SequenceBatch(table, again, policy, cached)
        rerun = packed_forward(replace(session, capture=NOTHING), cache, [view], first=number)
        logits = rerun[0].logits[-len(unpruned) :]
    table = _reweighted(table, policy, step)
    return Pruned(replace(decoding, table=table, cached_slots=cached), logits, decisions)


def _reweighted(table: SlotTable, policy: Policy, step: int) -> SlotTable:
    """Shares of the readout over the unpruned members of the last set; pruned ones get 0."""
    members, unpruned = table.members(step), table.unpruned(step)
    if len(members) == len(unpruned):
        return table
    with np.errstate(divide="ignore"):
        logs = np.log(table.weight if policy.branches else table.probability)[unpruned]
    share = policy.read.weights(logs)
    cleared = table.reweighted(members, np.zeros(len(members), np.float32))
    return cleared.reweighted(unpruned, share)


PREFILL_ROWS = 512
"""Rows of one prompt forward; bounds its memory, not its result."""


def decode(session: DecodeContext, plans: Sequence[SequencePlan]) -> list[Decoding]:
    """Decode all plans together and leave the model as it was.

    Raises:
        NumericalError: The model gave NaN or infinite logits.
    """
    with torch.inference_mode(), attention_as(session.model.hf, PACKED_ATTENTION):
        decodings, cache = prefill(session, plans)
        return advance_to_end(session, decodings, cache=cache, first=1)


def advance_to_end(
    session: DecodeContext, decodings: Sequence[Decoding], *, cache: SlotCache, first: int
) -> list[Decoding]:
    """Every step from `first` on, until each sequence has stopped or its plan is done."""
    for step in range(first, max(one.plan.steps for one in decodings) + 1):
        decodings = advance(session, decodings, cache=cache, step=step)
        if all(decoding.stopped for decoding in decodings):
            break
    return [
        decoding if decoding.stopped else replace(decoding, stopped="steps")
        for decoding in decodings
    ]


def prefill(
    session: DecodeContext, plans: Sequence[SequencePlan]
) -> tuple[list[Decoding], SlotCache]:
    """Step 0. Each distinct prompt is read once, in chunks; arms that share it get copies."""
    prompts = list(dict.fromkeys(plan.token_ids for plan in plans))
    tables = [prompt_table(list(token_ids)) for token_ids in prompts]
    cache = SlotCache(n_sequences=len(prompts), capacity=max(map(len, prompts)))
    chunks: list[list[ForwardOutput]] = [[] for _ in prompts]
    # arms that share a prompt share its forward: its rows are captured if any arm wants them
    wanted = any(not plan.capture_from_step for plan in plans)
    for group in _prefill_groups([len(prompt) for prompt in prompts]):
        views = [_chunk(tables[number], start, stop) for number, start, stop in group]
        ran = packed_forward(
            session, cache, views, first=group[0][0], last_row_only=True, rows=wanted
        )
        for (number, _, _), piece in zip(group, ran, strict=True):
            chunks[number].append(piece)
    logits = [pieces[-1].logits for pieces in chunks]
    # Reversed, so that the first of several prompts with equal tokens is named in an error.
    first_id = {plan.token_ids: plan.prompt_id for plan in reversed(plans)}
    log_probability = _checked(torch.cat(logits), [first_id[prompt] for prompt in prompts])
    # The prompt is read once, and its last row chooses the first set: feeding the last token again
    # would change the first choice on many prompts.
    readouts = distributions(log_probability, session.readout_size)
    leaders = [prompts.index(plan.token_ids) for plan in plans]
    joined = [join_chunks([piece.tensors for piece in pieces]) for pieces in chunks]
    decodings: list[Decoding] = []
    for number, (plan, leader) in enumerate(zip(plans, leaders, strict=True)):
        table = tables[leader]
        row = log_probability[leader : leader + 1]
        nodes = _nodes(plan, row, table.weight[-1:])
        decoding = Decoding(plan, table, len(table), readouts[leader], np.arange(len(table)), nodes)
        rows = {} if plan.capture_from_step else joined[leader]
        tensors = rows | step_tensors(decoding.table, 0, readouts[leader])
        session.on_step(
            StepOutcome(number, 0, decoding, logits[leader], tensors, chunks[leader][0].facts)
        )
        decodings.append(decoding)
    # Copies, since arms of one prompt write different sets into their caches.
    return decodings, cache.take(leaders)


def advance(
    session: DecodeContext, decodings: Sequence[Decoding], *, cache: SlotCache, step: int
) -> list[Decoding]:
    """One step of every sequence that has not stopped."""
    placed = [_place(session.model, decoding, step) for decoding in decodings]
    if not any(choice for _, choice in placed):
        return [decoding for decoding, _ in placed]
    views = [
        SequenceBatch(
            decoding.table,
            decoding.table.members(step) if choice else np.empty(0, np.int64),
            decoding.plan.policy,
            decoding.cached_slots,
        )
        for decoding, choice in placed
    ]
    # a sequence that ended adds no rows but keeps its place, so numbers stay those of the cache
    rows = any(choice and step >= one.plan.capture_from_step for one, choice in placed)
    ran = packed_forward(session, cache, views, first=0, guarded=step == 1, rows=rows)
    pruned = [
        prune(session, cache, number, placed[number][0], ran[number], step)
        if choice
        else Pruned(placed[number][0], ran[number].logits)
        for number, (_, choice) in enumerate(placed)
    ]
    after = _read(session, pruned, [choice for _, choice in placed])
    for number, (_, choice) in enumerate(placed):
        if choice:
            excluded = session.model.eos_ids if after[number].plan.eos == "ignore" else ()
            margins = (decodings[number].readout.top2_margin(excluded), choice.tau_margin)
            captured = ran[number].tensors if step >= after[number].plan.capture_from_step else {}
            tensors = captured | step_tensors(
                after[number].table,
                step,
                after[number].readout,
                dropped=choice.dropped,
                margins=margins,
                decisions=pruned[number].decisions,
            )
            session.on_step(
                StepOutcome(
                    number, step, after[number], ran[number].logits, tensors, ran[number].facts
                )
            )
    return after


def _place(model: LanguageModel, decoding: Decoding, step: int) -> tuple[Decoding, Choice | None]:
    """Select and place the next set; None, and the reason recorded, where the sequence ends."""
    plan, before = decoding.plan, decoding.table
    reason = decoding.stopped or ("steps" if step > plan.steps else "")
    if reason or plan.policy.select.exhausted(step):
        return replace(decoding, stopped=reason or "forced"), None
    choice = choose(_choosing(model, plan), decoding.readout.log_probability, step, decoding.nodes)
    width, last = len(choice.token), before.last_set()
    # only a tree says which member a token follows; otherwise the set follows the best member
    parent = np.full(width, last[0]) if choice.parent is None else last[choice.parent]
    position = plan.policy.place.of_set(before, decoding.base, parent)
    # the set that does not fit is not written: the trace ends with the one before
    if position.max() >= model.max_positions:
        return replace(decoding, stopped="context"), None
    weighed_by = choice.path_log_probability
    table = before.with_set(
        token=choice.token,
        position=position,
        probability=np.exp(choice.log_probability),
        weight=plan.policy.read.weights(
            choice.log_probability if weighed_by is None else weighed_by
        ),
        parent=parent,
        evidence=_evidence(decoding, choice),
    )
    return replace(
        decoding,
        table=table,
        base=plan.policy.place.next_base(decoding.base, width),
        cached_slots=np.concatenate([decoding.cached_slots, table.members(step)]),
    ), choice


def _choosing(model: LanguageModel, plan: SequencePlan) -> Choosing:
    read = plan.policy.read
    return Choosing(
        rule=plan.policy.select,
        children=read.children,
        frontier=read.frontier,
        eos_ids=model.eos_ids,
        eos=plan.eos,
        prompt_id=plan.prompt_id,
    )


def _evidence(decoding: Decoding, choice: Choice) -> Float32[np.ndarray, "member previous"] | None:
    """Log-probabilities of the chosen tokens after each member of the last set; pruned: -inf."""
    if decoding.nodes is None:
        return None
    table = decoding.table
    members = table.last_set(with_pruned=True)
    evidence = np.full((len(choice.token), len(members)), -np.inf, np.float32)
    evidence[:, table.alive[members]] = decoding.nodes.log_probability[:, choice.token].T
    return evidence


def _nodes(
    plan: SequencePlan, rows: Float32[Tensor, "node vocab"], weight: Float32[np.ndarray, " node"]
) -> Nodes | None:
    if not plan.policy.needs_rows:
        return None
    with np.errstate(divide="ignore"):
        return Nodes(rows.cpu().numpy(), np.log(weight))


def _read(
    session: DecodeContext, pruned: Sequence[Pruned], choices: Sequence[Choice | None]
) -> list[Decoding]:
    """The next distribution of every sequence that fed a set."""
    fed = {number: pruned[number] for number, choice in enumerate(choices) if choice}
    ids = [one.decoding.plan.prompt_id for one in fed.values() for _ in one.logits]
    rows = _checked(torch.cat([one.logits for one in fed.values()]), ids)
    split = dict(zip(fed, rows.split([len(one.logits) for one in fed.values()]), strict=True))
    weights = {number: _weights(one.decoding) for number, one in fed.items()}
    merged = torch.stack(
        [
            combined(split[number], weights[number], one.decoding.plan.policy.read)
            for number, one in fed.items()
        ]
    )
    readouts = dict(zip(fed, distributions(merged, session.readout_size), strict=True))
    return [
        replace(
            one.decoding,
            readout=readouts[number],
            nodes=_nodes(one.decoding.plan, split[number], weights[number]),
            stopped="eos" if choice.ends else "",
        )
        if choice
        else one.decoding
        for number, (one, choice) in enumerate(zip(pruned, choices, strict=True))
    ]


def _weights(decoding: Decoding) -> Float32[np.ndarray, " member"]:
    """Shares of the unpruned members of the last set."""
    return decoding.table.weight[decoding.table.last_set()]


def _checked(
    logits: Float[Tensor, "row vocab"], prompt_ids: Sequence[str]
) -> Float32[Tensor, "row vocab"]:
    log_probability = log_probability_rows(logits)
    invalid = invalid_rows(log_probability)
    if invalid.any():
        raise NumericalError(
            "expected finite logits, got NaN or infinity for prompt "
            f"{prompt_ids[int(invalid.nonzero()[0])]}; "
            "check the weights, or load the model with --dtype float32"
        )
    return log_probability


def _chunk(table: SlotTable, start: int, stop: int) -> SequenceBatch:
    """Rows of a prompt; they are causal under every policy, so greedy is used."""
    return SequenceBatch(table.upto(stop), np.arange(start, stop), greedy(), np.arange(stop))


def _prefill_groups(lengths: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Groups of chunks `(prompt, start, stop)` for one forward, at most PREFILL_ROWS rows each."""
    group: list[tuple[int, int, int]] = []
    room = PREFILL_ROWS
    for number, length in enumerate(lengths):
        for start in range(0, length, PREFILL_ROWS):
            stop = min(start + PREFILL_ROWS, length)
            # a later chunk of a prompt reads the keys of the one before, so it starts a group
            if group and (stop - start > room or start):
                yield group
                group, room = [], PREFILL_ROWS
            group.append((number, start, stop))
            room -= stop - start
    if group:
        yield group
