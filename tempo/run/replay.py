"""Feeds the tokens of a trace again: under changed rules, or with one member alone.

The tokens are fixed, so a difference between two runs comes from the changed rule only.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.capture import Capture
from tempo.engine.decode import advance, advance_to_end, prefill
from tempo.engine.kv_cache import SlotCache
from tempo.engine.state import DecodeContext, Decoding, SequencePlan, StepOutcome
from tempo.engine.value_norms import projections
from tempo.errors import InputError, ModelError, NoParallelSetsError, TwinError
from tempo.models.head_weights import final_norm
from tempo.models.hooks import watched_stream
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.load import Source, load_model
from tempo.policy.edits import Edit
from tempo.policy.override import Change, Rules, alone, as_change, forced
from tempo.policy.presets import Policy
from tempo.policy.pruning import Never
from tempo.policy.serialize import rule_from_dict
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import visible_slots
from tempo.run.execute import check_found, decode_batch
from tempo.run.options import make_options
from tempo.run.recorder import facts_of_model
from tempo.run.request import Request, check_edits
from tempo.trace.compare import changed_axes, check_axes, check_same_model
from tempo.trace.run import Prompt, Run
from tempo.trace.trace import Trace

TWIN = "twin"
"""Arm of the only twin of a replay."""


def replay(
    trace: Trace,
    *,
    policy: Rules | Mapping[str, Rules] | None = None,
    model: Source | None = None,
    axes: Collection[str] | None = None,
    edits: Sequence[Edit] = (),
) -> Run:
    """Feed the sets of a trace again under other rules, and make sure that one thing changed.

    Args:
        trace: The reference; its tokens and their probabilities are kept, set by set.
        policy: A `Policy` (its rule of selection and its pruning are not used), a twin by name
            (`visible`, `unique`, `offset:0.01`, `sequential`, `boost:0.5`, `duplicates:3`, ...),
            a single rule such as `Offset(0.01)`, or a `tempo.twins.Change`; several, by a name
            each, decode together.
        model: The model that made the trace; loaded by its name there if not given.
        edits: From `tempo.edits`, made in every forward of the twins and in none of the reference;
            with edits alone, leave `policy` out.
        axes: Axes of `tempo.twins.AXES` in which the twins may differ; if not given, those of the
            change, and for a `Policy` a single axis.

    Returns:
        A run in memory of the reference, under its own arm, and its twins: arm `twin` where there
        is one, else the names given. `analyze` takes it.

    Raises:
        InputError: A twin that cannot be read, or one with the name of the reference.
        TwinError: The model has other weights, the trace has edits, or more changed than was to.
        NoParallelSetsError: The trace has no set of two or more, so no twin can differ.

    Example:
        >>> run = tempo.replay(trace, policy="unique")
        >>> twin = run.trace(arm="twin")  # the same tokens, each at a position of its own
    """
    loaded = load_model(trace.header.model["name"] if model is None else model)
    check_same_model(trace, facts_of_model(loaded))
    # Without a parallel set every policy gives the same run; its twin would show 0 by construction.
    if trace.slots.width.max() < 2:
        raise NoParallelSetsError(
            f"expected a trace with a set of two or more members, got {trace.header.prompt_id!r} "
            "without one; lower the threshold"
        )
    if trace.header.run.get("edits"):
        raise TwinError(
            "expected a trace that was decoded without edits, got one with them: their arrays are "
            "not in it, so they cannot be made again; replay the trace that it was made from"
        )
    if policy is None and not edits:
        raise TwinError("expected a policy or edits that change something, got neither; give one")
    rules = Change() if policy is None else policy
    wanted = dict(rules) if isinstance(rules, Mapping) else {_name_beside(trace): rules}
    if trace.header.arm in wanted:
        raise InputError(
            f"expected names other than {trace.header.arm!r}, the arm of the reference, got it for "
            "a twin; rename the twin"
        )
    changes = {name: as_change(one) for name, one in wanted.items()}
    reference = rule_from_dict(trace.header.policy)
    twins = _decode(loaded, trace, reference, changes, edits)
    for name, twin in twins.items():
        # A whole policy may differ in several rules at once; then no difference has one cause.
        if axes is None and isinstance(wanted[name], Policy):
            _check_one(trace, twin)
        else:
            meant = changes[name].against(reference).axes if axes is None else axes
            check_axes(trace, twin, {*meant, *(["edits"] if edits else [])})
    return _run_of(trace, twins, changes)


def _name_beside(trace: Trace) -> str:
    """Name of a single twin; `twin@twin` if the reference is a twin itself."""
    return TWIN if trace.header.arm != TWIN else f"{TWIN}@{TWIN}"


def _run_of(trace: Trace, twins: Mapping[str, Trace], changes: Mapping[str, Change]) -> Run:
    prompt = Prompt(trace.header.prompt_id, trace.header.prompt)
    arms = {trace.header.arm: trace} | dict(twins)
    return Run(
        prompts=(prompt,),
        arms=tuple(arms),
        policies={name: one.header.policy for name, one in arms.items()},
        traces={(prompt.id, name): one for name, one in arms.items()},
        settings={
            "model_facts": trace.header.model,
            "replays": dict.fromkeys(changes, trace.header.arm),
            "axes": {name: sorted(change.axes) for name, change in changes.items()},
        },
    )


def _decode(
    loaded: LanguageModel,
    trace: Trace,
    reference: Policy,
    changes: Mapping[str, Change],
    edits: Sequence[Edit],
) -> dict[str, Trace]:
    """One batch of all twins, captured as the reference was."""
    slots, header = trace.slots, trace.header
    prompt = Prompt(header.prompt_id, header.prompt)
    ids = tuple(slots.token[: slots.n_prompt].tolist())
    options = make_options(
        {"model": loaded.name, "dtype": loaded.dtype, "steps": max(trace.n_steps, 1)}
    )
    request = Request(
        model=loaded,
        options=options,
        prompts=(prompt,),
        token_ids={prompt.id: ids},
        arms={header.arm: reference},
        pairs=(),
        replays={name: (header.arm, change) for name, change in changes.items()},
        edits=tuple(edits),
    )
    check_edits(request)
    plans = {(prompt.id, name): request.replay_plan((prompt.id, name), trace) for name in changes}
    for plan in plans.values():
        # Positions of their own reach as far as there are slots.
        plan.policy.place.check(max(slots.position.max(), len(slots)), loaded.dtype)
    capture = Capture(trace.level, trace.layers, trace.heads)
    decoded = decode_batch(request, capture, plans)
    check_found(request, decoded)
    return {name: twin for (_, name), twin in decoded.items()}


def _check_one(trace: Trace, twin: Trace) -> None:
    found = changed_axes(trace, twin)
    if len(found) > 1:
        raise TwinError(
            f"expected one thing to change, got {', '.join(sorted(found))}; give axes=... if all "
            "of them were to"
        )


# About 100 times the rounding of reordered sums in float32, which is 1e-5 on logits.
READOUT_TOLERANCE_NATS = {"float32": 1e-3}
HALF_PRECISION_TOLERANCE_NATS = 0.3
"""Nats by which a replayed log-probability may differ from the recorded one, in float32 and in
half precision, where what decodes together changes the rounding."""
# Shares are computed again, in part from new logits, and differ by rounding.
_REPLAYED_SHARE = 1e-3

NO_TWIN_IN_TREES = (
    "members of this policy have children of their own, which cannot be fed without their parents"
)


@dataclass(slots=True)
class ReplayedSequence:
    """One sequence of the replay: the set with all its members, or with one of them.

    Attributes:
        members: Slots of the set in this sequence.
        states: Residual stream of the members.
        logits: Logits of the members.
        value_norm: Value norms of the members; None where they are not known.
        columns: Rows of each later step, over the members.
        prompt: Rows of the next step, over the prompt.
        readouts: Log-probabilities after the set and after every later step.
    """

    members: Int64[np.ndarray, " member"]
    step: int
    n_prompt: int
    states: Float32[np.ndarray, "depth member channel"] = field(init=False)
    logits: Float32[np.ndarray, "member vocab"] = field(init=False)
    value_norm: Float32[np.ndarray, "layer head member"] | None = None
    columns: list[Float32[np.ndarray, "layer head query member"]] = field(default_factory=list)
    prompt: Float32[np.ndarray, "layer head query prompt"] = field(init=False)
    readouts: list[Float32[np.ndarray, " vocab"]] = field(default_factory=list)

    def take(self, outcome: StepOutcome) -> None:
        """Keep what is needed of one step: nothing before the set, rows after it."""
        if outcome.step < self.step:
            return
        self.readouts.append(outcome.decoding.readout.log_probability)
        if outcome.step == self.step:
            self.logits = outcome.logits.float().cpu().numpy()
            self.value_norm = outcome.tensors.get("value_norm")
            return
        rows = outcome.tensors["weights"]
        self.columns.append(rows[..., self.members])
        # The next step is the first that can read the set; its prompt rows show what the set took.
        if outcome.step == self.step + 1:
            self.prompt = rows[..., : self.n_prompt]


@dataclass(frozen=True, slots=True)
class SetFork:
    """A sequence as it was once its set had run.

    Attributes:
        cache: Of this sequence alone; what the next step writes there may be written again.
    """

    decoding: Decoding
    cache: SlotCache
    step: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A trace fed again, with each member of one of its sets alone beside it.

    Attributes:
        table: As it came out.
        together: The run as it was.
        alone: Each member of the set without the others, in rank order; empty where there is no
            such twin.
        forks: The sequences at the set, in the same order.
        no_values: Why norms of values are not known; empty where they are.
    """

    policy: Policy
    table: SlotTable
    together: ReplayedSequence
    alone: tuple[ReplayedSequence, ...]
    forks: tuple[SetFork, ...]
    no_values: str


