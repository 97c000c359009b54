"""Assigns a role to the heads whose score is above a threshold, above the null, and significant."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tempo.errors import InputError, TooFewPromptsError
from tempo.vocabulary import Head
from tempo_analysis.stats.averages import ByHead, mean_over_prompts
from tempo_analysis.stats.intervals import (
    SEED,
    SMALLEST_SAMPLE,
    benjamini_hochberg,
    curve,
    p_values,
)
from tempo_analysis.studies.heads.detectors.copying import (
    EIGENVALUE_CHANCE,
    CopySuppression,
    OvCopying,
)
from tempo_analysis.studies.heads.detectors.rows import HeadScore, Stacked, chances_of, scores_of
from tempo_analysis.studies.heads.detectors.successor import SuccessorOv

Q_BELOW = 0.05
NULL_PERCENTILE = 99.0

_ROUNDING = 1e-6  # float32 rows sum to 1 within about this


@dataclass(frozen=True, slots=True)
class RoleScores:
    """The scores of every head for one role, and which heads have it.

    Attributes:
        role: Name of the role.
        unit: What the score is a fraction, multiple or difference of.
        threshold: A head with the role has a score above this.
        score: Mean over sequences.
        chance: Mean over sequences of the score under uniform attention.
        low: Lower 95 % limit of the score over sequences; NaN where fewer than 8 have data.
        high: Upper limit.
        per_sequence: The score in each sequence; NaN where it has no data.
        control: The null in each sequence, shifted by the difference of the two chance values, so
            that a control text with more targets does not look like a higher null.
        null_p99: 99th percentile over heads of the mean control: the null pooled over heads.
        p: One-sided p-value over sequences of "the score exceeds its own control" (paired t); NaN
            where fewer than 8 sequences have both.
        q: p adjusted over heads (Benjamini-Hochberg).
        assigned: Score above threshold, score above null_p99, and q below 0.05.
        percentile: Share of the heads, in per cent, with an equal or lower score.
        n: Number of sequences with data.
    """

    role: str
    unit: str
    threshold: float
    score: ByHead
    chance: ByHead
    low: ByHead
    high: ByHead
    per_sequence: Stacked
    control: Stacked
    null_p99: float
    p: ByHead
    q: ByHead
    assigned: Bool[np.ndarray, "layer head"]
    percentile: ByHead
    n: Int64[np.ndarray, "layer head"]

    def best_first(self) -> list[Head]:
        """All heads by falling score; heads without data last."""
        # a stable sort breaks ties by layer, then by head
        order = np.argsort(-_nan_last(self.score), axis=None, kind="stable")
        return [Head(*divmod(int(index), self.score.shape[1])) for index in order]


def role_scores(
    role: str,
    scores: Sequence[HeadScore],
    controls: Sequence[HeadScore],
    *,
    threshold: float,
    unit: str = "share of the row",
    seed: int = SEED,
) -> RoleScores:
    """Average the scores of sequences and assign the role.

    Args:
        role: Name of the role.
        scores: Of each sequence.
        controls: The nulls; the i-th belongs to the i-th score.
        threshold: A head with the role has a score above this.
        unit: Of the score.
        seed: Of the bootstrap.

    Raises:
        InputError: Scores and controls do not pair.
        TooFewPromptsError: Fewer than 8 sequences.
    """
    _check(role, scores, controls)
    values, chances = scores_of(scores), chances_of(scores)
    # score and control may have other numbers of targets; compare their excess over chance
    control = scores_of(controls) - chances_of(controls) + chances
    return assign_role(
        role,
        mean_over_prompts(values),
        mean_over_prompts(chances),
        per_sequence=values,
        control=control,
        threshold=threshold,
        unit=unit,
        seed=seed,
    )


def assign_role(
    role: str,
    score: ByHead,
    chance: ByHead,
    *,
    threshold: float,
    unit: str,
    per_sequence: Stacked | None = None,
    control: Stacked | None = None,
    null_p99: float | None = None,
    p: ByHead | None = None,
    seed: int = SEED,
) -> RoleScores:
    """Assign a role: score above `threshold`, above the null, and q < 0.05 over heads.

    Args:
        role: Name of the role.
        score: Of every head.
        chance: Of every head.
        threshold: A head with the role has a score above this.
        unit: Of the score.
        per_sequence: The score in each sequence; none for roles that the weights decide.
        control: The null in each sequence, paired with `per_sequence`.
        null_p99: 99th percentile of the null; from `control` where None.
        p: One-sided p-values; from `per_sequence` and `control` where None.
        seed: Of the bootstrap.
    """
    values = np.empty((0, *score.shape)) if per_sequence is None else per_sequence
    beside = np.full_like(values, np.nan) if control is None else control
    top = _pooled_percentile(mean_over_prompts(beside)) if null_p99 is None else null_p99
    tested = one_sided_p(values - beside) if p is None else p
    q = benjamini_hochberg(tested)
    # a comparison with NaN is False: a head without score or p-value never gets the role
    with np.errstate(invalid="ignore"):
        assigned = (score > threshold) & (score > top) & (q < Q_BELOW)
    low, high = _limits(values, seed)
    return RoleScores(
        role=role,
        unit=unit,
        threshold=threshold,
        score=score,
        chance=chance,
        low=low,
        high=high,
        per_sequence=values,
        control=beside,
        null_p99=top,
        p=tested,
        q=q,
        assigned=assigned,
        percentile=_percentile(score),
        n=(~np.isnan(values)).sum(0),
    )


def one_sided_p(differences: Stacked) -> ByHead:
    """One-sided p-value of "the mean over sequences is above 0" (one-sample t) for every head.

    Differences within 1e-6, the rounding of float32 rows, count as 0. Where all sequences are equal
    t is undefined: p is 0 for a difference above 0 and 1 otherwise. NaN below 8 sequences.
    """
    clean = np.where(np.abs(differences) < _ROUNDING, 0.0, differences)
    mean = mean_over_prompts(clean)
    two_sided = p_values(clean)
    enough = (~np.isnan(clean)).sum(0) >= SMALLEST_SAMPLE
    above = mean > 0
    # half of the two-sided p on the side of the mean, the rest on the other side
    tested = np.where(above, two_sided / 2, 1 - two_sided / 2)
    certain = np.where(enough, np.where(above, 0.0, 1.0), np.nan)
    return np.where(np.isnan(two_sided), certain, tested)


def from_chance_up(cut: float, scores: Sequence[HeadScore]) -> float:
    """A threshold for scores whose chance is not near 0: `cut` of the way from chance to 1."""
    chance = chances_of(scores)
    mean = float(chance[~np.isnan(chance)].mean()) if (~np.isnan(chance)).any() else np.nan
    return mean + cut * (1 - mean)


def _check(role: str, scores: Sequence[HeadScore], controls: Sequence[HeadScore]) -> None:
    """Refuse too few sequences, and scores that do not pair with controls."""
    if len(scores) < SMALLEST_SAMPLE:
        raise TooFewPromptsError(
            f"expected at least {SMALLEST_SAMPLE} sequences to assign {role}, got {len(scores)}; "
            "add sequences"
        )
    shapes = {each.score.shape for each in (*scores, *controls)}
    if len(scores) != len(controls) or len(shapes) != 1:
        raise InputError(
            f"expected one control for each score of {role}, over the same heads, got "
            f"{len(scores)} and {len(controls)} of shapes {sorted(shapes)}; pair them"
        )


def _pooled_percentile(null: ByHead) -> float:
    known = null[~np.isnan(null)]
    return float(np.percentile(known, NULL_PERCENTILE)) if len(known) else float("nan")


def _limits(values: Stacked, seed: int) -> tuple[ByHead, ByHead]:
    """Limits over sequences of every head; the interval functions take one axis of points."""
    shape = values.shape[1:]
    flat = values.reshape(len(values), shape[0] * shape[1])
    points = curve(np.arange(flat.shape[1], dtype=np.int64), flat, seed=seed)
    return points.low.reshape(shape), points.high.reshape(shape)


def _percentile(score: ByHead) -> ByHead:
    """Share of the heads with data, in per cent, whose score is not above this one."""
    known = np.sort(score[~np.isnan(score)])
    below = np.searchsorted(known, score, side="right")
    share = 100.0 * below / max(len(known), 1)
    return np.where(np.isnan(score), np.nan, share)


def _nan_last(score: ByHead) -> Float64[np.ndarray, "layer head"]:
    return np.where(np.isnan(score), -np.inf, score)


COPYING = 0.5
"""Cut on the eigenvalue score: three quarters of the total size is positive. Our choice, the paper
has none."""

SUCCESSOR = 0.5
"""Cut on the share of successions: more right than wrong. Our choice, the paper has none."""

SUPPRESSION = 0.5
"""Cut on the share of suppressed tokens: more than not. Our choice, the paper has none."""


def copying_role(found: OvCopying) -> RoleScores:
    """Role `ov_copying`: eigenvalue score from token to logit, against heads of random weights."""
    return assign_role(
        "ov_copying",
        found.full,
        np.full_like(found.full, EIGENVALUE_CHANCE),
        null_p99=found.null_p99,
        p=found.p,
        threshold=COPYING,
        unit="net share of the eigenvalues",
    )


def successor_role(found: SuccessorOv) -> RoleScores:
    """Role `successor_ov`: share of successions, against a head that picks at random (exact)."""
    return assign_role(
        "successor_ov",
        found.score,
        np.full_like(found.score, found.chance),
        null_p99=found.null_p99,
        p=found.p,
        threshold=SUCCESSOR,
        unit="share of the successions",
    )


def suppression_role(found: CopySuppression, *, seed: int = SEED) -> RoleScores:
    """Role `copy_suppression`: share of tokens lowered, against the logit of another token.

    The QK half (`qk`) is reported but not part of the role: a token must win against all others of
    the sample, so this half falls with the size of the sample. Tokens stand in the place of
    sequences: the p-value pairs each token with the same token under another one's name.
    """
    hits, control = (
        # [layer head token] to [token layer head]
        np.moveaxis(each, -1, 0).astype(np.float64)
        for each in (found.ov_hits, found.ov_control)
    )
    return assign_role(
        "copy_suppression",
        found.ov,
        np.full_like(found.ov, found.ov_chance),
        per_sequence=hits,
        control=control,
        threshold=SUPPRESSION,
        unit="share of the tokens",
        seed=seed,
    )
