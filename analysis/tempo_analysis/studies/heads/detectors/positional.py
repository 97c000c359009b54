"""Attention at fixed offsets: the previous token, and the offset profile of every head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from tempo.errors import InputError
from tempo.vocabulary import SINK_SLOT
from tempo_analysis.parallel.entropy import SMALLEST_REST
from tempo_analysis.parallel.ratio import Sink
from tempo_analysis.stats.averages import mean_over_prompts, quotient
from tempo_analysis.studies.heads.detectors.rows import (
    HeadScore,
    SequenceRows,
    mean_mass,
    offset_mask,
    require_length,
)

# Cut of the head suite of Goodfire's SPD (pull request 403).
POSITIONAL_THRESHOLD = 0.3
N_OFFSETS = 128
"""Offsets of the profile, from 0; as many as in that suite."""
SMALLEST_SHARE = 0.25
"""Offsets that fewer than this share of the queries reach are left out: their mean is noisy."""

NO_PEAK = 0
"""The peak of a head that has no weight at any offset from 1 on."""

Profile = Float64[np.ndarray, "layer head offset"]


@dataclass(frozen=True, slots=True)
class OffsetProfile:
    """Mean weight at each offset q - k of one sequence, from 0.

    Attributes:
        profile: In [0, 1]; NaN where too few rows reach that far back.
        even: The chance value: the same for uniform attention.
        rows: Number of rows averaged.
        sink: "with" if slot 0 counts; "without" if it is left out and rows are rescaled to sum to 1
            over the other slots.
    """

    profile: Profile
    even: Profile
    rows: Int64[np.ndarray, "layer head offset"]
    sink: Sink


@dataclass(frozen=True, slots=True)
class Peaks:
    """The offset with the highest mean weight, and the weight of each sequence there.

    Attributes:
        profile: Mean of the profiles over sequences.
        even: The chance value: the same for uniform attention.
        peak: Offset of the highest mean, from 1; `NO_PEAK` where all are 0 or NaN.
        scores: For each sequence, its profile at the peak. Chance is the profile of uniform
            attention at its own highest offset.
    """

    profile: Profile
    even: Profile
    peak: Int64[np.ndarray, "layer head"]
    scores: tuple[HeadScore, ...]


def offset_profile(
    rows: SequenceRows,
    *,
    sink: Sink = "without",
    smallest_share: float = SMALLEST_SHARE,
    n_offsets: int = N_OFFSETS,
) -> OffsetProfile:
    """Mean over queries q >= o of the weight at offset o, for o from 0 to n_offsets - 1.

    Slot 0 is left out by default and rows are rescaled over the other slots: slot 0 stands at
    offset q of query q, so an attention sink would add 1 / (T - o) to offset o of T tokens and make
    the last offset the peak. Rows with a weight below 1e-6 outside slot 0 are left out, and so are
    slots outside the window of a layer. The weight on slot 0 itself is `bos_sink`; read both, since
    the rescaled part may be a small part of the row.

    Args:
        rows: The attention rows of one sequence.
        sink: Whether slot 0 counts.
        smallest_share: Offsets that a smaller share of the queries reach are NaN.
        n_offsets: Number of offsets.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="an offset")
    n = rows.n_queries
    offsets = min(n_offsets, n)
    visible = rows.visibility()[..., :n].copy()
    weights = rows.weights[..., :n]
    if sink == "without":
        visible[..., SINK_SLOT] = False
        rest = weights[..., 1:].sum(-1, dtype=np.float64)
    else:
        rest = np.ones(weights.shape[:-1])  # rows are not rescaled
    usable = rest >= SMALLEST_REST
    scale = np.where(usable, 1 / np.where(usable, rest, 1), 0.0).astype(np.float32)
    total = _by_offset(weights, scale, sink).sum(2, dtype=np.float64)[..., :offsets]
    seen = _sheared(visible)[..., :offsets]
    spread = seen / np.maximum(visible.sum(-1), 1)[..., None]
    # as in the score, a row that cannot be rescaled counts in neither number
    count, even = (_over_rows(usable, each) for each in (seen.astype(np.float64), spread))
    # a count of 0 makes the quotient NaN
    enough = np.where(count >= max(smallest_share * n, 1), count, 0).astype(np.int64)
    return OffsetProfile(quotient(total, enough), quotient(even, enough), enough, sink)


