"""Feeds a run again up to its end, with every member of one of its sets alone beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from tempo.attention import NAME
from tempo.cache import SlotCache
from tempo.capture import Capture
from tempo.decoding import Decoding, Plan, Session, StepOutcome
from tempo.engine import advance, prefill
from tempo.errors import InputError, ModelError, TwinError
from tempo.following.stream import watched_stream
from tempo.model import LanguageModel, attention_as
from tempo.policy.override import alone, forced
from tempo.policy.presets import Policy
from tempo.policy.pruning import Never
from tempo.policy.serialize import rule_from
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import visible_slots
from tempo.trace.trace import Trace
from tempo.values import projections

REPLAYED = {"float32": 1e-3}
ROUNDED = 0.3
"""Nats by which a replayed log-probability may differ from the recorded one, in float32 and in
half precision, where what decodes together changes the rounding."""
_REPLAYED_SHARE = 1e-3

NO_TWIN_IN_TREES = (
    "members of this policy have children of their own, which cannot be fed without their parents"
)


@dataclass(slots=True)
class Replayed:
    """One sequence of the replay: the set with all its members, or with one of them.

    Attributes:
        members: Slots of the set in this sequence.
        states: Residual stream of the members.
        logits: Of the members.
        value_norm: Of the members; empty where norms are not known.
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
        """Keep what is asked of one step."""
        if outcome.step < self.step:
            return
        self.readouts.append(outcome.decoding.readout.log_probability)
        if outcome.step == self.step:
            self.logits = outcome.logits.float().cpu().numpy()
            self.value_norm = outcome.tensors.get("value_norm")
            return
        rows = outcome.tensors["weights"]
        self.columns.append(rows[..., self.members])
        if outcome.step == self.step + 1:
            self.prompt = rows[..., : self.n_prompt]


@dataclass(frozen=True, slots=True)
class Fork:
    """A sequence as it was once its set had run.

    Attributes:
        cache: Of this sequence alone; what the next step writes there may be written again.
    """

    decoding: Decoding
    cache: SlotCache
    step: int


@dataclass(frozen=True, slots=True)
class Replay:
    """The whole replay.

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
    together: Replayed
    alone: tuple[Replayed, ...]
    forks: tuple[Fork, ...]
    no_values: str


def check_replayable(trace: Trace) -> None:
    """Refuse a trace that cannot be fed again exactly.

    Raises:
        InputError: It was edited, members died in it, or it is not whole.
    """
    why = ""
    if trace.header.stopped == "running":
        why = "one that was interrupted: resume it first"
    elif trace.header.run.get("edits"):
        why = "an edited one: a trace records edits without their arrays, so they cannot be redone"
    elif not trace.slots.alive.all():
        why = "one in which members died: what a member does beside the dead has no twin alone"
    if why:
        raise InputError(
            f"expected a whole trace without edits or deaths, got {why}; decode "
            f"{trace.header.prompt_id!r} again without"
        )


def replay_set(model: LanguageModel, trace: Trace, step: int) -> Replay:
    """Feed a trace again, with every member of one set alone beside it.

    Raises:
        TwinError: It came out otherwise than recorded.
        ModelError: The states of this family cannot be read.
    """
    table, policy = trace.slots, _fed_again(trace)
    rules = [policy]
    if not policy.branches:
        rules += [alone(table, policy, slot) for slot in table.members(step).tolist()]
    header = trace.header
    ids = tuple(table.token[: table.n_prompt].tolist())
    plans = [
        Plan(header.prompt_id, header.arm, ids, rule, trace.n_steps, "ignore", rows_from=step)
        for rule in rules
    ]
    first = table.members(step)
    heard = [Replayed(first, step, table.n_prompt)]
    heard += [Replayed(first[:1], step, table.n_prompt) for _ in plans[1:]]
    capture, no_values = _capture(model)
    session = Session(model, capture, on_step=lambda outcome: heard[outcome.number].take(outcome))
    decodings, forks = _decode(session, plans, heard)
    return Replay(policy, decodings[0].table, heard[0], tuple(heard[1:]), forks, no_values)


def _fed_again(trace: Trace) -> Policy:
    """The rules of a trace, fed its own sets; in a tree with their parents."""
    policy: Policy = rule_from(trace.header.policy)
    sets = forced(trace.slots)
    if policy.branches:
        sets = replace(sets, parents=tuple(_parents(trace.slots)))
    return replace(policy, select=sets, prune=Never())


def _parents(table: SlotTable) -> list[tuple[int, ...]]:
    """For every set, the place of each member's parent in the set before."""
    firsts = [table.n_prompt - 1, *(int(table.members(k)[0]) for k in range(1, table.n_steps))]
    return [
        tuple((table.parent[table.members(step)] - first).tolist())
        for step, first in enumerate(firsts, 1)
    ]


def _capture(model: LanguageModel) -> tuple[Capture, str]:
    """Rows and norms of values, or rows and why there are no norms."""
    everything = tuple(range(model.n_layers)), tuple(range(model.n_heads))
    capture = Capture("weights", *everything, values=True)
    try:
        projections(model, capture)
    except ModelError as error:
        return replace(capture, values=False), str(error)
    return capture, ""


def _decode(
    session: Session, plans: Sequence[Plan], heard: Sequence[Replayed]
) -> tuple[list[Decoding], tuple[Fork, ...]]:
    """All sequences together; the stream is watched at the set, and the caches kept there."""
    step, widths = heard[0].step, [len(one.members) for one in heard]
    with torch.inference_mode(), attention_as(session.model.hf, NAME):
        decodings, cache = prefill(session, plans)
        for number in range(1, step):
            decodings = advance(session, decodings, cache=cache, step=number)
        with watched_stream(session.model) as stream:
            decodings = advance(session, decodings, cache=cache, step=step)
        forks = tuple(
            Fork(decoding, cache.take([number]), step) for number, decoding in enumerate(decodings)
        )
        for number in range(step + 1, plans[0].steps + 1):
            decodings = advance(session, decodings, cache=cache, step=number)
    states = np.stack([depth.float().cpu().numpy() for depth in stream.depths])
    for one, own in zip(heard, np.split(states, np.cumsum(widths)[:-1], axis=1), strict=True):
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
    allowed = REPLAYED.get(trace.header.model["dtype"], ROUNDED)
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
