"""Exact split of the change of attention to a member by its siblings: drift and competition."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float64
from scipy.special import logsumexp

from tempo.errors import InputError, LevelError, NoParallelSetsError, TwinError
from tempo.trace.run import Run
from tempo.trace.trace import Trace
from tempo_analysis.parallel.alone_pairs import (
    SMALLEST_SET,
    Cells,
    PairedRows,
    check_set,
    check_twin,
    reference_slots,
    rows_after,
)
from tempo_analysis.parallel.arms import Arms
from tempo_analysis.parallel.ratio import Q_BELOW, Sink
from tempo_analysis.stats.averages import RowAverage, average_rows, mean_over_prompts
from tempo_analysis.stats.bands import band
from tempo_analysis.stats.intervals import (
    SEED,
    Curve,
    Interval,
    Unanswered,
    benjamini_hochberg,
    estimate_with_interval,
    p_values,
)

MemberCells = Float64[np.ndarray, "member layer head query"]


@dataclass(frozen=True, slots=True)
class MemberSplit:
    """The split of one member; total = drift + competition.

    Attributes:
        total: log(mass in the set / mass alone).
        drift: Change of the score relative to the reference.
        competition: Change of the log mass on the reference.
    """

    total: Cells
    drift: Cells
    competition: Cells


@dataclass(frozen=True, slots=True)
class SetSplit:
    """The split of every member of one set, beside what independent odds predict.

    With m the mass alone and o = m / (1 - m), the odds law says a_i = o_i / (1 + sum_j o_j), so
    that every other slot of the row shrinks by (1 + o_i) / (1 + sum_j o_j). It is exact where no
    score changed: at layer 0 for isolated members. Elsewhere it may fail in two ways, which
    `elsewhere` adds up: mass moved to slots outside the reference (to the sink: see `sink_gain`),
    and what down-weighted members left to all others, log[(1 + sum o) / (1 + f sum o)] where the
    odds of every member fell by a factor f.

    Attributes:
        total: log(mass in the set / mass alone) = drift + competition.
        drift: Change of the score relative to the reference: down-weighting where below 0.
        competition: Change of the log mass on the reference = predicted + elsewhere.
        predicted: Competition, and total, under the odds law: dilution.
        elsewhere: Competition that the odds law does not predict.
        sink_gain: Change of the log mass on slot 0; NaN where it is not seen or has none.
        set_gain: log(mass on all members in the set / mean over them of their mass alone): above 0
            where the set gets more than one token would. NaN unless every member has mass.
    """

    total: MemberCells
    drift: MemberCells
    competition: MemberCells
    predicted: MemberCells
    elsewhere: MemberCells
    sink_gain: MemberCells
    set_gain: Cells


def split_member(
    in_set: Trace, alone: Trace, *, step: int, rank: int, reference: Sink
) -> MemberSplit:
    """Split the change of one member's mass, from the rows of the queries of the next set.

    Args:
        in_set: The run with the set of width >= 2.
        alone: The same without the member's siblings; needs rows at `step` + 1 only.
        step: The step that fed the set.
        rank: The member's rank in its set, from 0.
        reference: The prompt "with" or "without" slot 0.

    Raises:
        TwinError: `alone` is not that twin, or no set of width >= 2 is read there.
        LevelError: One of the traces was reduced to group masses.
    """
    check_twin(in_set, alone, step=step, rank=rank)
    # The rows of step k + 1 are the first that may see set k as earlier slots.
    return _split(rows_after(in_set, step), rows_after(alone, step), rank, reference)


def drift_from_scores(
    in_set: Trace, alone: Trace, *, step: int, rank: int, reference: Sink
) -> Cells:
    """The drift of `split_member`, computed from queries and keys instead of rows, as a check.

    With s the score (scaling, soft cap and bias included), lambda = s - logsumexp of s over the
    reference. The two parts of the split add up by construction; that both ways give the same
    drift is a real check. The arguments are those of `split_member`. NaN where the member or every
    slot of the reference is not visible.

    Raises:
        TwinError: As `split_member`.
        LevelError: One of the traces holds no queries and keys.
    """
    check_twin(in_set, alone, step=step, rank=rank)
    inside = _relative_score(in_set, step, int(in_set.members(step)[rank]), reference)
    # In the twin the member is the only slot of its set: index 0, whatever its rank.
    return inside - _relative_score(alone, step, int(alone.members(step)[0]), reference)


def split_set(in_set: Trace, alones: Sequence[Trace], *, step: int, reference: Sink) -> SetSplit:
    """Split the change of every member's mass, and compare it with the odds law.

    Args:
        in_set: The run with the set of width >= 2.
        alones: For each member, in rank order, the same without its siblings.
        step: The step that fed the set.
        reference: The prompt "with" or "without" slot 0.

    Raises:
        TwinError: The twins are too few or too many, or as `split_member`.
        LevelError: One of the traces was reduced to group masses.
    """
    check_set(in_set, step)
    width = len(in_set.members(step))
    if len(alones) != width:
        raise TwinError(f"expected a twin for each of {width} members, got {len(alones)}")
    for rank, alone in enumerate(alones):
        check_twin(in_set, alone, step=step, rank=rank)
    inside = rows_after(in_set, step)
    return _set_split(inside, [rows_after(alone, step) for alone in alones], reference)


def _split(inside: PairedRows, alone: PairedRows, rank: int, reference: Sink) -> MemberSplit:
    slots = reference_slots(inside.n_prompt, reference)
    # log(in set / alone) = [lambda in set - lambda alone] + [log M_R in set - log M_R alone],
    # lambda = log a - log M_R. Exact for each layer, head and query, and
    # only there: the logarithm of an average does not split.
    total = inside.log_mass([int(inside.members[rank])]) - _own_mass(alone)
    competition = inside.log_mass(slots) - alone.log_mass(slots)
    # By subtraction, so the two parts add up to the last digit; `drift_from_scores` is the
    # independent check.
    drift = total - competition
    # All three are NaN together, so their averages are over the same cells and still add up.
    known = ~np.isnan(drift)
    return MemberSplit(
        total=np.where(known, total, np.nan),
        drift=drift,
        competition=np.where(known, competition, np.nan),
    )


def _set_split(inside: PairedRows, alones: Sequence[PairedRows], reference: Sink) -> SetSplit:
    members = [_split(inside, alone, rank, reference) for rank, alone in enumerate(alones)]
    predicted = _by_odds(alones)
    competition = np.stack([member.competition for member in members])
    # Odds are NaN where one member takes the whole row; such cells must drop out of every term, or
    # the averages of the parts would not add up to that of the total.
    known = ~np.isnan(competition + predicted)
    total, drift = (
        np.stack([getattr(member, name) for member in members]) for name in ("total", "drift")
    )
    # Slot 0 has its own term: mass that left the members for the sink is not dilution.
    sink = inside.log_mass([0])
    return SetSplit(
        total=np.where(known, total, np.nan),
        drift=np.where(known, drift, np.nan),
        competition=np.where(known, competition, np.nan),
        predicted=np.where(known, predicted, np.nan),
        elsewhere=competition - predicted,
        sink_gain=np.stack([sink - alone.log_mass([0]) for alone in alones]),
        set_gain=_set_gain(inside, alones),
    )


def _own_mass(alone: PairedRows) -> Cells:
    """Log of what the member gets alone."""
    return alone.log_mass([int(alone.members[0])])


def _by_odds(alones: Sequence[PairedRows]) -> MemberCells:
    """log(1 + o_i) - log(1 + sum_j o_j)."""
    # If no score changes, each member keeps its odds against everything else, so a_i = o_i / (1 +
    # sum_j o_j), while alone m_i = o_i / (1 + o_i). The reference shrinks by the same factor as the
    # member: the law predicts competition and no drift.
    odds = np.stack([alone.odds(int(alone.members[0])) for alone in alones])
    # log1p keeps the digits of small odds, which 1 + o rounds away.
    return np.log1p(odds) - np.log1p(odds.sum(0))


def _set_gain(inside: PairedRows, alones: Sequence[PairedRows]) -> Cells:
    together = np.stack([inside.log_mass([int(slot)]) for slot in inside.members])
    apart = np.stack([_own_mass(alone) for alone in alones])
    # + log n makes the sum of the masses alone a mean: a set is compared with one token, not with n
    # tokens that each had the row to themselves.
    return logsumexp(together, axis=0) - logsumexp(apart, axis=0) + np.log(len(alones))


def _relative_score(trace: Trace, step: int, slot: int, reference: Sink) -> Cells:
    """Score of a slot minus the logsumexp of the scores of the reference."""
    prompt = reference_slots(trace.slots.n_prompt, reference)
    # The member goes first, so that index 0 is the member and the rest is the reference.
    scores = _scores(trace, step + 1, [slot, *prompt])
    member, others = scores[..., 0], scores[..., 1:]
    # Slots that are not visible have score -inf; -inf - -inf would be NaN with a warning.
    seen = np.isfinite(member) & np.isfinite(others).any(-1)
    relative = np.full(seen.shape, np.nan)
    relative[seen] = member[seen] - logsumexp(others[seen], axis=-1)
    return relative


def _scores(
    trace: Trace, step: int, slots: Sequence[int]
) -> Float64[np.ndarray, "layer head query slot"]:
    """What enters the softmax for some slots, recomputed in float64; -inf where not seen."""
    # float64: the check needs 1e-4 nats, and a dot product in float32 loses more where scores reach
    # the hundreds.
    q, k = trace.queries(step).astype(np.float64), trace.keys(step)[:, :, slots].astype(np.float64)
    # Under GQA query head h reads KV head h // G; numbers, not places, since a trace may hold a
    # selection of the heads.
    kv_of = np.asarray(trace.heads) // trace.header.model["queries_per_kv_head"]
    scaling = np.asarray(trace.header.scaling, np.float64)[:, None, None, None]
    scores = np.einsum("lhqc,lhsc->lhqs", q, k[:, kv_of]) * scaling
    # Order as in the model: scaling, then soft cap, then bias and mask (Gemma 2).
    for layer, cap in enumerate(trace.header.softcap):
        if cap is not None:
            scores[layer] = np.tanh(scores[layer] / cap) * cap
    bias = trace.bias(step)
    if bias is not None:
        scores += bias[:, None][..., slots]
    return np.where(trace.visible(step)[:, None][..., slots], scores, -np.inf)


T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Terms(Generic[T]):
    """One value of any type for each part of the split, all in nats.

    total = drift + competition, competition = predicted + elsewhere; see `SetSplit`.
    """

    total: T
    drift: T
    competition: T
    predicted: T
    elsewhere: T
    sink_gain: T
    set_gain: T

    def map(self, function: Callable[[T], U]) -> "Terms[U]":
        """Apply a function to each part."""
        return Terms(**{name: function(getattr(self, name)) for name in TERMS})


TERMS = tuple(field.name for field in fields(Terms))


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """One prompt; every (member, query) of every set counts once, heads and layers apart.

    Attributes:
        first: Means over its first set of width >= 2 only, where *alone* is a plain sequential run
            up to the set; no data where that set could not be split.
        all_sets: Means over every set that could be split.
        n_sets: How many these were.
        n_members: Their members.
        n_left_out: Sets of width >= 2 with a step after them that lack the twin of a member. The
            last set of a run is read by no query and counts nowhere.
    """

    reference: Sink
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    first: Terms[RowAverage]
    all_sets: Terms[RowAverage]
    n_sets: int
    n_members: int
    n_left_out: int


@dataclass(frozen=True, slots=True)
class Split:
    """The split over prompts.

    Attributes:
        interval: Mean over prompts of the prompt's mean over layers, heads, members and queries.
        by_prompt: The values behind it; NaN where a prompt has no data.
        by_layer: For each prompt, means within each layer.
        drift_by_head: Mean over prompts of each head's own drift.
        q_value_by_head: Adjusted p of "the head's drift is 0": t over prompts, Benjamini-Hochberg
            over layers x heads; NaN where not tested.
    """

    interval: Terms[Interval]
    by_prompt: Terms[Float64[np.ndarray, " prompt"]]
    by_layer: Terms[Float64[np.ndarray, "prompt layer"]]
    drift_by_head: Float64[np.ndarray, "layer head"]
    q_value_by_head: Float64[np.ndarray, "layer head"]


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Change of the attention to a token by its siblings, split into drift and competition.

    Everything is a log-ratio in nats: 0 is no change. Computed per layer, head and query, averaged
    within a prompt, means and intervals over prompts.

    Attributes:
        reference: The prompt "with" or "without" slot 0 is what scores are relative to.
        first: First sets of width >= 2 only.
        all_sets: All of them.
        n_sets: Sets split, over all prompts.
        n_members: Their members.
        n_left_out: Sets left out because a twin is missing.
    """

    reference: Sink
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    first: Split
    all_sets: Split
    n_sets: int
    n_members: int
    n_left_out: int