def peaks(profiles: Sequence[OffsetProfile]) -> Peaks:
    """Positional score: the highest value of the mean profile, at one offset for all sequences.

    The maximum of the mean is taken, not the mean of the maxima, which noise biases upwards. The
    best of many offsets is chosen after looking, so the null chooses the same way: rows with
    shuffled keys (slot 0 fixed) go through `offset_profile` and `peaks` too.

    Raises:
        InputError: The sequences differ in length.
    """
    if len({each.profile.shape for each in profiles}) != 1:
        raise InputError(
            "expected profiles of sequences of one length, got several or none; cut them alike"
        )
    profile, even = (
        mean_over_prompts(np.stack([getattr(each, name) for each in profiles]))
        for name in ("profile", "even")
    )
    peak, even_peak = _highest(profile), _highest(even)
    scores = tuple(
        HeadScore(
            score=_at(each.profile, peak),
            chance=_at(each.even, even_peak),
            # rows that reach back one slot: the most that any peak can have
            n_queries=each.rows[..., 1].min(-1),
        )
        for each in profiles
    )
    found = np.where(_at(profile, peak) > 0, peak, NO_PEAK)
    return Peaks(profile, even, found, scores)


def _by_offset(
    weights: Float[np.ndarray, "layer head query slot"],
    scale: Float[np.ndarray, "layer head query"],
    sink: Sink,
) -> Float[np.ndarray, "layer head query offset"]:
    scaled = weights * scale[..., None]
    if sink == "without":
        scaled[..., SINK_SLOT] = 0
    return _sheared(scaled)


def _sheared(square: np.ndarray) -> np.ndarray:
    """Move entry (q, q - o) to (q, o), for o from 0; entries after the query must be 0."""
    # n zeros before the flattened square and a row length of n + 1 instead of n move row q by q + 1
    # places to the right, so that one offset stands in one column; [:0:-1] drops the padding column
    # and turns the columns round, so that offset 0 comes first
    *lead, n, _ = square.shape
    padded = np.zeros((*lead, n * n + n), square.dtype)
    padded[..., n:] = square.reshape(*lead, n * n)
    return padded.reshape(*lead, n, n + 1)[..., :0:-1]


def _over_rows(
    usable: Bool[np.ndarray, "layer head query"], values: Float[np.ndarray, "layer query offset"]
) -> Profile:
    return usable.astype(np.float64) @ values


def _highest(profile: Profile) -> Int64[np.ndarray, "layer head"]:
    """Offset of the highest value, from offset 1 on; NaN is never the highest."""
    return 1 + np.where(np.isnan(profile[..., 1:]), -1.0, profile[..., 1:]).argmax(-1)


def _at(profile: Profile, offset: Int64[np.ndarray, "layer head"]) -> Float64[np.ndarray, "_ _"]:
    return np.take_along_axis(profile, offset[..., None], axis=-1)[..., 0]


PREVIOUS_TOKEN_THRESHOLD = 0.3


def previous_token(rows: SequenceRows) -> HeadScore:
    """Previous-token score: mean over queries q >= 1 of the weight on slot q - 1; in [0, 1].

    Query 1 counts, although it sees two slots only. Chance is the mean of 1 / visible slots, which
    falls with the length of the text. TransformerLens divides by all queries, query 0 included.

    The null is the same score of rows with shuffled keys (`rows.KeyShuffle`). Random tokens are no
    null: a head that attends by position keeps its score there, rightly.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="the token before")
    return mean_mass(rows, offset_mask(rows, 1))
