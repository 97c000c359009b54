"""The decode loop: incremental, cached, many prompts and arms in one packed forward.

The phases of a step, in order: select, place, see, forward, prune, read. Step 0 reads the prompts;
every later step feeds one parallel set for each sequence that goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tempo.attention import NAME
from tempo.cache import SlotCache
from tempo.capture import join_chunks
from tempo.deaths import Pruned, prune
from tempo.decoding import Decoding, Plan, Session, StepOutcome
from tempo.errors import NumericalError
from tempo.model import LanguageModel, attention_as
from tempo.passing import Ran, forward
from tempo.policy.next_set import Choosing, Nodes, choose
from tempo.policy.presets import greedy
from tempo.policy.selection import Choice
from tempo.policy.slots import SlotTable, prompt_table
from tempo.reading import combined, distributions, invalid_rows, log_probabilities
from tempo.record import step_tensors
from tempo.sight import View

PREFILL_ROWS = 512
"""Rows of one prompt forward; bounds its memory, not its result."""


def decode(session: Session, plans: Sequence[Plan]) -> list[Decoding]:
    """Decode all plans together and leave the model as it was.

    Raises:
        NumericalError: The model gave NaN or infinite logits.
    """
    with torch.inference_mode(), attention_as(session.model.hf, NAME):
        decodings, cache = prefill(session, plans)
        for step in range(1, max(plan.steps for plan in plans) + 1):
            decodings = advance(session, decodings, cache=cache, step=step)
            if all(decoding.stopped for decoding in decodings):
                break
    return [
        decoding if decoding.stopped else replace(decoding, stopped="steps")
        for decoding in decodings
    ]


def prefill(session: Session, plans: Sequence[Plan]) -> tuple[list[Decoding], SlotCache]:
    """Step 0. Each distinct prompt is read once, in chunks; arms that share it get copies."""
    prompts = list(dict.fromkeys(plan.token_ids for plan in plans))
    tables = [prompt_table(list(token_ids)) for token_ids in prompts]
    cache = SlotCache(n_sequences=len(prompts), capacity=max(map(len, prompts)))
    chunks: list[list[Ran]] = [[] for _ in prompts]
    wanted = any(not plan.rows_from for plan in plans)
    for group in _prefill_groups([len(prompt) for prompt in prompts]):
        views = [_chunk(tables[number], start, stop) for number, start, stop in group]
        ran = forward(session, cache, views, first=group[0][0], last_row_only=True, rows=wanted)
        for (number, _, _), piece in zip(group, ran, strict=True):
            chunks[number].append(piece)
    logits = [pieces[-1].logits for pieces in chunks]
    first_id = {plan.token_ids: plan.prompt_id for plan in reversed(plans)}
    log_probability = _checked(torch.cat(logits), [first_id[prompt] for prompt in prompts])
    readouts = distributions(log_probability, session.readout_size)
    leaders = [prompts.index(plan.token_ids) for plan in plans]
    joined = [join_chunks([piece.tensors for piece in pieces]) for pieces in chunks]
    decodings: list[Decoding] = []
    for number, (plan, leader) in enumerate(zip(plans, leaders, strict=True)):
        table = tables[leader]
        row = log_probability[leader : leader + 1]
        nodes = _nodes(plan, row, table.weight[-1:])
        decoding = Decoding(plan, table, len(table), readouts[leader], np.arange(len(table)), nodes)
        rows = {} if plan.rows_from else joined[leader]
        tensors = rows | step_tensors(decoding.table, 0, readouts[leader])
        session.on_step(
            StepOutcome(number, 0, decoding, logits[leader], tensors, chunks[leader][0].facts)
        )
        decodings.append(decoding)
    return decodings, cache.take(leaders)


def advance(
    session: Session, decodings: Sequence[Decoding], *, cache: SlotCache, step: int
) -> list[Decoding]:
    """One step for every sequence that goes on."""
    placed = [_place(session.model, decoding, step) for decoding in decodings]
    if not any(choice for _, choice in placed):
        return [decoding for decoding, _ in placed]
    views = [
        View(
            decoding.table,
            decoding.table.members(step) if choice else np.empty(0, np.int64),
            decoding.plan.policy,
            decoding.held,
        )
        for decoding, choice in placed
    ]
    rows = any(choice and step >= one.plan.rows_from for one, choice in placed)
    ran = forward(session, cache, views, first=0, guarded=step == 1, rows=rows)
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
            captured = ran[number].tensors if step >= after[number].plan.rows_from else {}
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
    """Select and place the next set; no choice, and the reason noted, where the sequence ends."""
    plan, before = decoding.plan, decoding.table
    reason = decoding.stopped or ("steps" if step > plan.steps else "")
    if reason or plan.policy.select.exhausted(step):
        return replace(decoding, stopped=reason or "forced"), None
    choice = choose(_choosing(model, plan), decoding.readout.log_probability, step, decoding.nodes)
    living = before.survivors(step - 1)[-1 if step == 1 else 0 :]
    width = len(choice.token)
    parent = np.full(width, before.heir()) if choice.parent is None else living[choice.parent]
    position = plan.policy.place.of_set(before, decoding.base, parent)
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
        evidence=_evidence(decoding, choice, step),
    )
    return replace(
        decoding,
        table=table,
        base=plan.policy.place.next_base(decoding.base, width),
        held=np.concatenate([decoding.held, table.members(step)]),
    ), choice


def _choosing(model: LanguageModel, plan: Plan) -> Choosing:
    read = plan.policy.read
    return Choosing(
        rule=plan.policy.select,
        children=read.children,
        frontier=read.frontier,
        eos_ids=model.eos_ids,
        eos=plan.eos,
        prompt_id=plan.prompt_id,
    )


def _evidence(
    decoding: Decoding, choice: Choice, step: int
) -> Float32[np.ndarray, "member previous"] | None:
    """What each member of the last set gave the tokens chosen now, -inf where it is dead."""
    if decoding.nodes is None:
        return None
    table = decoding.table
    members = table.members(step - 1)[-1 if step == 1 else 0 :]
    evidence = np.full((len(choice.token), len(members)), -np.inf, np.float32)
    evidence[:, table.alive[members]] = decoding.nodes.log_probability[:, choice.token].T
    return evidence


def _nodes(
    plan: Plan, rows: Float32[Tensor, "node vocab"], weight: Float32[np.ndarray, " node"]
) -> Nodes | None:
    if not plan.policy.needs_rows:
        return None
    with np.errstate(divide="ignore"):
        return Nodes(rows.cpu().numpy(), np.log(weight))


def _read(
    session: Session, pruned: Sequence[Pruned], choices: Sequence[Choice | None]
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
    """Shares of the living members of the last set."""
    return decoding.table.weight[decoding.table.survivors(decoding.table.n_steps)]


def _checked(
    logits: Float[Tensor, "row vocab"], prompt_ids: Sequence[str]
) -> Float32[Tensor, "row vocab"]:
    log_probability = log_probabilities(logits)
    invalid = invalid_rows(log_probability)
    if invalid.any():
        raise NumericalError(
            "expected finite logits, got NaN or infinity for prompt "
            f"{prompt_ids[int(invalid.nonzero()[0])]}; "
            "check the weights, or load the model with --dtype float32"
        )
    return log_probability


def _chunk(table: SlotTable, start: int, stop: int) -> View:
    """Rows of a prompt; they are causal whatever the policy, so any policy will do."""
    return View(table.upto(stop), np.arange(start, stop), greedy(), np.arange(stop))


def _prefill_groups(lengths: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Chunks `(prompt, start, stop)` that go together: neighbours, PREFILL_ROWS rows at most."""
    group: list[tuple[int, int, int]] = []
    room = PREFILL_ROWS
    for number, length in enumerate(lengths):
        for start in range(0, length, PREFILL_ROWS):
            stop = min(start + PREFILL_ROWS, length)
            if group and (stop - start > room or start):
                yield group
                group, room = [], PREFILL_ROWS
            group.append((number, start, stop))
            room -= stop - start
    if group:
        yield group
