"""Which heads hold a role? A score above its threshold, above its null, and not by chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tempo.errors import InputError, TooFewPromptsError
from tempo_analysis.stats.averages import mean_over_prompts
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
from tempo_analysis.studies.heads.detectors.rows import (
    ByHead,
    HeadScore,
    Stacked,
    chances_of,
    scores_of,
)
from tempo_analysis.studies.heads.detectors.successor import SuccessorOv

Q_BELOW = 0.05
NULL_PERCENTILE = 99.0

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class RoleScores:
    """One role for every head.

    Attributes:
        role: Name of the role.
        unit: What the score is a fraction, multiple or difference of.
        threshold: A role needs a score above this.
        score: Mean over sequences.
        chance: Mean over sequences of the value of even rows.
        low: Lower 95 % limit of the score over sequences; NaN where fewer than 8 have data.
        high: Upper limit.
        per_sequence: The score in each sequence; NaN where it has no data.
        control: The null in each sequence, moved by the difference of the two chance values: a text
            with more targets is not held against it.
        null_p99: 99th percentile over heads of the mean control: the null pooled over heads.
        p: One-sided t over sequences of "the score exceeds its own control", paired; NaN where
            fewer than 8 sequences have both.
        q: p adjusted over heads (Benjamini-Hochberg).
        assigned: Score above threshold, score above null_p99, and q below 0.05.
        percentile: Share of the heads, in per cent, that score no higher.
        n: Sequences with data.
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

    def best_first(self) -> list[tuple[int, int]]:
        """Layer and head indices by falling score; heads without data last."""
        order = np.argsort(-_nan_last(self.score), axis=None, kind="stable")
        return [divmod(int(place), self.score.shape[1]) for place in order]


def role_scores(
    role: str,
    scores: Sequence[HeadScore],
    controls: Sequence[HeadScore],
    *,
    threshold: float,
    unit: str = "share of the row",
    seed: int = SEED,
) -> RoleScores:
    """Score a role over sequences and assign it; the i-th control belongs to the i-th score.

    Raises:
        InputError: Scores and controls do not pair.
        TooFewPromptsError: Fewer than 8 sequences.
    """
    _check(role, scores, controls)
    values, chances = scores_of(scores), chances_of(scores)
    control = scores_of(controls) - chances_of(controls) + chances
    return judged(
        role,
        mean_over_prompts(values),
        mean_over_prompts(chances),
        per_sequence=values,
        control=control,
        threshold=threshold,
        unit=unit,
        seed=seed,
    )


def judged(
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
    """Assign a role; the null is a control for each sequence, or `null_p99` and `p` as they are."""
    values = np.empty((0, *score.shape)) if per_sequence is None else per_sequence
    beside = np.full_like(values, np.nan) if control is None else control
    top = _pooled_percentile(mean_over_prompts(beside)) if null_p99 is None else null_p99
    tested = one_sided_p(values - beside) if p is None else p
    q = benjamini_hochberg(tested)
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
    """P of "the mean over sequences is not above 0" (one-sample t) for every head.

    Differences within 1e-6, the rounding of float32 rows, are 0. Where all sequences agree there is
    nothing to test: p is 0 for a difference above 0 and 1 for any other. NaN below 8 sequences.
    """
    clean = np.where(np.abs(differences) < _ROUNDING, 0.0, differences)
    mean = mean_over_prompts(clean)
    two_sided = p_values(clean)
    enough = (~np.isnan(clean)).sum(0) >= SMALLEST_SAMPLE
    above = mean > 0
    tested = np.where(above, two_sided / 2, 1 - two_sided / 2)
    certain = np.where(enough, np.where(above, 0.0, 1.0), np.nan)
    return np.where(np.isnan(two_sided), certain, tested)


def from_chance_up(cut: float, scores: Sequence[HeadScore]) -> float:
    """A cut published for scores whose chance is near 0, counted from chance up to 1 instead."""
    chance = chances_of(scores)
    mean = float(chance[~np.isnan(chance)].mean()) if (~np.isnan(chance)).any() else np.nan
    return mean + cut * (1 - mean)


def _check(role: str, scores: Sequence[HeadScore], controls: Sequence[HeadScore]) -> None:
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
    shape = values.shape[1:]
    flat = values.reshape(len(values), shape[0] * shape[1])
    points = curve(np.arange(flat.shape[1], dtype=np.int64), flat, seed=seed)
    return points.low.reshape(shape), points.high.reshape(shape)


def _percentile(score: ByHead) -> ByHead:
    known = np.sort(score[~np.isnan(score)])
    below = np.searchsorted(known, score, side="right")
    share = 100.0 * below / max(len(known), 1)
    return np.where(np.isnan(score), np.nan, share)


def _nan_last(score: ByHead) -> Float64[np.ndarray, "layer head"]:
    return np.where(np.isnan(score), -np.inf, score)


COPYING = 0.5
"""Cut on the eigenvalue score: three quarters of the size of the eigenvalues copy. It is ours."""

SUCCESSOR = 0.5
"""Cut on the share of successions: more right than wrong. It is ours."""

SUPPRESSION = 0.5
"""Cut on the share of tokens that a head lowers when it attends to them. It is ours."""


def copying_role(found: OvCopying) -> RoleScores:
    """Eigenvalue score of the whole OV circuit; the null is random heads between the same ends."""
    return judged(
        "ov_copying",
        found.full,
        np.full_like(found.full, EIGENVALUE_CHANCE),
        null_p99=found.null_p99,
        p=found.p,
        threshold=COPYING,
        unit="net share of the eigenvalues",
    )


def successor_role(found: SuccessorOv) -> RoleScores:
    """Share of successions; the null is a head that picks evenly in the family, exactly."""
    return judged(
        "successor_ov",
        found.score,
        np.full_like(found.score, found.chance),
        null_p99=found.null_p99,
        p=found.p,
        threshold=SUCCESSOR,
        unit="share of the successions",
    )


def suppression_role(found: CopySuppression, *, seed: int = SEED) -> RoleScores:
    """Share of tokens lowered; the null is the same with every token under another one's name.

    Whether the head also looks for a token about to be said (`qk`) is reported and not asked: it
    must beat all other tokens of the sample, so it falls with the size of the sample. Tokens are
    what repeats: the p-value pairs each token with itself under the other name.
    """
    hits, control = (
        np.moveaxis(each, -1, 0).astype(np.float64) for each in (found.ov_hits, found.ov_control)
    )
    return judged(
        "copy_suppression",
        found.ov,
        np.full_like(found.ov, found.ov_chance),
        per_sequence=hits,
        control=control,
        threshold=SUPPRESSION,
        unit="share of the tokens",
        seed=seed,
    )
