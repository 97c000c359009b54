"""The decode loop: incremental, cached, many prompts and arms in one packed forward.

The phases of a step, in order: select, place, see, forward, prune, read. Step 0 reads the prompts;
every later step feeds one parallel set for each sequence that goes on.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from transformers import PreTrainedModel

from tempo.attention import NAME, Forward
from tempo.cache import SlotCache
from tempo.capture import Tensors, captured, join_chunks, layer_facts
from tempo.decoding import Decoding, Plan, Session, StepOutcome
from tempo.errors import ModelError, NumericalError
from tempo.guards import guard_first_step, watched_positions
from tempo.model import LanguageModel, attention_as
from tempo.packing import packed
from tempo.policies import greedy
from tempo.reading import combined, distributions, invalid_rows, log_probabilities
from tempo.record import step_tensors
from tempo.selection import Choice, choose
from tempo.sight import Sight, View
from tempo.slots import SlotTable, prompt_table

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
    for group in _prefill_groups([len(prompt) for prompt in prompts]):
        views = [_chunk(tables[number], start, stop) for number, start, stop in group]
        ran = forward(session, cache, views, first=group[0][0], last_row_only=True)
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
        decoding = Decoding(plan, tables[leader], len(plan.token_ids), readouts[leader])
        tensors = joined[leader] | step_tensors(decoding.table, 0, readouts[leader])
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
        )
        for decoding, choice in placed
    ]
    ran = forward(session, cache, views, first=0, guarded=step == 1)
    after = _read(session, placed, [piece.logits for piece in ran])
    for number, (before, (decoding, choice), piece) in enumerate(
        zip(decodings, placed, ran, strict=True)
    ):
        if choice:
            excluded = session.model.eos_ids if decoding.plan.eos == "ignore" else ()
            margins = (before.readout.top2_margin(excluded), choice.tau_margin)
            tensors = piece.tensors | step_tensors(
                decoding.table, step, after[number].readout, dropped=choice.dropped, margins=margins
            )
            session.on_step(
                StepOutcome(number, step, after[number], piece.logits, tensors, piece.facts)
            )
    return after


def _place(model: LanguageModel, decoding: Decoding, step: int) -> tuple[Decoding, Choice | None]:
    """Select and place the next set; no choice, and the reason noted, where the sequence ends."""
    plan = decoding.plan
    reason = decoding.stopped or ("steps" if step > plan.steps else "")
    if reason or plan.policy.select.exhausted(step):
        return replace(decoding, stopped=reason or "forced"), None
    choice = choose(
        plan.policy.select,
        decoding.readout.log_probability,
        step,
        eos_ids=model.eos_ids,
        eos=plan.eos,
    )
    width = len(choice.token)
    position = plan.policy.place.positions(decoding.base, width)
    if position.max() >= model.max_positions:
        return replace(decoding, stopped="context"), None
    table = decoding.table.with_set(
        token=choice.token,
        position=position,
        probability=np.exp(choice.log_probability),
        weight=plan.policy.read.weights(choice.log_probability),
    )
    return replace(
        decoding, table=table, base=plan.policy.place.next_base(decoding.base, width)
    ), choice


@dataclass(frozen=True, slots=True)
class Ran:
    """One sequence's share of a forward."""

    logits: Float[Tensor, "query vocab"]
    tensors: Tensors
    facts: dict[str, object]


def forward(
    session: Session,
    cache: SlotCache,
    views: Sequence[View],
    *,
    first: int,
    last_row_only: bool = False,
    guarded: bool = False,
) -> list[Ran]:
    """Run the rows of some neighbouring sequences, packed as one sequence of rows.

    Args:
        first: Number in the cache of the first of the sequences.
        last_row_only: Give the logits of each sequence's last row only.
        guarded: Look at what the model did before anything is believed.

    Raises:
        ModelError: The model did not do what the slot table says.
    """
    hf, device = session.model.hf, session.model.device
    cache.reserve(max(len(view.table) for view in views))
    packing = packed(
        [view.queries for view in views],
        [len(view.table) for view in views],
        first=first,
        device=device,
    )
    sight = Sight(views, session.model.hf.dtype, device)
    state = Forward(packing, cache, sight.mask, frozenset(session.capture.layers))
    token, position = _fed(views, device)
    ends = np.cumsum([len(view.queries) for view in views])
    kept = torch.from_numpy(ends - 1 if last_row_only else np.arange(ends[-1]))
    with watched_positions(hf) if guarded else nullcontext([]) as positions:
        logits = _logits(hf, token, position, kept=kept, state=state)
    counts = [1] * len(views) if last_row_only else [len(view.queries) for view in views]
    tensors = captured(state, sight, session.capture)
    if guarded:
        guard_first_step(
            session.model,
            state,
            views,
            positions=positions,
            tensors=tensors,
            capture=session.capture,
        )
    facts = layer_facts(state, session.capture)
    return [
        Ran(rows, piece, facts) for rows, piece in zip(logits.split(counts), tensors, strict=True)
    ]


def _fed(
    views: Sequence[View], device: torch.device
) -> tuple[Int64[Tensor, "1 row"], Float32[Tensor, "1 row"]]:
    """Token ids and positions of all rows."""
    token = np.concatenate([view.table.token[view.queries] for view in views])
    position = np.concatenate([view.table.position[view.queries] for view in views])
    return torch.from_numpy(token)[None].to(device), torch.from_numpy(position)[None].to(device)


def _logits(
    hf: PreTrainedModel,
    token: Int64[Tensor, "1 row"],
    position: Float32[Tensor, "1 row"],
    *,
    kept: Int64[Tensor, " kept"],
    state: Forward,
) -> Float[Tensor, "kept vocab"]:
    """The model's own forward, with the engine's state passed through it."""
    try:
        out = hf(
            input_ids=token,
            position_ids=position,
            use_cache=False,
            logits_to_keep=kept,
            tempo_forward=state,
        )
    except (TypeError, KeyError) as error:
        raise ModelError(
            "expected a decoder that hands its keywords on to the attention function, got "
            f"{type(error).__name__}: {error} from {type(hf).__name__}; not supported"
        ) from error
    return out.logits[0]


def _read(
    session: Session,
    placed: Sequence[tuple[Decoding, Choice | None]],
    logits: Sequence[Float[Tensor, "_ vocab"]],
) -> list[Decoding]:
    """The next distribution of every sequence that fed a set."""
    fed = [number for number, (_, choice) in enumerate(placed) if choice]
    ids = [placed[number][0].plan.prompt_id for number in fed for _ in logits[number]]
    rows = _checked(torch.cat([logits[number] for number in fed]), ids)
    split = dict(zip(fed, rows.split([len(logits[number]) for number in fed]), strict=True))
    merged = torch.stack([_merge(placed[number][0], split[number]) for number in fed])
    readouts = dict(zip(fed, distributions(merged, session.readout_size), strict=True))
    return [
        replace(decoding, readout=readouts[number], stopped="eos" if choice.ends else "")
        if choice
        else decoding
        for number, (decoding, choice) in enumerate(placed)
    ]


def _merge(decoding: Decoding, rows: Float32[Tensor, "member vocab"]) -> Float32[Tensor, " vocab"]:
    weights = decoding.table.weight[-len(rows) :]
    return combined(rows, weights, decoding.plan.policy.read)


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
    return View(table.upto(stop), np.arange(start, stop), greedy())


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
