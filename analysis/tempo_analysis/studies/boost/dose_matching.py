"""The bias that gives members of sets the mass back that they get alone.

With m the mass of a member alone, E that of the members of other sets there, o = m / (1 - m) and
S the sum of o over the set, a bias of beta on every member gives, as long as no score changes,

    a = e^beta o / (1 + (e^beta - 1) E / (1 - m) + e^beta S)

which is exact at layer 0 for isolated members. In a first set E is 0.
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
"""Of a row in float32; where the rest of a row has less, its odds are not known."""


@dataclass(frozen=True, slots=True)
class Restoring:
    """The bias at which log(mass in the set / mass alone) is 0, on average over cells of a prompt.

    Attributes:
        target: Where the bias acts, and where the mass is read.
        by_prompt: In nats; NaN where the doses asked for do not reach 0, or cross it twice.
        law_by_prompt: The same from the masses alone by the odds law.
        measured: Mean over prompts that have both doses; those without need the largest.
        law: Mean over the same prompts.
        difference: Measured less law, over prompts with both.
        pooled: Where the mean curve over prompts crosses 0; NaN where it does not.
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
        """Prompts that no dose asked for restores."""
        return int(np.isnan(self.by_prompt).sum())


def restoring(
    target: str,
    betas: Sequence[float],
    measured: Float64[np.ndarray, "prompt beta"],
    law: Float64[np.ndarray, "prompt beta"],
    *,
    seed: int = SEED,
) -> Restoring:
    """Where the measured curves and those of the law cross 0.

    Args:
        target: Whose curves they are.
        betas: Doses, rising, 0 among them.
        measured: Mean log(mass in the set / mass alone) of each prompt at each dose.
        law: The same under the odds law.
    """
    ours = np.array([crossing(betas, one) for one in measured], np.float64)
    theirs = np.array([crossing(betas, one) for one in law], np.float64)
    both = np.isfinite(ours + theirs)
    return Restoring(
        target=target,
        by_prompt=ours,
        law_by_prompt=theirs,
        measured=estimate_with_interval(np.where(both, ours, np.nan), seed=seed),
        law=estimate_with_interval(np.where(both, theirs, np.nan), seed=seed),
        difference=estimate_with_interval(ours - theirs, seed=seed),
        pooled=crossing(betas, mean_over_prompts(measured)),
        pooled_law=crossing(betas, mean_over_prompts(law)),
        loss=estimate_with_interval(measured[:, list(betas).index(0.0)], seed=seed),
    )


def crossing(betas: Sequence[float], values: Float64[np.ndarray, " beta"]) -> float:
    """The dose at which a curve is 0, by monotone cubic interpolation (Fritsch and Carlson 1980).

    NaN where it does not rise through 0 within the grid, or is 0 more than once, or has no data at
    some dose; nothing is clipped to the grid.
    """
    if len(betas) < 2 or not np.isfinite(values).all() or not values[0] <= 0 <= values[-1]:
        return float("nan")
    curve = PchipInterpolator(np.asarray(betas, np.float64), values, extrapolate=False)
    roots = np.asarray(curve.roots(discontinuity=False, extrapolate=False))
    found = np.unique(roots.round(9))
    return float(found[0]) if len(found) == 1 and np.isfinite(found[0]) else float("nan")


def law_log_ratio(beta: float, alone: Masses, others: Masses) -> Masses:
    """log(mass in the set / mass alone) under the odds law, of every member of a set.

    Args:
        beta: The bias on all members of all sets.
        alone: Mass of each member alone; 0 is not seen.
        others: Mass on members of other sets there.

    Returns:
        NaN in cells where a member has no mass alone, or nothing else has.
    """
    rest = 1 - alone
    known = (alone > 0) & (rest > _LEAST_REST)
    whole = known.all(0)
    safe = np.where(known, rest, 1.0)
    odds = np.where(known, alone, 0.0) / safe
    total = 1 + np.expm1(beta) * others / safe + np.exp(beta) * odds.sum(0)
    return np.where(whole, beta - np.log(safe) - np.log(total), np.nan)
