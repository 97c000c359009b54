"""Every role of plain text and of parallel sets, beside its null, assigned at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tempo_analysis.parallel.arms import Labels
from tempo_analysis.parallel.observation import ObservedTrace
from tempo_analysis.stats.intervals import SEED
from tempo_analysis.studies.heads.assignment import RoleScores, from_chance_up, role_scores
from tempo_analysis.studies.heads.detectors import receivers
from tempo_analysis.studies.heads.detectors.induction import (
    DUPLICATE_THRESHOLD,
    INDUCTION_THRESHOLD,
    PREFIX_MATCHING_THRESHOLD,
    Ids,
    duplicate_halves,
    duplicate_halves_null,
    duplicate_token,
    induction,
    induction_null,
    prefix_matching,
)
from tempo_analysis.studies.heads.detectors.positional import (
    POSITIONAL_THRESHOLD,
    PREVIOUS_TOKEN_THRESHOLD,
    OffsetProfile,
    offset_profile,
    peaks,
    previous_token,
)
from tempo_analysis.studies.heads.detectors.receivers import Spans
from tempo_analysis.studies.heads.detectors.rows import (
    HeadScore,
    KeyShuffle,
    SequenceRows,
    draw_shuffle,
    scores_of,
)
from tempo_analysis.studies.heads.detectors.sets import (
    CUT,
    SET_IGNORING_THRESHOLD,
    broadcast_null,
    require_data,
    set_broadcast,
    set_ignoring,
    sibling_attending,
    sibling_null,
    winner_following,
    winner_null,
)
from tempo_analysis.studies.heads.detectors.sink import (
    DELIMITER_THRESHOLD,
    SINK_THRESHOLD,
    bos_sink,
    column_alpha,
    delimiter,
    verticality,
)
from tempo_analysis.studies.heads.detectors.spectrum import Spectrum, spectrum

MULTIPLE = "multiple of chance"
SHARE = "share of the row"
BOUND = "share of the largest kurtosis"

CUTS: Mapping[str, tuple[float, str]] = {
    "previous_token": (PREVIOUS_TOKEN_THRESHOLD, SHARE),
    "bos_sink": (SINK_THRESHOLD, SHARE),
    "delimiter": (DELIMITER_THRESHOLD, MULTIPLE),
    "duplicate_text": (DUPLICATE_THRESHOLD, SHARE),
    "duplicate_rare": (DUPLICATE_THRESHOLD, SHARE),
    "prefix_matching": (PREFIX_MATCHING_THRESHOLD, SHARE),
    "induction": (INDUCTION_THRESHOLD, SHARE),
    "duplicate_token": (DUPLICATE_THRESHOLD, SHARE),
}
"""Threshold and unit of each role that is scored sequence by sequence; `positional` and `receiver`
take theirs from all sequences. `duplicate_text` and `duplicate_rare` are the versions on text, with
every token and without the commonest and the delimiters."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A score of one sequence beside its null."""

    score: HeadScore
    null: HeadScore


@dataclass(frozen=True, slots=True)
class TextNulls:
    """What the nulls of a battery of texts of one length are drawn with, once for all of them.

    Attributes:
        everything: Shuffles all keys of a row.
        but_first: Shuffles all but slot 0.
        seed: Seed of the battery; labels are permuted by it and the number of the text.
    """

    everything: KeyShuffle
    but_first: KeyShuffle
    seed: int


@dataclass(frozen=True, slots=True)
class TextReadings:
    """One text.

    Attributes:
        readings: By role.
        profile: Offset profile without the sink.
        null_profile: The same of shuffled rows.
        alpha: Mean weight on slot 0 with query 0, for the sink rate.
        verticality: Largest column over the mean column.
        spectrum: Spread of the rows.
    """

    readings: Mapping[str, Reading]
    profile: OffsetProfile
    null_profile: OffsetProfile
    alpha: HeadScore
    verticality: HeadScore
    spectrum: Spectrum


def text_nulls(rows: SequenceRows, *, seed: int = SEED) -> TextNulls:
    """Draw the nulls from the shape and visibility of any text of the battery."""
    everything = draw_shuffle(rows, key=(seed, 0))
    but_first = draw_shuffle(rows, key=(seed, 1), keeps_first=True)
    return TextNulls(everything, but_first, seed)


