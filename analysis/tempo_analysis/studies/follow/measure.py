"""`tempo.follow`: one member of a parallel set through the layers, compared with its controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from tempo.causal.attribution import lens_error, lens_logits
from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.decode import advance
from tempo.engine.edits import check_applied
from tempo.engine.state import DecodeContext
from tempo.errors import InputError, NoParallelSetsError
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.load import Source, load_model
from tempo.policy.edits import KnockOut
from tempo.policy.slots import SlotTable
from tempo.run.recorder import facts_of_model, text_of
from tempo.run.replay import (
    NO_TWIN_IN_TREES,
    Replay,
    ReplayedSequence,
    SetFork,
    check_replayable,
    replay_error,
    replay_set,
    seen_at,
)
from tempo.trace.compare import check_same_model
from tempo.trace.trace import Trace
from tempo.vocabulary import PROMPT_STEP, SINK_SLOT, OnProgress, silent
from tempo_analysis.studies.follow.findings import Followed
from tempo_analysis.studies.follow.logit_lens import lens_divergence, lens_of
from tempo_analysis.studies.follow.trajectory import (
    Control,
    Course,
    KnockedOut,
    chance_where_seen,
    mean_where_seen,
    odds_law,
)

TOGETHER = 8
"""Edited copies of a sequence in one batch: more are no faster, and each needs its own cache."""


def knocked_out(
    model: LanguageModel, fork: SetFork, slot: int, seen: Bool[np.ndarray, " layer"]
) -> KnockedOut | None:
    """Effect on the readout of the next step of hiding one slot from it.

    Copies of the sequence run in one batch, one without an edit and the others with one edit each,
    so that rounding is the same for all of them.

    Args:
        fork: The sequence before that step.
        seen: Layers in which a query of the step may see the slot.

    Returns:
        None where no layer shows it.
    """
    layers = np.flatnonzero(seen).tolist()
    if not layers:
        return None
    every = tuple(range(model.n_layers))
    # The set was written at fork.step. Its effect is read one step later, when the slot is a key.
    step = fork.step + 1
    edits = [
        KnockOut(layers=hidden, slots=(slot,), steps=(step,))
        # All layers first: effects[0] below is that edit, effects[1:] are the single layers.
        for hidden in (every, *((layer,) for layer in layers))
    ]
    effects = [
        effect
        for start in range(0, len(edits), TOGETHER)
        for effect in _effects(model, fork, edits[start : start + TOGETHER])
    ]
    # NaN, not 0, where no query sees the slot: nothing was hidden there, so there is no effect.
    one_layer = np.full(model.n_layers, np.nan)
    one_layer[layers] = effects[1:]
    return KnockedOut(one_layer, effects[0])


def _effects(model: LanguageModel, fork: SetFork, edits: Sequence[KnockOut]) -> list[float]:
    """KL(readout || edited readout) for every edit, in nats."""
    # Copy 0 has no edit. It is the base of every KL and rounds as the edited copies do.
    copies = len(edits) + 1
    session = DecodeContext(model, edits=tuple(edits), edited=tuple(range(1, copies)))
    with torch.inference_mode(), attention_as(model.hf, PACKED_ATTENTION):
        after = advance(
            session,
            [fork.decoding] * copies,
            # take copies: the step appends to this cache, and the next edits start from it too.
            cache=fork.cache.take([0] * copies),
            step=fork.step + 1,
        )
    # An edit that matched no cell would give a KL of 0, which looks like a result.
    check_applied(session.edits, session.applied_edits)
    readouts = np.stack([one.readout.log_probability for one in after])
    return lens_divergence(readouts[:1], readouts[1:]).tolist()


NO_CONTROL = "the prompt has no slot but slot 0 that the next step sees"
ASKED = "it was asked for"
CHOSEN = "of the widest set that another follows, the member that gets most attention"


def follow(
    trace: Trace,
    slot: int | None = None,
    *,
    model: Source | None = None,
    siblings: bool = True,
    on_progress: OnProgress = silent,
) -> Followed:
    """Follow one member of a parallel set through the layers of the model that made the trace.

    Measures its residual state, its logit lens, the attention that later steps pay to it, and how
    the readout of the next step changes when the member is hidden in one layer or in all layers.
    These are compared with chance, the member alone, its siblings, and a prompt slot that gets
    about as much attention.

    Args:
        trace: Of a run without edits in which no member was pruned.
        slot: A member of a set of two or more that another step follows; if not given, the member
            that gets most attention in the widest such set (the first of equals).
        model: The model that made the trace; loaded by its name there if not given.
        siblings: Whether to follow the other members too, which takes most of the time.
        on_progress: Called with a short text before each stage.

    Returns:
        The measures of the member by layer and by later step, and those of the controls.

    Raises:
        InputError: The slot is in no such set, nothing sees it, or the trace has edits or
            pruned members.
        NoParallelSetsError: The trace has no such set.
        TwinError: The model has other weights, or the run does not come out as recorded.
        ModelError: The model cannot be loaded, or its last norm is not known.

    Example:
        >>> trace = tempo.generate(model, "The cat sat on the").trace()
        >>> tempo.follow(trace, model=model)
    """
    check_replayable(trace)
    # Before the model is loaded: a wrong slot should not cost minutes.
    step = _step_of(trace.slots, slot)
    on_progress("loading the model")
    name, dtype = trace.header.model["name"], trace.header.model["dtype"]
    loaded = load_model(name, dtype=dtype) if model is None else load_model(model)
    check_same_model(trace, facts_of_model(loaded))
    on_progress("feeding the run again")
    replay = replay_set(loaded, trace, step)
    seen = tuple(
        seen_at(loaded, replay.policy, replay.table, later)
        # From the step after the set on: no earlier query can see it. Steps count from 1.
        for later in range(step + 1, trace.n_steps + 1)
    )
    return _Following(loaded, trace, replay, seen, on_progress).followed(slot, siblings=siblings)


@dataclass(frozen=True, slots=True)
class _Following:
    """A replay, and the measures taken from it.

    Attributes:
        seen: Which slots the queries of each later step may see.
    """

    model: LanguageModel
    trace: Trace
    replay: Replay
    seen: tuple[Bool[np.ndarray, "layer _ _"], ...]
    on_progress: OnProgress

    def followed(self, slot: int | None, *, siblings: bool) -> Followed:
        """All measures of one member.

        Args:
            slot: The member; None for the one that the next step attends to most.
            siblings: Whether to measure the other members too.
        """
        trace, replay, together = self.trace, self.replay, self.replay.together
        # First, as both raise: without an exact replay and a known lens no number below is valid.
        errors = {
            "replay_error": replay_error(trace, replay),
            "lens_error": lens_error(self.model, together.states[-1], together.logits),
        }
        # place: index in the set, which is also the order of columns, of alone and of forks[1:].
        members = together.members.tolist()
        place = self._most_attended() if slot is None else members.index(slot)
        member = self._course(place)
        others = [each for each in range(len(members)) if each != place and siblings]
        control = self._control(member)
        return Followed(
            model=dict(trace.header.model),
            prompt_id=trace.header.prompt_id,
            prompt=trace.header.prompt,
            arm=trace.header.arm,
            lattice=trace.lattice(),
            policy=dict(trace.header.policy),
            step=together.step,
            width=len(members),
            later=tuple(range(together.step + 1, trace.n_steps + 1)),
            n_queries=tuple(seen.shape[1] for seen in self.seen),
            chosen=CHOSEN if slot is None else ASKED,
            member=member,
            siblings=tuple(self._course(each) for each in others),
            alone=self._course(place, is_alone=True) if replay.alone else None,
            no_alone="" if replay.alone else NO_TWIN_IN_TREES,
            chance=self._chance(member.slot),
            odds_law=self._odds_law(place),
            own_change=self._own_change(place),
            next_token=self._next_token,
            next_text=text_of(self.model, self._next_token),
            control=control,
            no_control="" if control else NO_CONTROL,
            no_values=replay.no_values,
            **errors,
        )

    @property
    def _next_token(self) -> int:
        """The token the run went on with."""
        # The first member of the next set has rank 0: the most probable token of the readout.
        return int(self.trace.slots.token[self.trace.members(self.replay.together.step + 1)[0]])

    def _course(self, place: int, *, is_alone: bool = False) -> Course:
        """All measures of one member, in its set or alone."""
        table, together = self.trace.slots, self.replay.together
        slot = int(together.members[place])
        own, fork, column = together, self.replay.forks[0], place
        if is_alone:
            # forks[0] is the whole set. A sequence alone has one member, hence column 0.
            own, fork, column = self.replay.alone[place], self.replay.forks[place + 1], 0
        text = self.trace.token_text(slot)
        self.on_progress(f"hiding {text!r}{' alone' if is_alone else ''} layer by layer")
        lens = lens_of(
            lens_logits(self.model, own.states[:, column]),
            own.logits[column],
            # Also for a member alone: both are compared with the readout of the whole set.
            together.readouts[0],
            went_on=self._next_token,
            text_of=partial(text_of, self.model),
        )
        return Course(
            slot=slot,
            token=int(table.token[slot]),
            text=text,
            rank=int(table.rank[slot]),
            probability=float(table.probability[slot]),
            attention=self._attention([rows[..., column] for rows in own.columns], slot),
            # float64: a few channels are far larger than the rest, and their squares would hide it.
            norm=np.linalg.norm(own.states[:, column].astype(np.float64), axis=-1),
            value_norm=self._value_norm(own, column),
            lens=lens,
            knocked=self._knocked(fork, int(own.members[column]), slot),
        )

    def _knocked(self, fork: SetFork, slot: int, seen_as: int) -> KnockedOut | None:
        """Effect of hiding a slot.

        Args:
            fork: The sequence before the next step.
            slot: Its number in that sequence; other than in the trace where the member is alone.
            seen_as: Its number in the trace, which is the numbering of `seen`.
        """
        # seen[0] is the next step. One query that sees the slot is enough for an effect.
        shown = np.any(self.seen[0][..., seen_as], axis=-1)
        return knocked_out(self.model, fork, slot, shown)

    def _attention(
        self, by_step: Sequence[Float[np.ndarray, "layer head _"]], slot: int
    ) -> Float64[np.ndarray, "later layer head"]:
        """Mean over the queries of each later step that may see a slot."""
        pairs = zip(by_step, self.seen, strict=True)
        return np.stack([mean_where_seen(rows, seen[..., slot]) for rows, seen in pairs])

    def _chance(self, slot: int) -> Float64[np.ndarray, "later layer"]:
        return np.stack([chance_where_seen(seen, seen[..., slot]) for seen in self.seen])

    def _odds_law(self, place: int) -> Float64[np.ndarray, "later layer head"]:
        """Weight of a member that the odds law predicts from the weights of all of them alone."""
        slot, alone = int(self.replay.together.members[place]), self.replay.alone
        if not alone:
            return np.full((len(self.seen), self.model.n_layers, self.model.n_heads), np.nan)
        # columns is by member, then by step; the law joins all members of one step.
        by_step = zip(*(one.columns for one in alone), strict=True)
        laws = [odds_law(np.stack([rows[..., 0] for rows in each]))[place] for each in by_step]
        return self._attention(laws, slot)

    def _own_change(self, place: int) -> Float64[np.ndarray, " depth"]:
        """Norm of (states in the set minus states alone) over the norm of the states alone."""
        if not self.replay.alone:
            return np.full(self.model.n_layers + 1, np.nan)
        # As a share: norms grow by orders of magnitude with depth, so distances do not compare.
        inside = self.replay.together.states[:, place].astype(np.float64)
        outside = self.replay.alone[place].states[:, 0].astype(np.float64)
        return np.linalg.norm(inside - outside, axis=-1) / np.linalg.norm(outside, axis=-1)

    def _value_norm(self, own: ReplayedSequence, column: int) -> Float64[np.ndarray, "layer head"]:
        if own.value_norm is None:
            return np.full((self.model.n_layers, self.model.n_heads), np.nan)
        return own.value_norm[..., column].astype(np.float64)

    def _most_attended(self) -> int:
        """The place of the member to which the next step attends most."""
        # Only the next step: the knock-out is read there, and every followed set has one.
        rows, seen = self.replay.together.columns[0], self.seen[0]
        got = [
            _mean(mean_where_seen(rows[..., place], seen[..., slot]))
            for place, slot in enumerate(self.replay.together.members.tolist())
        ]
        if np.isnan(got).all():
            raise _unseen(self.replay.together.members.tolist())
        # The first of equals is the more probable member: places are in rank order.
        return int(np.nanargmax(got))

    def _control(self, member: Course) -> Control | None:
        """The prompt slot with the mean attention nearest to that of the member, as a ratio."""
        if member.knocked is None:
            raise _unseen([member.slot])
        rows, seen = self.replay.together.prompt, self.seen[0]
        # Slot 0 is the attention sink: its weight does not reflect its content (Xiao et al. 2023).
        slots = [slot for slot in range(rows.shape[-1]) if slot != SINK_SLOT]
        got = {slot: mean_where_seen(rows[..., slot], seen[..., slot]) for slot in slots}
        # Above 0 for the logarithm below; NaN, where nothing sees the slot, is not above 0 either.
        means = {slot: _mean(one) for slot, one in got.items() if _mean(one) > 0}
        if not means:
            return None
        # Weights span orders of magnitude: half and double the weight should count as equally far.
        wanted = np.log(_mean(member.attention[0]))
        slot = min(means, key=lambda each: abs(np.log(means[each]) - wanted))
        text = self.trace.token_text(slot)
        self.on_progress(f"hiding {text!r} of the prompt layer by layer")
        # A prompt slot comes before every set, so it has the same number in all sequences.
        knocked = self._knocked(self.replay.forks[0], slot, slot)
        assert knocked is not None
        return Control(slot, text, got[slot], knocked)


def _step_of(table: SlotTable, slot: int | None) -> int:
    """The step of the set to follow."""
    # The last set is left out: no step follows it, so nothing attends to it.
    widths = [len(table.members(step)) for step in range(1, table.n_steps)]
    if max(widths, default=0) < 2:
        raise NoParallelSetsError(
            "expected a set of two or more that another step follows, got none; lower the "
            "threshold or take more steps"
        )
    if slot is None:
        # index gives the first of equals; + 1 as steps count from 1.
        return widths.index(max(widths)) + 1
    followed = [step for step, width in enumerate(widths, 1) if width >= 2]
    # The lower limit matters: a negative slot would silently count from the end.
    step = int(table.step[slot]) if 0 <= slot < len(table) else -1
    if step in followed:
        return step
    listed = ", ".join(str(each) for one in followed for each in table.members(one).tolist())
    raise InputError(
        f"expected a member of a set of two or more that another step follows (slots {listed}), "
        f"got slot {slot}{_what_it_is(table, slot, step)}; choose one of them"
    )


def _what_it_is(table: SlotTable, slot: int, step: int) -> str:
    if step < 0:
        return f" of {len(table)}"
    if step == PROMPT_STEP:
        return ", which is of the prompt"
    return ", of the last set" if step == table.n_steps else ", which has no siblings"


def _unseen(slots: list[int]) -> InputError:
    return InputError(
        f"expected a member that a query of the next step may see, got slot "
        f"{', '.join(map(str, slots))}, which none may; follow another"
    )


def _mean(attention: Float64[np.ndarray, "layer head"]) -> float:
    """Mean over heads and over the layers in which the slot is seen; NaN if there is none."""
    # nanmean warns on an empty mean, and warnings are errors in the tests.
    return float(np.nanmean(attention)) if np.isfinite(attention).any() else float("nan")
