"""Dose and response: what every measure of every prompt is at every bias."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

from tempo.errors import InputError
from tempo_analysis.stats.intervals import SEED, Interval, curve, estimate_with_interval

Doses = Float64[np.ndarray, "prompt beta"]

CONTROL = "control"
ALL = "all"
MILD = 2.0
"""Nats; slopes are fitted to doses no larger than this."""
CURVED = frozenset({"kl"})
"""Measures that are smallest at 0, and grow with the square of a small dose."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measure.

    Attributes:
        name: Its key.
        title: For a reader.
        unit: Of the value.
        slope: Unit of its slope; empty where a slope says nothing.
    """

    name: str
    title: str
    unit: str
    slope: str = ""


FORCED = (
    Quantity("kl", "KL(readout without bias || with bias)", "nats", "nats per squared nat of bias"),
    Quantity("top_1_changed", "most probable token changed", "share of steps"),
    Quantity("log_entropy", "log entropy of the readout", "log nats", "log ratio per nat of bias"),
    Quantity("set_nll", "-log p of the next set", "nats", "nats per nat of bias"),
    Quantity("top_nll", "-log p of the next set's top member", "nats", "nats per nat of bias"),
    Quantity("mixture_kl", "KL(exact mixture of the paths || readout)", "nats", "nats per nat"),
    Quantity("share", "attention on the biased slots", "share of the row", "share per nat of bias"),
    Quantity("log_ratio", "log(mass in the set / mass alone)", "nats", "nats per nat of bias"),
)
"""On identical tokens."""
FREE = (
    Quantity("path_nll", "-log p of the top path, plain and without bias", "nats per token"),
    Quantity("distinct_2", "different bigrams of the top path", "share of bigrams"),
    Quantity("branches", "effective branches of a set", "members"),
    Quantity("repetition", "repeated trigrams of the top path", "share of trigrams"),
)
"""Decoded freely under the bias, all texts of one length."""
QUANTITIES = {one.name: one for one in (*FORCED, *FREE)}


@dataclass(frozen=True, slots=True)
class Dose:
    """One target at every dose.

    Attributes:
        target: Its name.
        about: Which heads and slots get the bias, in words.
        n_heads: How many heads do.
        betas: Doses in nats, rising, 0 among them.
        values: Of each measure, by prompt and dose; NaN where a prompt has no data.
    """

    target: str
    about: str
    n_heads: int
    betas: tuple[float, ...]
    values: Mapping[str, Doses]

    def __post_init__(self) -> None:
        if 0.0 not in self.betas or any(a >= b for a, b in pairwise(self.betas)):
            raise InputError(f"expected rising doses with 0 among them, got {self.betas}")

    @property
    def base(self) -> int:
        """Place of the dose of 0."""
        return self.betas.index(0.0)

    def change(self, measure: str) -> Doses:
        """A measure less its own value without a bias."""
        found = self.values[measure]
        return found - found[:, self.base : self.base + 1]

    def slope(self, measure: str) -> Float64[np.ndarray, " prompt"]:
        """Least squares through the origin of the change, for each prompt, over mild doses.

        Of `CURVED` measures the coefficient of the squared dose. NaN without two mild doses.
        """
        doses = np.asarray(self.betas)
        mild = (np.abs(doses) <= MILD) & (doses != 0)
        x = doses[mild] ** (2 if measure in CURVED else 1)
        if len(x) < 2:
            return np.full(len(self.values[measure]), np.nan)
        return self.change(measure)[:, mild] @ x / (x @ x)


def at_doses(values: Doses, *, seed: int = SEED) -> tuple[Interval, ...]:
    """Mean over prompts at each dose, with limits that hold at each alone."""
    n = values.shape[1]
    found = curve(np.arange(n), values, seed=seed)
    columns = (found.estimate, found.low, found.high, found.n, found.methods)
    return tuple(
        Interval(float(e), float(low), float(high), int(k), how, n_dropped=len(values) - int(k))
        for e, low, high, k, how in zip(*columns, strict=True)
    )


def slope_of(dose: Dose, measure: str, *, seed: int = SEED) -> Interval:
    """Mean slope over prompts."""
    return estimate_with_interval(dose.slope(measure), seed=seed)


def less(first: Dose, second: Dose, measure: str, *, seed: int = SEED) -> tuple[Interval, ...]:
    """Change under one target less that under another, paired by prompt, at each dose."""
    return at_doses(first.change(measure) - second.change(measure), seed=seed)


def find(doses: Sequence[Dose], target: str) -> Dose | None:
    """One target by name; None where it was not asked for or has no answer."""
    return next((dose for dose in doses if dose.target == target), None)
