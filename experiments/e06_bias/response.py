"""One prompt with a bias on the scores of its sets beside the same without: what follows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tempo.trace.trace import Trace
from tempo_analysis.parallel.observation import GROUP, Observation, observe

SETS = GROUP["earlier_sets"]
OTHERS = [GROUP[name] for name in ("recent_prompt", "other_prompt", "earlier_singletons")]
Layers = Float64[np.ndarray, " layer"]
Rows = Float64[np.ndarray, "layer head query"]


@dataclass(frozen=True, slots=True)
class Response:
    """One prompt of a twin beside its reference.

    Attributes:
        row_log_odds: Change of log(mass on sets / mass on other slots), row by row, averaged in
            each layer; the first token, the query and its siblings left out.
        first_layer: Smallest and largest change of a row in the first layer captured.
        set_mass: Change of the mass on sets in each layer, over the rows that see one.
        log_entropy: Log of the entropy of the readout over that of the reference, mean over the
            steps from the first set on.
        next_mass: Change of the probability of the set that the reference went on with.
        next_mass_of_reference: That probability under the reference.
    """

    row_log_odds: Layers
    first_layer: tuple[float, float]
    set_mass: Layers
    log_entropy: float
    next_mass: float
    next_mass_of_reference: float


def responses(reference: Trace, twins: Sequence[Trace]) -> list[Response] | None:
    """Compare one prompt with its twins; None where no set of two or more is followed by a set."""
    wide = reference.slots.step[reference.slots.rank == 1]
    if not len(wide) or wide[0] >= reference.n_steps:
        return None
    return [_response(reference, twin, int(wide[0])) for twin in twins]


def _response(reference: Trace, twin: Trace, first: int) -> Response:
    seen, seen_twin = observe(reference), observe(twin)
    pairs = list(zip(seen.steps, seen_twin.steps, strict=True))
    odds = [_log_odds(there) - _log_odds(here) for here, there in pairs]
    masses = [_set_mass(there) - _set_mass(here) for here, there in pairs]
    lowest = np.concatenate([rows[0].ravel() for rows in odds])
    ours, theirs = (_next_mass(reference, one, first) for one in (reference, twin))
    return Response(
        row_log_odds=seen.average(odds).by_layer(),
        first_layer=(float(np.nanmin(lowest)), float(np.nanmax(lowest))),
        set_mass=seen.average(masses).by_layer(),
        log_entropy=_log_entropy(reference, twin, first),
        next_mass=theirs - ours,
        next_mass_of_reference=ours,
    )


def _log_odds(step: Observation) -> Rows:
    """NaN in rows that see no set or no other slot, or give one of them nothing."""
    sets, others = step.mass[..., SETS], step.mass[..., OTHERS].sum(-1)
    both = (sets > 0) & (others > 0)
    return np.where(both, np.log(np.where(both, sets, 1) / np.where(both, others, 1)), np.nan)


def _set_mass(step: Observation) -> Rows:
    return np.where(step.count[..., SETS][:, None] > 0, step.mass[..., SETS], np.nan)


def _log_entropy(reference: Trace, twin: Trace, first: int) -> float:
    ours, theirs = (
        np.array([one.readout(k).entropy_nats for k in range(first, reference.n_steps + 1)])
        for one in (reference, twin)
    )
    return float(np.log(theirs / ours).mean())


def _next_mass(reference: Trace, trace: Trace, first: int) -> float:
    """Mean over steps of the probability of the next set; tokens that are not listed count as 0."""
    masses = []
    for step in range(first, reference.n_steps):
        readout = trace.readout(step)
        next_set = reference.slots.token[reference.members(step + 1)]
        is_next = np.isin(readout.token, next_set)
        masses.append(float(np.exp(readout.log_probability[is_next].astype(np.float64)).sum()))
    return float(np.mean(masses))
