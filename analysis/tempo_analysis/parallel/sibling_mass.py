"""Attention between members of the same set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tempo_analysis.parallel.observation import GROUP, Observation, ObservedTrace, share
from tempo_analysis.stats.averages import RowAverage
from tempo_analysis.stats.intervals import SEED, Curve, curve


@dataclass(frozen=True, slots=True)
class PromptSiblings:
    """Mass on siblings for one prompt, with its chance value and the two extremes.

    Attributes:
        mass: Share of the row on siblings; rows of sets of width >= 2 only.
        chance: Visible siblings over visible slots, same rows.
        largest: Largest mass on siblings of any row; NaN without such rows.
        largest_hidden: Largest mass on siblings of a row that may see none; NaN without such rows.
    """

    mass: RowAverage
    chance: RowAverage
    largest: float
    largest_hidden: float


@dataclass(frozen=True, slots=True)
class SiblingMass:
    """Attention between members of one set, as a share of the row in [0, 1].

    Only rows of queries in sets of width >= 2 count, over every captured head and step, whether or
    not the query may see its siblings (in an ordered set the first member may see none). The chance
    value is the share of visible slots that are siblings: 0 in an isolated set.

    Attributes:
        by_layer: Mass in each layer.
        chance_by_layer: Its chance value.
        largest: Largest mass of any row of any prompt.
        largest_hidden: Largest mass where no sibling was visible; above 0 the mask is wrong.
    """

    layers: tuple[int, ...]
    by_layer: Curve
    chance_by_layer: Curve
    largest: float
    largest_hidden: float


def prompt_siblings(observed: ObservedTrace) -> PromptSiblings:
    """Mass on siblings of one prompt, at any level."""
    steps = [step for step in observed.steps if len(step.queries) >= 2]
    masses = [step.mass[..., GROUP["siblings"]] for step in steps]
    hidden = [
        # Rows with no visible sibling are the test of the mask: their mass must be exactly 0.
        np.where(step.count[..., GROUP["siblings"]][:, None] == 0, mass, np.nan)
        for step, mass in zip(steps, masses, strict=True)
    ]
    return PromptSiblings(
        # Hidden rows are in the mean with their 0: in an isolated set that is the answer.
        mass=observed.average(masses).merged(),
        chance=observed.average([_chance(step) for step in steps]).merged(),
        largest=_largest(masses),
        largest_hidden=_largest(hidden),
    )


def sibling_mass(
    prompts: Sequence[PromptSiblings], *, layers: tuple[int, ...], seed: int = SEED
) -> SiblingMass:
    """Curves over layers, with intervals over prompts."""
    x = np.array(layers, np.int64)
    mass = np.stack([prompt.mass.by_layer() for prompt in prompts])
    chance = np.stack([prompt.chance.by_layer() for prompt in prompts])
    return SiblingMass(
        layers=layers,
        by_layer=curve(x, mass, seed=seed),
        chance_by_layer=curve(x, chance, seed=seed),
        largest=_largest([np.array([prompt.largest]) for prompt in prompts]),
        largest_hidden=_largest([np.array([prompt.largest_hidden]) for prompt in prompts]),
    )


def _chance(rows: Observation) -> np.ndarray:
    # By layer, then broadcast over heads, which share the mask of their layer.
    even = share(rows.count[..., GROUP["siblings"]], rows.count.sum(-1))
    return np.broadcast_to(even[:, None], rows.mass.shape[:-1])


def _largest(values: Sequence[np.ndarray]) -> float:
    """Largest value that is not NaN; NaN where there is none."""
    # Not np.nanmax, which warns on an array of NaN only.
    known = [float(array[~np.isnan(array)].max()) for array in values if not np.isnan(array).all()]
    return max(known, default=float("nan"))