def check_replayable(trace: Trace) -> None:
    """Refuse a trace that cannot be fed again exactly.

    Raises:
        InputError: It was edited, members were pruned in it, or it is not complete.
    """
    why = ""
    if trace.header.stopped == "running":
        why = "one that was interrupted: resume it first"
    elif trace.header.run.get("edits"):
        why = "an edited one: a trace records edits without their arrays, so they cannot be redone"
    elif not trace.slots.alive.all():
        why = "one with pruned members: what a member does beside pruned ones has no twin alone"
    if why:
        raise InputError(
            f"expected a complete trace without edits or pruning, got {why}; decode "
            f"{trace.header.prompt_id!r} again without"
        )


def replay_set(model: LanguageModel, trace: Trace, step: int) -> Replay:
    """Feed a trace again, with every member of one set alone beside it.

    Raises:
        TwinError: It came out otherwise than recorded.
        ModelError: The states of this family cannot be read.
    """
    final_norm(model)  # refuses now, not after decoding, what has no lens
    table, policy = trace.slots, _fed_again(trace)
    rules = [policy]
    if not policy.branches:
        # In one batch with the whole set, so that rounding differs as little as possible.
        rules += [alone(table, policy, slot) for slot in table.members(step).tolist()]
    header = trace.header
    ids = tuple(table.token[: table.n_prompt].tolist())
    plans = [
        # "ignore": the end of sequence is part of the fed tokens and must not be acted on again.
        SequencePlan(
            header.prompt_id, header.arm, ids, rule, trace.n_steps, "ignore", capture_from_step=step
        )
        for rule in rules
    ]
    first = table.members(step)
    sequences = [ReplayedSequence(first, step, table.n_prompt)]
    sequences += [ReplayedSequence(first[:1], step, table.n_prompt) for _ in plans[1:]]
    capture, no_values = _capture(model)
    session = DecodeContext(
        model, capture, on_step=lambda outcome: sequences[outcome.number].take(outcome)
    )
    decodings, forks = _decode_set(session, plans, sequences)
    return Replay(policy, decodings[0].table, sequences[0], tuple(sequences[1:]), forks, no_values)


