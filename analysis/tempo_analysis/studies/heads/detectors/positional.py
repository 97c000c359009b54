"""Does a head look a fixed number of tokens back, such as at the previous token?"""

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

POSITIONAL_THRESHOLD = 0.3
N_OFFSETS = 128
SMALLEST_SHARE = 0.25
"""An offset is left out where fewer than this share of the queries reach that far."""

NO_PEAK = 0
"""The peak of a head that puts nothing on any offset from 1 on."""

Profile = Float64[np.ndarray, "layer head offset"]


@dataclass(frozen=True, slots=True)
class OffsetProfile:
    """Mean weight at each distance behind the query, from 0, in one sequence.

    Attributes:
        profile: NaN where too few rows reach that far.
        even: The same for even rows.
        rows: Rows behind each number.
        sink: Whether slot 0 is among the slots, or rows are rescaled to their mass without it.
    """

    profile: Profile
    even: Profile
    rows: Int64[np.ndarray, "layer head offset"]
    sink: Sink


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest offset of the profile averaged over sequences, and what each sequence has there.

    Attributes:
        profile: Mean over sequences.
        even: Its value for even rows.
        peak: Offset of the highest mean, from 1; `NO_PEAK` where all are 0 or none is known.
        scores: For each sequence, its profile at the peak, beside the highest of even rows.
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
    """Mean over queries of the weight at offsets 0 to n_offsets - 1.

    Slot 0 is left out and rows are rescaled to the rest: a sink is at distance q from every query,
    so it leaks 1 / (T - o) into offset o and peaks at the last one. A row with less than 1e-6
    outside slot 0 is left out, and so is a slot out of a layer's window. What a head pays to slot 0
    is another number (`bos_sink`); read both, since the rest may be little.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="an offset")
    n = rows.n_queries
    offsets = min(n_offsets, n)
    sight = rows.sight()[..., :n].copy()
    weights = rows.weights[..., :n]
    if sink == "without":
        sight[..., SINK_SLOT] = False
        rest = weights[..., 1:].sum(-1, dtype=np.float64)
    else:
        rest = np.ones(weights.shape[:-1])
    usable = rest >= SMALLEST_REST
    scale = np.where(usable, 1 / np.where(usable, rest, 1), 0.0).astype(np.float32)
    total = _by_offset(weights, scale, sink).sum(2, dtype=np.float64)[..., :offsets]
    seen = _sheared(sight)[..., :offsets]
    spread = seen / np.maximum(sight.sum(-1), 1)[..., None]
    count, even = (_over_rows(usable, each) for each in (seen.astype(np.float64), spread))
    enough = np.where(count >= max(smallest_share * n, 1), count, 0).astype(np.int64)
    return OffsetProfile(quotient(total, enough), quotient(even, enough), enough, sink)


def peaks(profiles: Sequence[OffsetProfile]) -> Peaks:
    """The maximum over offsets of the mean profile, not the mean of maxima, which is biased up.

    One offset of many is chosen by looking, so the null must choose in the same way: rows with
    shuffled keys (slot 0 kept) go through `offset_profile` and `peaks` too.

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
    """Entry (q, q - o) moved to (q, o), for o from 0; what lies ahead of the query must be 0."""
    *lead, n, _ = square.shape
    padded = np.zeros((*lead, n * n + n), square.dtype)
    padded[..., n:] = square.reshape(*lead, n * n)
    return padded.reshape(*lead, n, n + 1)[..., :0:-1]


def _over_rows(
    usable: Bool[np.ndarray, "layer head query"], values: Float[np.ndarray, "layer query offset"]
) -> Profile:
    return usable.astype(np.float64) @ values


def _highest(profile: Profile) -> Int64[np.ndarray, "layer head"]:
    """Offset of the highest known value from offset 1 on."""
    return 1 + np.where(np.isnan(profile[..., 1:]), -1.0, profile[..., 1:]).argmax(-1)


def _at(profile: Profile, offset: Int64[np.ndarray, "layer head"]) -> Float64[np.ndarray, "_ _"]:
    return np.take_along_axis(profile, offset[..., None], axis=-1)[..., 0]


PREVIOUS_TOKEN_THRESHOLD = 0.3


def previous_token(rows: SequenceRows) -> HeadScore:
    """Mean over queries q >= 1 of the weight on slot q - 1.

    Query 1 is in, though it has two slots only. Chance depends on the length. TransformerLens
    divides by all queries instead.

    The null is the same score of rows with shuffled keys (`detectors.rows`), whose
    expectation is the mean of each row. Random text is no null: a positional head is right to keep
    its score there, so that score is reported beside this one and takes no role away.

    Raises:
        InputError: Fewer than two tokens.
    """
    require_length(rows, at_least=2, question="the token before")
    return mean_mass(rows, offset_mask(rows, 1))
