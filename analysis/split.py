"""What a slot loses by standing in a set: down-weighting (drift) plus competition (dilution).

For member i of set k and a query of set k+1, with a the mass on the member's slot, R the slots of
the prompt, M_R the mass on them and lambda = log a - log M_R:

    log(a in set / a alone) = [lambda in set - lambda alone] + [log M_R in set - log M_R alone]

*Alone* is the same run without the siblings (`analysis.companions`). The first bracket, the drift,
is a difference of scores, the second, competition, what the normaliser took. Every value belongs to
one layer, head and query, in nats; NaN where the member or the reference is not seen or has no mass
in either run, and then for all parts of the split alike, so that means of the parts add up too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import logsumexp

from analysis.companions import (
    Cells,
    Rows,
    check_set,
    check_twin,
    reference_slots,
    rows_after,
)
from analysis.ratio import Sink
from tempo.errors import TwinError
from tempo.trace.trace import Trace

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
    return _split(rows_after(in_set, step), rows_after(alone, step), rank, reference)


def drift_from_scores(
    in_set: Trace, alone: Trace, *, step: int, rank: int, reference: Sink
) -> Cells:
    """The drift of `split_member` by another route: from queries and keys, without any row.

    With s the score (scaling, soft cap and bias included), lambda = s - logsumexp of s over the
    reference: the identity of the split checks nothing, the agreement of the two routes does. The
    arguments are those of `split_member`. NaN where the member or the whole reference is not seen.

    Raises:
        TwinError: As `split_member`.
        LevelError: One of the traces holds no queries and keys.
    """
    check_twin(in_set, alone, step=step, rank=rank)
    inside = _relative_score(in_set, step, int(in_set.members(step)[rank]), reference)
    return inside - _relative_score(alone, step, int(alone.members(step)[0]), reference)


def split_set(in_set: Trace, alones: Sequence[Trace], *, step: int, reference: Sink) -> SetSplit:
    """Split the change of every member's mass, and hold it against the odds law.

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


def _split(inside: Rows, alone: Rows, rank: int, reference: Sink) -> MemberSplit:
    slots = reference_slots(inside.n_prompt, reference)
    total = inside.log_mass([int(inside.members[rank])]) - _own_mass(alone)
    competition = inside.log_mass(slots) - alone.log_mass(slots)
    drift = total - competition
    known = ~np.isnan(drift)
    return MemberSplit(
        total=np.where(known, total, np.nan),
        drift=drift,
        competition=np.where(known, competition, np.nan),
    )


def _set_split(inside: Rows, alones: Sequence[Rows], reference: Sink) -> SetSplit:
    members = [_split(inside, alone, rank, reference) for rank, alone in enumerate(alones)]
    predicted = _by_odds(alones)
    competition = np.stack([member.competition for member in members])
    known = ~np.isnan(competition + predicted)
    total, drift = (
        np.stack([getattr(member, name) for member in members]) for name in ("total", "drift")
    )
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


def _own_mass(alone: Rows) -> Cells:
    """Log of what the member gets alone."""
    return alone.log_mass([int(alone.members[0])])


def _by_odds(alones: Sequence[Rows]) -> MemberCells:
    """log(1 + o_i) - log(1 + sum_j o_j)."""
    odds = np.stack([alone.odds(int(alone.members[0])) for alone in alones])
    return np.log1p(odds) - np.log1p(odds.sum(0))


def _set_gain(inside: Rows, alones: Sequence[Rows]) -> Cells:
    together = np.stack([inside.log_mass([int(slot)]) for slot in inside.members])
    apart = np.stack([_own_mass(alone) for alone in alones])
    return logsumexp(together, axis=0) - logsumexp(apart, axis=0) + np.log(len(alones))


def _relative_score(trace: Trace, step: int, slot: int, reference: Sink) -> Cells:
    """Score of a slot minus the logsumexp of the scores of the reference."""
    prompt = reference_slots(trace.slots.n_prompt, reference)
    scores = _scores(trace, step + 1, [slot, *prompt])
    member, others = scores[..., 0], scores[..., 1:]
    seen = np.isfinite(member) & np.isfinite(others).any(-1)
    relative = np.full(seen.shape, np.nan)
    relative[seen] = member[seen] - logsumexp(others[seen], axis=-1)
    return relative


def _scores(
    trace: Trace, step: int, slots: Sequence[int]
) -> Float64[np.ndarray, "layer head query slot"]:
    """What enters the softmax for some slots, recomputed in float64; -inf where not seen."""
    q, k = trace.queries(step).astype(np.float64), trace.keys(step)[:, :, slots].astype(np.float64)
    kv_of = np.asarray(trace.heads) // trace.header.model["queries_per_kv_head"]
    scaling = np.asarray(trace.header.scaling, np.float64)[:, None, None, None]
    scores = np.einsum("lhqc,lhsc->lhqs", q, k[:, kv_of]) * scaling
    for layer, cap in enumerate(trace.header.softcap):
        if cap is not None:
            scores[layer] = np.tanh(scores[layer] / cap) * cap
    bias = trace.bias(step)
    if bias is not None:
        scores += bias[:, None][..., slots]
    return np.where(trace.visible(step)[:, None][..., slots], scores, -np.inf)