def _fed_again(trace: Trace) -> Policy:
    """The policy of a trace, changed to feed its recorded sets; in a tree with their parents."""
    policy: Policy = rule_from_dict(trace.header.policy)
    sets = forced(trace.slots)
    if policy.branches:
        sets = replace(sets, parents=tuple(_parents(trace.slots)))
    return replace(policy, select=sets, prune=Never())


def _parents(table: SlotTable) -> list[tuple[int, ...]]:
    """For every set, the index of each member's parent in the set before."""
    # The first set descends from the last slot of the prompt, each later one from the set before.
    firsts = [table.n_prompt - 1, *(int(table.members(k)[0]) for k in range(1, table.n_steps))]
    return [
        tuple((table.parent[table.members(step)] - first).tolist())
        for step, first in enumerate(firsts, 1)
    ]


def _capture(model: LanguageModel) -> tuple[Capture, str]:
    """Capture with value norms, or without them and with the reason."""
    everything = tuple(range(model.n_layers)), tuple(range(model.n_heads))
    capture = Capture("weights", *everything, values=True)
    try:
        projections(model, capture)
    except ModelError as error:
        return replace(capture, values=False), str(error)
    return capture, ""


def _decode_set(
    session: DecodeContext, plans: Sequence[SequencePlan], sequences: Sequence[ReplayedSequence]
) -> tuple[list[Decoding], tuple[SetFork, ...]]:
    """Decode all sequences together; keep the residual stream and the caches at the set."""
    step, widths = sequences[0].step, [len(one.members) for one in sequences]
    with torch.inference_mode(), attention_as(session.model.hf, PACKED_ATTENTION):
        decodings, cache = prefill(session, plans)
        for number in range(1, step):
            decodings = advance(session, decodings, cache=cache, step=number)
        with watched_stream(session.model) as depths:
            decodings = advance(session, decodings, cache=cache, step=step)
        # Copies of the caches: the next steps write into the shared one.
        forks = tuple(
            SetFork(decoding, cache.take([number]), step)
            for number, decoding in enumerate(decodings)
        )
        decodings = advance_to_end(session, decodings, cache=cache, first=step + 1)
    states = np.stack([depth[0].float().cpu().numpy() for depth in depths])
    # Rows of all sequences are packed in one axis; widths say where each ends.
    for one, own in zip(sequences, np.split(states, np.cumsum(widths)[:-1], axis=1), strict=True):
        one.states = own
    return decodings, forks