def prompt_split(
    in_set: Trace, alone: Mapping[tuple[int, int], Trace], *, reference: Sink
) -> PromptSplit:
    """Split every set of one prompt that has a twin for each member.

    Args:
        in_set: The run with its sets.
        alone: The twin of each member, by (step, rank).
        reference: The prompt "with" or "without" slot 0.

    Raises:
        TwinError: A twin is of no member of a set of width >= 2, or differs by more than siblings.
        LevelError: A trace was reduced to group masses.
    """
    ranks = {step: range(len(in_set.members(step))) for step in range(1, in_set.n_steps + 1)}
    wide = [step for step, members in ranks.items() if len(members) >= SMALLEST_SET]
    keys = {step: [(step, rank) for rank in ranks[step]] for step in wide}
    # A twin of no member is a sign of mismatched runs: better refused than left unused.
    unknown = sorted(set(alone) - {key for step in wide for key in keys[step]})
    if unknown:
        raise TwinError(f"expected twins of members of parallel sets, got (step, rank) {unknown}")
    # The last set has no step after it, so no query whose row could be split.
    read = [step for step in wide if step < in_set.n_steps]
    # All members or none: the odds law needs the odds of every member of the set.
    whole = [step for step in read if all(key in alone for key in keys[step])]
    sets = [
        split_set(in_set, [alone[key] for key in keys[step]], step=step, reference=reference)
        for step in whole
    ]
    return PromptSplit(
        reference=reference,
        layers=in_set.layers,
        heads=in_set.heads,
        # Empty where the first wide set could not be split: the next set has a parallel past, and
        # its *alone* is no plain sequential run.
        first=_averages(in_set, sets[: int(whole[:1] == wide[:1])]),
        all_sets=_averages(in_set, sets),
        n_sets=len(sets),
        n_members=sum(len(ranks[step]) for step in whole),
        n_left_out=len(read) - len(whole),
    )


