"""Members of sets against single tokens that the model was unsure of, too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from tempo.policy.slots import SlotTable
from tempo.vocabulary import PROMPT_STEP
from tempo_analysis.parallel.observation import Observation, ObservedTrace, count_on, mass_on

SETS, SINGLES = range(2)
Kinds = Bool[np.ndarray, "step kind"]
"""For each step from 0, whether its slots are members of a set, or a single of low probability."""

Probabilities = tuple[Float32[np.ndarray, " member"], Float32[np.ndarray, " single"]]


@dataclass(frozen=True, slots=True)
class LowProbability:
    """One prompt: log of weight per member of a set over weight per single of low probability.

    Slot 0, the prompt, single tokens of higher probability, the query and its siblings are left
    out. Numerator and denominator are averaged over the rows that see both kinds.

    Attributes:
        log_ratio: NaN where no row sees both.
        log_null: Of the greedy run, its steps labelled as those of the arm.
        log_over_null: The difference over the steps that both have.
    """

    log_ratio: float
    log_null: float
    log_over_null: float


def low_probability(
    arm: ObservedTrace, slots: SlotTable, greedy: ObservedTrace, *, below: float
) -> LowProbability:
    """Compare one prompt with its greedy run.

    Args:
        arm: The run with sets.
        slots: Its slot table.
        greedy: The greedy run of the same prompt.
        below: Singles count where the probability of their token was lower.
    """
    kinds = kinds_of(slots, below=below)
    n_common = min(len(arm.steps), len(greedy.steps))
    widths = [len(step.queries) for step in arm.steps]
    common = _log_ratio(arm.steps[:n_common], kinds, widths=[1] * n_common)
    null = _log_ratio(greedy.steps[:n_common], kinds, widths=widths[:n_common])
    return LowProbability(
        log_ratio=_log_ratio(arm.steps, kinds, widths=[1] * len(widths)),
        log_null=null,
        log_over_null=common - null,
    )


def kinds_of(slots: SlotTable, *, below: float) -> Kinds:
    """What each step wrote: a set of width >= 2, a single of low probability, or neither."""
    widths = np.bincount(slots.step, minlength=slots.n_steps + 1)
    least = np.ones(len(widths))
    np.minimum.at(least, slots.step, np.nan_to_num(slots.probability, nan=1.0))
    kinds = np.stack([widths >= 2, (widths == 1) & (least < below)], -1)
    kinds[PROMPT_STEP] = False
    return kinds


def probabilities(slots: SlotTable, *, below: float) -> Probabilities:
    """Of the members of sets, and of the singles they are held against."""
    kinds = kinds_of(slots, below=below)[slots.step].T
    return slots.probability[kinds[SETS]], slots.probability[kinds[SINGLES]]


def _log_ratio(steps: Sequence[Observation], kinds: Kinds, *, widths: Sequence[int]) -> float:
    """Rows of a step count as often as `widths` says, for a run with one row at each step."""
    total, rows = np.zeros(2), 0
    for step, width in zip(steps, widths, strict=True):
        weight, seen = _weights(step, kinds)
        total += width * np.where(seen, weight, 0.0).sum((1, 2, 3))
        rows += width * int(seen.sum())
    if rows == 0:
        return float("nan")
    return float(np.log(total[SETS]) - np.log(total[SINGLES]))


def _weights(
    rows: Observation, kinds: Kinds
) -> tuple[Float64[np.ndarray, "kind layer head query"], Bool[np.ndarray, "layer head query"]]:
    """Weight per slot of either kind, and which rows see both."""
    step_of: Int64[np.ndarray, " slot"] = rows.table.step
    earlier = (step_of < rows.step) & (step_of != PROMPT_STEP)
    parts = kinds[step_of] & earlier[:, None]
    chosen = np.broadcast_to(parts, (len(rows.queries), *parts.shape))
    count = count_on(rows.visible, chosen)[:, None]
    mass = mass_on(rows.rows(), chosen)
    weight = np.moveaxis(mass / np.maximum(count, 1), -1, 0)
    return weight, np.broadcast_to((count > 0).all(-1), weight.shape[1:])