def replay_error(trace: Trace, replay: Replay) -> float:
    """Largest difference of a recorded log-probability to that of the replay, in nats.

    Raises:
        TwinError: The tables differ, or the readouts by more than rounding.
    """
    ours, theirs = trace.slots, replay.table
    same = all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("token", "step", "position", "parent")
    )
    shares = len(ours) == len(theirs) and np.allclose(
        ours.weight, theirs.weight, rtol=_REPLAYED_SHARE, atol=_REPLAYED_SHARE
    )
    steps = range(replay.together.step, trace.n_steps + 1)
    errors = [
        _readout_error(trace, step, found)
        for step, found in zip(steps, replay.together.readouts, strict=True)
    ]
    allowed = READOUT_TOLERANCE_NATS.get(trace.header.model["dtype"], HALF_PRECISION_TOLERANCE_NATS)
    if not (same and shares and max(errors) <= allowed):
        what = f"readouts {max(errors):.2g} nats apart" if same and shares else "another slot table"
        raise TwinError(
            f"expected {trace.header.arm!r} on prompt {trace.header.prompt_id!r} to come out as "
            f"recorded when it is fed again, got {what}; follow it where and as it was made"
        )
    return max(errors)


def _readout_error(trace: Trace, step: int, found: Float32[np.ndarray, " vocab"]) -> float:
    recorded = trace.readout(step)
    return float(np.abs(found[recorded.token] - recorded.log_probability).max())


def seen_at(
    model: LanguageModel, policy: Policy, table: SlotTable, step: int
) -> Bool[np.ndarray, "layer query slot"]:
    """What each query of a step may see, in each layer."""
    queries = table.members(step)
    written = table.upto(int(queries[-1]) + 1)
    by_window = {
        window: visible_slots(policy.see, written, queries, window=window)
        for window in set(model.windows)
    }
    return np.stack([by_window[window] for window in model.windows])
