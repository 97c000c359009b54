"""One prompt with n copies of every token beside one copy: mass, the law of equal odds, readouts.

Steps count from the second on, the first whose rows see an earlier generated slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tempo.trace.trace import Trace
from tempo_analysis.parallel.divergence import MEASURES, readout_distance
from tempo_analysis.parallel.observation import GROUP, observe

EARLIER = (GROUP["earlier_sets"], GROUP["earlier_singletons"])
FROM_STEP = 2
Mass = Float64[np.ndarray, "step layer head"]
Layers = Float64[np.ndarray, " layer"]


@dataclass(frozen=True, slots=True)
class Copies:
    """One prompt under n copies beside one copy.

    Attributes:
        mass: Mean mass of a row on earlier generated slots, in each layer.
        one: The same with one copy.
        by_layer: What the law of equal odds makes of `one`.
        by_row: What it makes of each row of one copy, averaged afterwards.
        law_error: Largest distance of a row of the first layer captured from the law.
        mass_error: Largest distance of any row from that of one copy.
        readouts: `tempo_analysis.parallel.divergence.MEASURES` of the readouts, from one copy to n.
        largest_kl: KL from one copy to n at the step where it is largest.
        log_error: Largest difference of a log-probability that both readouts list.
    """

    mass: Layers
    one: Layers
    by_layer: Layers
    by_row: Layers
    law_error: float
    mass_error: float
    readouts: Float64[np.ndarray, " measure"]
    largest_kl: float
    log_error: float

    def measure(self, name: str) -> float:
        """Mean of one distance of the readouts over the steps."""
        return float(self.readouts[MEASURES.index(name)])


def equal_odds(mass: np.ndarray, n: int) -> np.ndarray:
    """The mass on n copies, of which one alone has `mass`."""
    return n * mass / (1 + (n - 1) * mass)


def generated_mass(trace: Trace) -> Mass:
    """Mass on earlier generated slots, averaged over the queries of a step, which are equal."""
    steps = observe(trace).steps[FROM_STEP - 1 :]
    return np.stack([step.mass[..., EARLIER].sum(-1).mean(-1) for step in steps])


def copies(one: Trace, many: Trace, n: int, mass_of_one: Mass) -> Copies:
    """Compare one prompt.

    Args:
        mass_of_one: `generated_mass` of the trace with one copy.
    """
    mass = generated_mass(many)
    law = equal_odds(mass_of_one, n)
    layers = mass_of_one.mean((0, 2))
    distances = _distances(one, many)
    return Copies(
        mass=mass.mean((0, 2)),
        one=layers,
        by_layer=equal_odds(layers, n),
        by_row=law.mean((0, 2)),
        law_error=float(np.abs(mass - law)[:, 0].max()),
        mass_error=float(np.abs(mass - mass_of_one).max()),
        readouts=distances.mean(0),
        largest_kl=float(distances[:, MEASURES.index("kl_forward")].max()),
        log_error=max(_log_error(one, many, step) for step in _steps(one)),
    )


def compare_copies(
    traces: Mapping[str, Trace], *, one: str, copies_of: Mapping[str, int]
) -> dict[str, Copies]:
    """One prompt under every number of copies; empty where it has too few steps."""
    if traces[one].n_steps < FROM_STEP:
        return {}
    mass = generated_mass(traces[one])
    return {
        arm: copies(traces[one], traces[arm], n, mass) for arm, n in copies_of.items() if arm != one
    }


def _steps(trace: Trace) -> Sequence[int]:
    return range(FROM_STEP, trace.n_steps + 1)


def _distances(one: Trace, many: Trace) -> Float64[np.ndarray, "step measure"]:
    found = [readout_distance(one.readout(step), many.readout(step)) for step in _steps(one)]
    return np.array([[getattr(each, name) for name in MEASURES] for each in found])


def _log_error(one: Trace, many: Trace, step: int) -> float:
    first, second = one.readout(step), many.readout(step)
    _, here, there = np.intersect1d(first.token, second.token, return_indices=True)
    return float(np.abs(first.log_probability[here] - second.log_probability[there]).max())
