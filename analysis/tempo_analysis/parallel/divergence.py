"""Do two relations between siblings change what the model says next, on identical tokens?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import rel_entr

from tempo.errors import InputError
from tempo.trace.schema import Readout
from tempo.trace.trace import Trace
from tempo_analysis.stats.averages import aligned_steps, mean_over_prompts
from tempo_analysis.stats.intervals import SEED, Curve, Interval, curve, estimate_with_interval

# Far fewer than the 256 tokens that a stored readout lists: this overlap is exact, no bound.
TOP = 10
MEASURES = (
    *("kl_forward", "kl_backward", "js", "top_overlap", "cosine", "shared_mass"),
    *("top_1_overlap", "top_5_overlap"),
)
IDENTICAL = {
    **dict.fromkeys(("kl_forward", "kl_backward", "js"), 0.0),
    **dict.fromkeys(("top_overlap", "top_1_overlap", "top_5_overlap", "cosine"), 1.0),
}
"""What two identical readouts have: the value to compare with."""


@dataclass(frozen=True, slots=True)
class ReadoutDistance:
    """How far two readouts are apart; KL and JS in nats.

    A stored readout lists its best tokens and the mass of all others together, so what the other
    readout gives to a token outside its own list is unknown. The finest partition whose masses are
    known on both sides is: every token that both list, and one bin for the rest. Merging outcomes
    never increases KL or JS (data-processing inequality), so they are lower bounds; the union of
    the lists would need probabilities that were not stored. Cosine is a lower bound as well:
    unknown products count as 0, unknown squares as large as they can be. All are exact where both
    readouts are complete.

    Attributes:
        kl_forward: KL(first || second).
        kl_backward: KL(second || first).
        js: Jensen-Shannon divergence, at most ln 2.
        top_overlap: Share of the 10 best tokens of one that are among the 10 best of the other.
        cosine: Cosine of the two probability vectors.
        shared_mass: Smaller of the two masses on tokens that both list; bounds are tight near 1.
        top_1_overlap: 1 where both have the same best token, else 0.
        top_5_overlap: As `top_overlap`, of the 5 best.
        complete: Whether both list the same tokens and nothing lies outside.
    """

    kl_forward: float
    kl_backward: float
    js: float
    top_overlap: float
    cosine: float
    shared_mass: float
    top_1_overlap: float
    top_5_overlap: float
    complete: bool


@dataclass(frozen=True, slots=True)
class PromptDivergence:
    """Distances for one prompt; NaN at steps before the first set of width >= 2."""

    by_step: Float64[np.ndarray, "step measure"]
    complete: bool

    def overall(self) -> Float64[np.ndarray, " measure"]:
        """Mean over the steps with data."""
        return mean_over_prompts(self.by_step)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Distance between the readouts of two arms fed the same tokens at the same positions.

    One curve over steps for each field of `ReadoutDistance`; the readout of step k follows set k.
    Left out: steps before a prompt's first set of width >= 2, where both arms run the same
    computation. `lower_bounds` says that KL, JS and cosine are lower bounds, not exact.
    """

    lower_bounds: bool
    kl_forward: Curve
    kl_backward: Curve
    js: Curve
    top_overlap: Curve
    cosine: Curve
    shared_mass: Curve
    top_1_overlap: Curve
    top_5_overlap: Curve