def read_text(
    rows: SequenceRows,
    *,
    number: int,
    nulls: TextNulls,
    delimiters: Ids,
    common: Ids,
    spans: Spans | None = None,
) -> TextReadings:
    """All scores of one text.

    Args:
        rows: The text.
        number: Its number in the battery.
        nulls: From `text_nulls`.
        delimiters: Ids of delimiters.
        common: Ids that `duplicate_rare` leaves out: the most frequent ones and the delimiters.
        spans: Its sentences for `receiver`; None takes every token for one, so that all texts have
            the same number.
    """
    moved, unsunk = nulls.everything(rows), nulls.but_first(rows)
    relabelled = rows.relabelled(key=(nulls.seed, number))

    def marks(each: SequenceRows) -> HeadScore:
        return delimiter(each, delimiters).over_chance()

    def copies(each: SequenceRows, without: Ids | None) -> HeadScore:
        return duplicate_token(each, without=without)

    def peaked(each: SequenceRows) -> HeadScore:
        return receivers.receivers(each, spans=spans).share_of_bound()

    before, sink = previous_token, bos_sink
    follow = prefix_matching
    readings = {
        "previous_token": Reading(before(rows), before(moved)),
        "bos_sink": Reading(sink(rows), sink(moved)),
        "delimiter": Reading(marks(rows), marks(relabelled)),
        "duplicate_text": Reading(copies(rows, None), copies(relabelled, None)),
        "duplicate_rare": Reading(copies(rows, common), copies(relabelled, common)),
        "prefix_matching": Reading(follow(rows), follow(relabelled)),
        "receiver": Reading(peaked(rows), peaked(unsunk)),
    }
    return TextReadings(
        readings=readings,
        profile=offset_profile(rows),
        null_profile=offset_profile(unsunk),
        alpha=column_alpha(rows),
        verticality=verticality(rows),
        spectrum=spectrum(rows),
    )


def read_halves(
    again: SequenceRows, apart: SequenceRows, *, start: int = 0
) -> Mapping[str, Reading]:
    """Induction and duplicates on [R, R] beside [R, R'].

    Raises:
        InputError: The halves of either are of the other kind.
    """
    return {
        "induction": Reading(induction(again, start=start), induction_null(apart, start=start)),
        "duplicate_token": Reading(
            duplicate_halves(again, start=start),
            duplicate_halves_null(apart, start=start),
        ),
    }


def assigned_roles(
    readings: Sequence[Mapping[str, Reading]], *, seed: int = SEED
) -> dict[str, RoleScores]:
    """Every role that the sequences were read for.

    Raises:
        TooFewPromptsError: Fewer than 8 sequences.
    """
    found = {}
    for role in readings[0]:
        scores = [each[role].score for each in readings]
        nulls = [each[role].null for each in readings]
        cut, unit = CUTS.get(role) or (receivers.receiver_cut(scores_of(scores)), BOUND)
        found[role] = role_scores(role, scores, nulls, threshold=cut, unit=unit, seed=seed)
    return found


def text_roles(texts: Sequence[TextReadings], *, seed: int = SEED) -> dict[str, RoleScores]:
    """Every role of the texts, `positional` and `receiver` included.

    Raises:
        TooFewPromptsError: Fewer than 8 texts.
        InputError: Texts of several lengths.
    """
    found = assigned_roles([each.readings for each in texts], seed=seed)
    scores = peaks([each.profile for each in texts]).scores
    nulls = peaks([each.null_profile for each in texts]).scores
    found["positional"] = role_scores(
        "positional", scores, nulls, threshold=POSITIONAL_THRESHOLD, unit=SHARE, seed=seed
    )
    return found


Null = Callable[..., HeadScore]

UNITS: Mapping[str, str] = {
    "sibling_attending": "share of the row",
    "set_broadcast": "share of the row, times evenness",
    "winner_following": "share of the mass on the set",
    "set_ignoring": "log-ratio",
}

_ROLES: Mapping[str, tuple[Callable[[ObservedTrace], HeadScore], Null]] = {
    "sibling_attending": (sibling_attending, sibling_null),
    "set_broadcast": (set_broadcast, broadcast_null),
    "winner_following": (winner_following, winner_null),
}


def read_trace(
    observed: ObservedTrace,
    *,
    key: Sequence[int],
    greedy: tuple[ObservedTrace, Labels] | None = None,
) -> dict[str, Reading]:
    """All scores of one prompt.

    Args:
        observed: The trace of a parallel arm.
        key: What its nulls are keyed by: the seed and the number of the prompt.
        greedy: The greedy run of the same prompt and the labels its steps inherit; without it
            `set_ignoring` is not asked.

    Raises:
        LevelError: A trace was reduced to group masses.
    """
    found = {
        role: Reading(ask(observed), null(observed, key=key))
        for role, (ask, null) in _ROLES.items()
    }
    if greedy is not None:
        found["set_ignoring"] = Reading(*set_ignoring(observed, *greedy))
    return found


def trace_role(
    role: str, readings: Sequence[Mapping[str, Reading]], *, seed: int = SEED
) -> RoleScores:
    """One role over prompts; a role without data is refused by name, so ask one at a time.

    Raises:
        NoParallelSetsError: No row of any trace may see what the role attends to.
        TooFewPromptsError: Fewer than 8 prompts.
    """
    scores = [each[role].score for each in readings]
    require_data(role, scores)
    cut = SET_IGNORING_THRESHOLD if role == "set_ignoring" else from_chance_up(CUT, scores)
    nulls = [each[role].null for each in readings]
    return role_scores(role, scores, nulls, threshold=cut, unit=UNITS[role], seed=seed)
