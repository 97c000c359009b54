"""Dose and response: every measure of every prompt at every bias."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo.errors import InputError
from tempo_analysis.stats.intervals import SEED, Interval, curve, estimate_with_interval
from tempo_analysis.studies.boost.dose_matching import Restoring

Doses = Float64[np.ndarray, "prompt beta"]

CONTROL = "control"
ALL = "all"
MILD = 2.0
"""Nats. Slopes are fitted to doses up to this one; beyond it a response need not be linear."""
CURVED = frozenset({"kl"})
"""Measures with a minimum at a dose of 0; they grow with the square of a small dose."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measure.

    Attributes:
        name: Its key.
        title: For a reader.
        unit: Of the value.
        slope: Unit of its slope; empty if a slope has no meaning.
    """

    name: str
    title: str
    unit: str
    slope: str = ""


FORCED = (
    Quantity("kl", "KL(readout without bias || with bias)", "nats", "nats per squared nat of bias"),
    Quantity("top_1_changed", "most probable token changed", "share of steps"),
    # Logarithms: differences are then ratios, which compare between peaked and flat readouts.
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
        """Index of the dose of 0."""
        return self.betas.index(0.0)

    def change(self, measure: str) -> Doses:
        """A measure minus its own value without a bias."""
        found = self.values[measure]
        # Within each prompt, before any mean: the levels of prompts differ more than the effects.
        return found - found[:, self.base : self.base + 1]

    def slope(self, measure: str) -> Float64[np.ndarray, " prompt"]:
        """Slope of the change over mild doses, for each prompt: least squares through the origin.

        For `CURVED` measures, the coefficient of the squared dose. NaN with fewer than two mild
        doses.
        """
        doses = np.asarray(self.betas)
        # A dose of 0 has no change by definition, so it adds nothing to a line through the origin.
        mild = (np.abs(doses) <= MILD) & (doses != 0)
        x = doses[mild] ** (2 if measure in CURVED else 1)
        # One dose would fit the line exactly, whatever its shape.
        if len(x) < 2:
            return np.full(len(self.values[measure]), np.nan)
        return self.change(measure)[:, mild] @ x / (x @ x)


def at_doses(values: Doses, *, seed: int = SEED) -> tuple[Interval, ...]:
    """Mean over prompts at each dose, with pointwise limits."""
    # Pointwise here, for one dose at a time; figures use bands that hold at all doses at once.
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
    """Change under one target minus that under another, paired by prompt, at each dose."""
    return at_doses(first.change(measure) - second.change(measure), seed=seed)


def measured(dose: Dose, quantities: Sequence[Quantity]) -> list[Quantity]:
    """The measures that a dose has."""
    return [one for one in quantities if one.name in dose.values]


def find(doses: Sequence[Dose], target: str) -> Dose | None:
    """One target by name; None if it was not requested or has no data."""
    return next((dose for dose in doses if dose.target == target), None)


PAIRS = (("all", "control"), ("set readers", "other heads"), ("first third", "last third"))
"""Targets that are compared dose by dose, where both are there."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A bias chosen to give members the mass they get alone, and its effects.

    Attributes:
        name: Of the way it was chosen.
        about: In words, with its size.
        values: Of each measure, by prompt.
        base: The same without a bias.
        gap: Mean over heads of |mean over prompts of log(mass in the set / mass alone)|.
        gap_before: The same without a bias.
    """

    name: str
    about: str
    values: Mapping[str, Float64[np.ndarray, " prompt"]]
    base: Mapping[str, Float64[np.ndarray, " prompt"]]
    gap: float
    gap_before: float

    def change(self, measure: str, *, seed: int) -> Interval:
        """Mean over prompts of a measure minus its value without a bias."""
        return estimate_with_interval(self.values[measure] - self.base[measure], seed=seed)


@dataclass(frozen=True, slots=True)
class BoostNumbers:
    """Dose and response of a bias on members of sets, in one model.

    Attributes:
        model: Identity of the model, as in a trace.
        prompts: Ids of the prompts that have an answer, in order.
        refused: Why each of the other prompts has none, by id.
        skipped: Targets without an answer, and why.
        betas: Doses in nats, rising, 0 among them.
        doses: On identical tokens, one for each target.
        free: Decoded freely under the bias; empty if not requested.
        restoring: The dose that restores the mass alone, one for each target but the control.
        repairs: Effects at the restoring doses.
        no_repair: Why there is none.
        heads: Heads of each target that was chosen, for either half of the prompts.
        matched: Slots biased in the control for each member biased otherwise, mean over prompts.
        rounding_nats: Largest mean KL of a prompt when the same code adds nothing to the scores.
        n_sets: Sets of two or more that a step follows.
        tokens_hash: SHA-256 over the tokens and positions of the references.
        settings: Threshold, steps and other options of the references.
        seed: Of draws and intervals.
    """

    model: Mapping[str, Any]
    prompts: tuple[str, ...]
    refused: Mapping[str, str]
    skipped: Mapping[str, str]
    betas: tuple[float, ...]
    doses: tuple[Dose, ...]
    free: tuple[Dose, ...]
    restoring: tuple[Restoring, ...]
    repairs: tuple[Repair, ...]
    no_repair: str
    heads: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    matched: float
    rounding_nats: float
    n_sets: int
    tokens_hash: str
    settings: Mapping[str, Any]
    seed: int

    def dose(self, target: str) -> Dose:
        """The forced replays of one target."""
        found = find(self.doses, target)
        assert found is not None, f"no target {target}"
        return found

    def pairs(self) -> list[tuple[Dose, Dose]]:
        """Targets that are compared."""
        both = [(find(self.doses, first), find(self.doses, second)) for first, second in PAIRS]
        return [(one, other) for one, other in both if one and other]