def readout_distance(first: Readout, second: Readout) -> ReadoutDistance:
    """Compare two readouts over the finest partition that is known for both.

    Args:
        first: Such as `trace.readout(3)`.
        second: That of the same step of a twin, after the same tokens.

    Returns:
        Divergences in nats and overlaps of the best tokens. Where readouts were stored as their
        best tokens and a tail, divergences are lower bounds.

    Raises:
        Nothing: any two readouts share a partition, if only that into the best token and the rest.

    Example:
        >>> tempo.readout_distance(trace.readout(3), twin.readout(3)).js
    """
    p, q, tails = _common_partition(first, second)
    same_list = np.array_equal(np.sort(first.token), np.sort(second.token))
    # JS against the mixture stays finite where one side has a token that the other lacks.
    middle = (p + q) / 2
    return ReadoutDistance(
        kl_forward=float(rel_entr(p, q).sum()),
        kl_backward=float(rel_entr(q, p).sum()),
        js=float((rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2),
        top_overlap=_top_overlap(first, second, TOP),
        cosine=_cosine_bound(first, second),
        # The larger tail decides how loose the bounds are, so the smaller shared mass is reported.
        shared_mass=1 - max(tails),
        top_1_overlap=_top_overlap(first, second, 1),
        top_5_overlap=_top_overlap(first, second, 5),
        complete=same_list and first.tail_mass <= 0 and second.tail_mass <= 0,
    )


def prompt_divergence(first: Trace, second: Trace) -> PromptDivergence:
    """Distances after every step that both traces have.

    Raises:
        InputError: The two do not hold the same tokens at the same positions.
    """
    # Arms may stop at different steps; beyond the shorter one there is nothing to compare.
    n_steps = min(first.n_steps, second.n_steps)
    _check_same_tokens(first, second, n_steps)
    # Entry 0 of the count is the prompt: skipped, so that place k is step k + 1.
    wide = np.bincount(first.slots.step, minlength=n_steps + 1)[1 : n_steps + 1] >= 2
    started = np.logical_or.accumulate(wide)
    # NaN, not 0, before the first wide set: there both arms run the same computation, and zeros
    # would dilute every mean over steps.
    by_step = np.full((n_steps, len(MEASURES)), np.nan)
    complete = True
    for step in np.flatnonzero(started) + 1:
        distance = readout_distance(first.readout(int(step)), second.readout(int(step)))
        by_step[step - 1] = [getattr(distance, name) for name in MEASURES]
        complete = complete and distance.complete
    return PromptDivergence(by_step, complete)


def divergence(prompts: Sequence[PromptDivergence], *, seed: int = SEED) -> Divergence:
    """Curves over steps, with intervals over prompts."""
    n_steps = max((len(prompt.by_step) for prompt in prompts), default=0)
    x = np.arange(1, n_steps + 1)
    tables = (
        aligned_steps([prompt.by_step[:, number] for prompt in prompts])
        for number in range(len(MEASURES))
    )
    complete = all(prompt.complete for prompt in prompts)
    return Divergence(not complete, *(curve(x, table, seed=seed) for table in tables))


def divergence_means(
    prompts: Sequence[PromptDivergence], *, seed: int = SEED
) -> Mapping[str, Interval]:
    """Each of `MEASURES` averaged over the steps of a prompt first, then over prompts."""
    # The reshape also gives an empty list of prompts its two axes.
    overall = np.reshape([prompt.overall() for prompt in prompts], (len(prompts), len(MEASURES)))
    return {
        name: estimate_with_interval(values, seed=seed)
        for name, values in zip(MEASURES, overall.T, strict=True)
    }


def _top_overlap(first: Readout, second: Readout, top: int) -> float:
    """Share of the best tokens of one readout that are among the best of the other."""
    both = np.intersect1d(first.token[:top], second.token[:top])
    # Short lists (a small vocabulary) can still overlap fully.
    return len(both) / min(top, len(first.token), len(second.token))


def _common_partition(
    first: Readout, second: Readout
) -> tuple[Float64[np.ndarray, " bin"], Float64[np.ndarray, " bin"], tuple[float, float]]:
    """Both readouts over the tokens that both list and one bin for the rest, each summing to 1.

    The rest joins the least likely common bin where one side has nothing there, so that a tail mass
    rounded to 0 does not count as probability 0.
    """
    _, in_first, in_second = np.intersect1d(first.token, second.token, return_indices=True)
    p, p_rest = _bins(first, in_first)
    q, q_rest = _bins(second, in_second)
    # An exact 0 beside a positive tail would make KL infinite through float32 rounding alone.
    # Merging two bins keeps all distances lower bounds; the least likely bin loses least.
    if (p_rest == 0) != (q_rest == 0) and len(p):
        least = int(np.argmin(p + q))
        p[least], q[least] = p[least] + p_rest, q[least] + q_rest
        return p, q, (p_rest, q_rest)
    return np.append(p, p_rest), np.append(q, q_rest), (p_rest, q_rest)


def _bins(
    readout: Readout, common: Int64[np.ndarray, " bin"]
) -> tuple[Float64[np.ndarray, " bin"], float]:
    """Probabilities of the common tokens and of everything else, rescaled to sum to 1."""
    # float64 before the sum: the rest is a small difference to 1 where the list is long.
    probability = np.exp(readout.log_probability.astype(np.float64))
    # The stored tail is 1 - sum in float32 and may come out slightly negative.
    rest = np.delete(probability, common).sum() + max(readout.tail_mass, 0.0)
    total = probability[common].sum() + rest
    return probability[common] / total, float(rest / total)


def _cosine_bound(first: Readout, second: Readout) -> float:
    """Cosine of the probability vectors: exact for complete readouts, else a lower bound."""
    _, in_first, in_second = np.intersect1d(first.token, second.token, return_indices=True)
    p, q = (np.exp(readout.log_probability.astype(np.float64)) for readout in (first, second))
    # Unlisted tokens have at most the smallest listed probability, so sum q^2 <= tail * smallest:
    # an upper bound of the norm, hence a lower bound of the cosine.
    squares = [
        (values**2).sum() + max(readout.tail_mass, 0.0) * values.min()
        for values, readout in ((p, first), (q, second))
    ]
    # Rounding can lift the cosine of equal vectors above 1.
    return float(min(1.0, (p[in_first] * q[in_second]).sum() / np.sqrt(squares[0] * squares[1])))


def _check_same_tokens(first: Trace, second: Trace, n_steps: int) -> None:
    """Refuse to compare readouts of different contexts."""
    # Slots of later steps may differ: only the common steps are compared.
    n_slots = first.n_slots(n_steps)
    for name in ("token", "position", "step"):
        ours, theirs = (getattr(trace.slots, name)[:n_slots] for trace in (first, second))
        if not np.array_equal(ours, theirs):
            raise InputError(
                f"expected arms {first.header.arm!r} and {second.header.arm!r} of prompt "
                f"{first.header.prompt_id!r} to hold the same tokens at the same positions, got "
                f"different {name}s; replay one arm's sets on the other"
            )
