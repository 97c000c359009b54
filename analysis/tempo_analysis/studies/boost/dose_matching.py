"""The bias at which members of sets get the attention mass that they get alone.

With m the mass of a member alone, E that of the members of other sets there, o = m / (1 - m) and
S the sum of o over the set, a bias of beta on every member of all sets gives each of them the mass

    a = e^beta o / (1 + (e^beta - 1) E / (1 - m) + e^beta S)

if no score changes. This is exact at layer 0 for isolated members. In a first set E is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.interpolate import PchipInterpolator

from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval

Masses = Float64[np.ndarray, "member *cell"]

_LEAST_REST = 1e-6
"""Smallest mass of the rest of a float32 row from which the odds of a member are computed."""


@dataclass(frozen=True, slots=True)
class Restoring:
    """The bias at which the mean log(mass in the set / mass alone) of a prompt is 0.

    Attributes:
        target: Where the bias acts, and where the mass is read.
        by_prompt: In nats; NaN if the curve does not reach 0 at these doses or crosses it twice.
        law_by_prompt: The same by the odds law, from the masses alone.
        measured: Mean over prompts that have both doses. Prompts without one would need the largest
            doses, so this mean is too low.
        law: Mean over the same prompts.
        difference: Measured minus law, over prompts with both.
        pooled: Dose at which the mean curve over prompts crosses 0; NaN if it does not.
        pooled_law: The same of the law.
        loss: log(mass in the set / mass alone) without a bias.
    """

    target: str
    by_prompt: Float64[np.ndarray, " prompt"]
    law_by_prompt: Float64[np.ndarray, " prompt"]
    measured: Interval
    law: Interval
    difference: Interval
    pooled: float
    pooled_law: float
    loss: Interval

    @property
    def n_without(self) -> int:
        """Number of prompts that no given dose restores."""
        return int(np.isnan(self.by_prompt).sum())


def restoring(
    target: str,
    betas: Sequence[float],
    measured: Float64[np.ndarray, "prompt beta"],
    law: Float64[np.ndarray, "prompt beta"],
    *,
    seed: int = SEED,
) -> Restoring:
    """Find the doses at which the measured curves and those of the odds law cross 0.

    Args:
        target: Name of the target to which the curves belong.
        betas: Doses, rising, 0 among them.
        measured: Mean log(mass in the set / mass alone) of each prompt at each dose.
        law: The same under the odds law.
        seed: Of the intervals.
    """
    ours = np.array([crossing(betas, one) for one in measured], np.float64)
    theirs = np.array([crossing(betas, one) for one in law], np.float64)
    # The sum is NaN if either is. Both means cover the same prompts, so that they compare.
    both = np.isfinite(ours + theirs)
    return Restoring(
        target=target,
        by_prompt=ours,
        law_by_prompt=theirs,
        measured=estimate_with_interval(np.where(both, ours, np.nan), seed=seed),
        law=estimate_with_interval(np.where(both, theirs, np.nan), seed=seed),
        # Paired by prompt: prompts differ in dose far more than the law differs from the measure.
        difference=estimate_with_interval(ours - theirs, seed=seed),
        # Kept beside the mean of doses: a mean curve crosses even where some prompts do not.
        pooled=crossing(betas, mean_over_prompts(measured)),
        pooled_law=crossing(betas, mean_over_prompts(law)),
        loss=estimate_with_interval(measured[:, list(betas).index(0.0)], seed=seed),
    )


def crossing(betas: Sequence[float], values: Float64[np.ndarray, " beta"]) -> float:
    """The dose at which a curve is 0, by monotone cubic interpolation (Fritsch and Carlson 1980).

    Returns:
        NaN if the curve does not rise through 0 within the doses, is 0 more than once, or has no
        data at some dose; nothing is extrapolated or clipped.
    """
    if len(betas) < 2 or not np.isfinite(values).all() or not values[0] <= 0 <= values[-1]:
        return float("nan")
    # Monotone between doses; a plain cubic spline overshoots and would add crossings.
    curve = PchipInterpolator(np.asarray(betas, np.float64), values, extrapolate=False)
    roots = np.asarray(curve.roots(discontinuity=False, extrapolate=False))
    # Several roots mean no single dose: a choice among them would be arbitrary.
    found = np.unique(roots.round(9))  # a root on a dose is found in both of its intervals
    return float(found[0]) if len(found) == 1 and np.isfinite(found[0]) else float("nan")


def odds_law_log_ratio(beta: float, alone: Masses, others: Masses) -> Masses:
    """log(mass in the set / mass alone) under the odds law, of every member of a set.

    Args:
        beta: The bias on all members of all sets.
        alone: Mass of each member alone; 0 if it is not seen.
        others: Mass on members of other sets there.

    Returns:
        NaN in cells where a member has no mass alone, or the rest of the row has none.
    """
    rest = 1 - alone
    # Weights of 0 lie outside a window or underflow; their ratio to the mass alone is undefined.
    known = (alone > 0) & (rest > _LEAST_REST)
    whole = known.all(0)  # the odds of all members stand in the sum, so one unknown is enough
    safe = np.where(known, rest, 1.0)
    odds = np.where(known, alone, 0.0) / safe
    # the formula at the top; a is divided by m, which leaves e^beta / (1 - m) in front
    # expm1: exp(beta) - 1 loses all digits at small doses, and is exactly 0 at a dose of 0.
    total = 1 + np.expm1(beta) * others / safe + np.exp(beta) * odds.sum(0)
    return np.where(whole, beta - np.log(safe) - np.log(total), np.nan)
