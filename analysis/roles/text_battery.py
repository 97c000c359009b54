"""Every role of plain text, sequence by sequence beside its null, and assigned at the end.

Rows are large and scores small: a sequence is read once and only its scores are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.roles import (
    bos_sink,
    delimiter,
    duplicate_token,
    induction,
    positional,
    prefix_matching,
    previous_token,
    receivers,
)
from analysis.roles.assignment import RoleScores, role_scores
from analysis.roles.duplicate_token import Ids
from analysis.roles.receivers import Spans
from analysis.roles.rows import HeadScore, SequenceRows, scores_of
from analysis.roles.shuffling import KeyShuffle, draw_shuffle
from analysis.roles.spectrum import Spectrum, spectrum
from analysis.roles.verticality import verticality
from tempo_analysis.stats.intervals import SEED

MULTIPLE = "multiple of chance"
SHARE = "share of the row"
BOUND = "share of the largest kurtosis"

CUTS: Mapping[str, tuple[float, str]] = {
    "previous_token": (previous_token.THRESHOLD, SHARE),
    "bos_sink": (bos_sink.THRESHOLD, SHARE),
    "delimiter": (delimiter.THRESHOLD, MULTIPLE),
    "duplicate_text": (duplicate_token.THRESHOLD, SHARE),
    "duplicate_rare": (duplicate_token.THRESHOLD, SHARE),
    "prefix_matching": (prefix_matching.THRESHOLD, SHARE),
    "induction": (induction.THRESHOLD, SHARE),
    "duplicate_token": (duplicate_token.THRESHOLD, SHARE),
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
    profile: positional.OffsetProfile
    null_profile: positional.OffsetProfile
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
        return delimiter.delimiter(each, delimiters).over_chance()

    def copies(each: SequenceRows, without: Ids | None) -> HeadScore:
        return duplicate_token.duplicate_token(each, without=without)

    def peaked(each: SequenceRows) -> HeadScore:
        return receivers.receivers(each, spans=spans).share_of_bound()

    before, sink = previous_token.previous_token, bos_sink.bos_sink
    follow = prefix_matching.prefix_matching
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
        profile=positional.offset_profile(rows),
        null_profile=positional.offset_profile(unsunk),
        alpha=bos_sink.column_alpha(rows),
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
        "induction": Reading(
            induction.induction(again, start=start), induction.induction_null(apart, start=start)
        ),
        "duplicate_token": Reading(
            duplicate_token.duplicate_halves(again, start=start),
            duplicate_token.duplicate_halves_null(apart, start=start),
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
    scores = positional.peaks([each.profile for each in texts]).scores
    nulls = positional.peaks([each.null_profile for each in texts]).scores
    found["positional"] = role_scores(
        "positional", scores, nulls, threshold=positional.THRESHOLD, unit=SHARE, seed=seed
    )
    return found