def decomposition(prompts: Sequence[PromptSplit], *, seed: int = SEED) -> Decomposition:
    """Combine prompts.

    Raises:
        NoParallelSetsError: No prompt has a set that could be split.
        InputError: The prompts differ in reference, layers or heads.
    """
    n_sets = sum(prompt.n_sets for prompt in prompts)
    if n_sets == 0:
        raise NoParallelSetsError(
            "expected a set of width 2 or more, with a step after it and a twin for each member, "
            "got none; lower the threshold or decode more steps"
        )
    kinds = {(prompt.reference, prompt.layers, prompt.heads) for prompt in prompts}
    if len(kinds) > 1:
        raise InputError(
            "expected prompts split by the same reference, layers and heads, got "
            f"{len(kinds)} kinds; split all of them alike"
        )
    return Decomposition(
        reference=prompts[0].reference,
        layers=prompts[0].layers,
        heads=prompts[0].heads,
        first=_over_prompts([prompt.first for prompt in prompts], seed),
        all_sets=_over_prompts([prompt.all_sets for prompt in prompts], seed),
        n_sets=n_sets,
        n_members=sum(prompt.n_members for prompt in prompts),
        n_left_out=sum(prompt.n_left_out for prompt in prompts),
    )


def _averages(trace: Trace, sets: Sequence[SetSplit]) -> Terms[RowAverage]:
    shape = {"n_layers": len(trace.layers), "n_heads": len(trace.heads)}

    def average(name: str) -> RowAverage:
        # Each set counts as one step; merged, because sets of different prompts do not line up.
        return average_rows([_flat(getattr(one, name)) for one in sets], **shape).merged()

    return Terms(**{name: average(name) for name in TERMS})


