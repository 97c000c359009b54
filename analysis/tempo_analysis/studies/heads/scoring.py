"""Every detector on one sequence, text or trace beside its null, and roles assigned over many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tempo_analysis.parallel.arms import Labels
from tempo_analysis.parallel.observation import ObservedTrace
from tempo_analysis.stats.intervals import SEED
from tempo_analysis.studies.heads.assignment import RoleScores, from_chance_up, role_scores
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
from tempo_analysis.studies.heads.detectors.receivers import Spans, receiver_cut, receivers
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

THRESHOLDS: Mapping[str, tuple[float, str]] = {
    "previous_token": (PREVIOUS_TOKEN_THRESHOLD, SHARE),
    "bos_sink": (SINK_THRESHOLD, SHARE),
    "delimiter": (DELIMITER_THRESHOLD, MULTIPLE),
    "duplicate_text": (DUPLICATE_THRESHOLD, SHARE),
    "duplicate_rare": (DUPLICATE_THRESHOLD, SHARE),
    "prefix_matching": (PREFIX_MATCHING_THRESHOLD, SHARE),
    "induction": (INDUCTION_THRESHOLD, SHARE),
    "duplicate_token": (DUPLICATE_THRESHOLD, SHARE),
}
"""Threshold and unit of each role that is scored sequence by sequence. Those of `positional` and
`receiver` depend on all sequences together. `duplicate_text` and `duplicate_rare` are the duplicate
score on text, with every token and without the most frequent ones and the delimiters."""


@dataclass(frozen=True, slots=True)
class ScoreAndNull:
    """The score of every head in one sequence, beside its null in the same sequence."""

    score: HeadScore
    null: HeadScore


@dataclass(frozen=True, slots=True)
class TextNulls:
    """The random permutations behind the nulls of texts of one length, drawn once for all of them.

    Attributes:
        everything: Shuffles all keys of a row.
        but_first: Shuffles all keys but slot 0.
        seed: With the number of the text, the seed of the permutation of its token ids.
    """

    everything: KeyShuffle
    but_first: KeyShuffle
    seed: int


@dataclass(frozen=True, slots=True)
class TextScores:
    """All scores of one text.

    Attributes:
        roles: By role.
        profile: Offset profile without the sink.
        null_profile: The same of shuffled rows.
        alpha: Mean weight on slot 0, query 0 included, for the sink rate.
        verticality: Largest column over the mean column.
        spectrum: How every head spreads its rows.
    """

    roles: Mapping[str, ScoreAndNull]
    profile: OffsetProfile
    null_profile: OffsetProfile
    alpha: HeadScore
    verticality: HeadScore
    spectrum: Spectrum


def text_nulls(rows: SequenceRows, *, seed: int = SEED) -> TextNulls:
    """Draw the permutations for texts of the shape and mask of `rows`."""
    # the second number keys the two permutations apart
    everything = draw_shuffle(rows, key=(seed, 0))
    but_first = draw_shuffle(rows, key=(seed, 1), keeps_first=True)
    return TextNulls(everything, but_first, seed)


def score_text(
    rows: SequenceRows,
    *,
    number: int,
    nulls: TextNulls,
    delimiters: Ids,
    common: Ids,
    spans: Spans | None = None,
) -> TextScores:
    """All scores of one text, each beside its null.

    Args:
        rows: The attention rows of the text.
        number: Number of the text among those of the census.
        nulls: From `text_nulls`.
        delimiters: Ids of delimiters.
        common: Ids that `duplicate_rare` leaves out: the most frequent ones and the delimiters.
        spans: Sentences for `receiver`; with None every token counts as a sentence, so that all
            texts have the same number of them.
    """
    shuffled, but_first = nulls.everything(rows), nulls.but_first(rows)
    relabelled = rows.relabelled(key=(nulls.seed, number))
    # Each role with the rows of its null: shuffled keys where it depends on slots, permuted ids
    # where it depends on tokens. `receiver` leaves slot 0 out, so its null must not move the sink.
    detectors: dict[str, tuple[Callable[[SequenceRows], HeadScore], SequenceRows]] = {
        "previous_token": (previous_token, shuffled),
        "bos_sink": (bos_sink, shuffled),
        "delimiter": (lambda each: delimiter(each, delimiters).over_chance(), relabelled),
        "duplicate_text": (duplicate_token, relabelled),
        "duplicate_rare": (lambda each: duplicate_token(each, without=common), relabelled),
        "prefix_matching": (prefix_matching, relabelled),
        "receiver": (lambda each: receivers(each, spans=spans).share_of_bound(), but_first),
    }
    return TextScores(
        roles={
            role: ScoreAndNull(detect(rows), detect(null))
            for role, (detect, null) in detectors.items()
        },
        profile=offset_profile(rows),
        null_profile=offset_profile(but_first),
        alpha=column_alpha(rows),
        verticality=verticality(rows),
        spectrum=spectrum(rows),
    )


def score_halves(
    repeated: SequenceRows, independent: SequenceRows, *, start: int = 0
) -> Mapping[str, ScoreAndNull]:
    """Induction and duplicate-token scores on [R, R], beside those on [R, R'].

    Args:
        repeated: Rows of a sequence whose second half repeats the first.
        independent: Rows of a sequence with two different halves.
        start: Tokens before the first half.

    Raises:
        InputError: The halves of one of them are not as expected.
    """
    return {
        "induction": ScoreAndNull(
            induction(repeated, start=start), induction_null(independent, start=start)
        ),
        "duplicate_token": ScoreAndNull(
            duplicate_halves(repeated, start=start),
            duplicate_halves_null(independent, start=start),
        ),
    }


def assign_roles(
    sequences: Sequence[Mapping[str, ScoreAndNull]], *, seed: int = SEED
) -> dict[str, RoleScores]:
    """Assign every role that the sequences were scored for.

    Raises:
        TooFewPromptsError: Fewer than 8 sequences.
    """
    found = {}
    for role in sequences[0]:
        scores = [each[role].score for each in sequences]
        nulls = [each[role].null for each in sequences]
        # only `receiver` is not in the table: its threshold is a rank over all heads
        threshold, unit = THRESHOLDS.get(role) or (receiver_cut(scores_of(scores)), BOUND)
        found[role] = role_scores(role, scores, nulls, threshold=threshold, unit=unit, seed=seed)
    return found


def assign_text_roles(texts: Sequence[TextScores], *, seed: int = SEED) -> dict[str, RoleScores]:
    """Assign every role of the texts, `positional` and `receiver` included.

    Raises:
        TooFewPromptsError: Fewer than 8 texts.
        InputError: Texts of several lengths.
    """
    found = assign_roles([each.roles for each in texts], seed=seed)
    # the offset of the peak is chosen over all texts, and again over all nulls
    scores = peaks([each.profile for each in texts]).scores
    nulls = peaks([each.null_profile for each in texts]).scores
    found["positional"] = role_scores(
        "positional", scores, nulls, threshold=POSITIONAL_THRESHOLD, unit=SHARE, seed=seed
    )
    return found


UNITS: Mapping[str, str] = {
    "sibling_attending": SHARE,
    "set_broadcast": "share of the row, times evenness",
    "winner_following": "share of the mass on the set",
    "set_ignoring": "log-ratio",
}
"""Unit of each role that is scored on traces."""

_TRACE_DETECTORS: Mapping[
    str, tuple[Callable[[ObservedTrace], HeadScore], Callable[..., HeadScore]]
] = {
    "sibling_attending": (sibling_attending, sibling_null),
    "set_broadcast": (set_broadcast, broadcast_null),
    "winner_following": (winner_following, winner_null),
}


def score_trace(
    observed: ObservedTrace,
    *,
    key: Sequence[int],
    greedy: tuple[ObservedTrace, Labels] | None = None,
) -> dict[str, ScoreAndNull]:
    """All scores of one prompt, each beside its null.

    Args:
        observed: The trace of a parallel arm.
        key: Seed sequence of the nulls: the seed and the number of the prompt.
        greedy: The greedy trace of the same prompt, and whether each step of the parallel arm wrote
            a set; `set_ignoring` is left out where None.

    Raises:
        LevelError: A trace keeps group masses only.
    """
    found = {
        role: ScoreAndNull(detect(observed), null(observed, key=key))
        for role, (detect, null) in _TRACE_DETECTORS.items()
    }
    if greedy is not None:
        found["set_ignoring"] = ScoreAndNull(*set_ignoring(observed, *greedy))
    return found


def assign_trace_role(
    role: str, prompts: Sequence[Mapping[str, ScoreAndNull]], *, seed: int = SEED
) -> RoleScores:
    """Assign one role over prompts. A role without data raises, so roles are assigned one by one.

    Raises:
        NoParallelSetsError: No row of any trace can see a target of the role.
        TooFewPromptsError: Fewer than 8 prompts.
    """
    scores = [each[role].score for each in prompts]
    require_data(role, scores)
    # a log-ratio has chance 0 and no upper end to count up to
    threshold = SET_IGNORING_THRESHOLD if role == "set_ignoring" else from_chance_up(CUT, scores)
    nulls = [each[role].null for each in prompts]
    return role_scores(role, scores, nulls, threshold=threshold, unit=UNITS[role], seed=seed)