def _flat(values: MemberCells | Cells) -> Float64[np.ndarray, "layer head _"]:
    """All members and queries on one axis."""
    if values.ndim == 3:
        return values
    # Layer and head stay apart, so that averages by head and by layer come from the same sums.
    by_head = np.moveaxis(values, 0, -2)
    return by_head.reshape(*by_head.shape[:2], -1)


def _over_prompts(prompts: Sequence[Terms[RowAverage]], seed: int) -> Split:
    table = Terms(**{name: [getattr(one, name) for one in prompts] for name in TERMS})
    by_prompt = table.map(lambda rows: np.array([row.overall() for row in rows]))
    drift = np.stack([row.by_head() for row in table.drift])
    return Split(
        interval=by_prompt.map(lambda values: estimate_with_interval(values, seed=seed)),
        by_prompt=by_prompt,
        by_layer=table.map(lambda rows: np.stack([row.by_layer() for row in rows])),
        drift_by_head=mean_over_prompts(drift),
        # One test for each head over prompts; the prompt is the unit, members and queries are not.
        q_value_by_head=benjamini_hochberg(p_values(drift)),
    )


SINKS: tuple[Sink, Sink] = ("without", "with")
ALONE = 1.0
"""Value of every factor of a token without siblings."""

UNPAIRED = (
    "the run holds no member of a set decoded without its siblings; decode again with --paired, "
    "and with alone on, to split down-weighting from dilution"
)
_BY_LAYER = ("drift", "competition", "predicted")


@dataclass(frozen=True, slots=True)
class Part:
    """The split of some sets, as factors of what a member gets alone.

    Attributes:
        factor: Geometric mean over prompts of each part of the split, with its interval.
        log_by_prompt: The values behind it, in nats; NaN where a prompt has no data.
        by_layer: Drift, competition and its prediction within each layer; limits hold at all
            layers at once.
        drift_by_head: Each head's own drift, in nats.
        q_value_by_head: Adjusted p of "the drift is 0", over layers x heads; NaN where not tested.
    """

    factor: Terms[Interval]
    log_by_prompt: Terms[Float64[np.ndarray, " prompt"]]
    by_layer: Mapping[str, Curve]
    drift_by_head: Float64[np.ndarray, "layer head"]
    q_value_by_head: Float64[np.ndarray, "layer head"]

    def heads_off_alone(self) -> tuple[int, int, int]:
        """Heads with a drift below 0 and above it at q < 0.05, and heads tested."""
        off = self.q_value_by_head < Q_BELOW
        tested = ~np.isnan(self.q_value_by_head)
        down = off & (self.drift_by_head < 0)
        return int(down.sum()), int((off & ~down).sum()), int(tested.sum())


@dataclass(frozen=True, slots=True)
class SetEffect:
    """What siblings change, over prompts; see `tempo_analysis.parallel.set_effect.Decomposition`.

    Attributes:
        arm: The arm whose sets were split.
        reference: Whether scores are relative to the prompt "with" or "without" slot 0.
        first: First sets of width >= 2 only, where alone is a plain sequential run.
        all_sets: All of them.
        n_sets: Sets split, over all prompts.
        n_members: Their members.
        n_left_out: Sets left out because a twin is missing.
    """

    arm: str
    reference: Sink
    first: Part
    all_sets: Part
    n_sets: int
    n_members: int
    n_left_out: int


def set_effects(
    run: Run, arms: Arms, *, seed: int = SEED
) -> tuple[dict[Sink, SetEffect], list[Unanswered]]:
    """The split without and with slot 0 in the reference; reads the run prompt by prompt.

    Empty, with a refusal, where the run was not paired, where no set could be split, where a twin
    differs by more than its siblings, and where the traces hold no rows. A twin that was not
    decoded to its end counts as missing.
    """
    if arms.alone is None:
        return {}, [Unanswered("split", ", ".join(arms.parallel or arms.free), UNPAIRED)]
    try:
        splits = [
            _both_splits(run.traces[prompt.id, arms.alone], run.alone(prompt.id))
            for prompt in run.prompts
            if (prompt.id, arms.alone) in run.traces
        ]
        return {
            sink: _set_effect(arms.alone, [one[sink] for one in splits], seed) for sink in SINKS
        }, []
    except (TwinError, LevelError, NoParallelSetsError) as error:
        return {}, [Unanswered("split", arms.alone, str(error))]


def _both_splits(in_set: Trace, alone: Mapping[tuple[int, int], Trace]) -> dict[Sink, PromptSplit]:
    # A twin still "running" was cut off: its rows may end before the step that is read.
    whole = {key: twin for key, twin in alone.items() if twin.header.stopped != "running"}
    return {sink: prompt_split(in_set, whole, reference=sink) for sink in SINKS}


def _set_effect(arm: str, prompts: list[PromptSplit], seed: int) -> SetEffect:
    found = decomposition(prompts, seed=seed)
    x = np.array(found.layers, np.int64)

    def part(split: Split) -> Part:
        # Bands in nats, exponentiated after: the mean over prompts is of logarithms.
        curves = {name: band(x, getattr(split.by_layer, name), seed=seed) for name in _BY_LAYER}
        return Part(
            factor=split.interval.map(Interval.exponentiated),
            log_by_prompt=split.by_prompt,
            by_layer={name: curve.exponentiated() for name, curve in curves.items()},
            drift_by_head=split.drift_by_head,
            q_value_by_head=split.q_value_by_head,
        )

    return SetEffect(
        arm=arm,
        reference=found.reference,
        first=part(found.first),
        all_sets=part(found.all_sets),
        n_sets=found.n_sets,
        n_members=found.n_members,
        n_left_out=found.n_left_out,
    )
