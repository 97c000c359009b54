"""The redundancy test: whether A has already removed what B removes, at one offset or over a sweep.

A removes the outputs of heads at t, B the value of an earlier token. With the loss 1 - NIP, the
index R = 1 - loss(A|AB) / loss(base|B) is 0 if B removes the same share with A as without, and 1 if
B removes nothing more after A.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from tempo.errors import InputError
from tempo_analysis.stats.bands import Spread, pointwise_spread, sparse_spread, spread
from tempo_analysis.stats.intervals import (
    BOOTSTRAP_FROM,
    LEVEL,
    RESAMPLES,
    SEED,
    SMALLEST_SAMPLE,
    Curve,
    Interval,
    estimate_with_interval,
    too_few,
)
from tempo_analysis.studies.ablation.passes import Comparison, Outputs, cosine, nip

TOLERANCE = 1e-4
"""A loss or denominator within this of 0 counts as 0: float32 passes do not resolve less."""

PAIRED = "paired BCa bootstrap of the quotient over prompts"
LINEARISED = "Student t of the linearised quotient over prompts"
SAME_QUOTIENT = "every prompt has the same quotient"
UNDEFINED = "undefined: the lower part of the quotient may be 0"
UNSTABLE = "no interval: some resamples have no quotient"

_NO_SPREAD = 1e-12
"""Residuals whose range is below this, relative to their size, are rounding."""
_BATCH = 1000
"""Resamples computed together, which bounds the memory of the bootstrap."""


def pooled_index(
    upper: Float64[np.ndarray, " prompt"],
    lower: Float64[np.ndarray, " prompt"],
    *,
    seed: int = SEED,
) -> Interval:
    """`1 - mean(upper) / mean(lower)` over the prompts that have both.

    Args:
        upper: Numerator of each prompt.
        lower: Denominator of each prompt.
        seed: Of the bootstrap.

    Returns:
        NaN if the interval of the mean denominator includes 0 (within `TOLERANCE`), or, with fewer
        than 8 prompts and so without an interval, if that mean is 0.
    """
    # The sum is NaN if either is: both means must be over the same prompts.
    known = ~np.isnan(upper + lower)
    upper, lower = upper[known], lower[known]
    n, dropped = len(upper), int((~known).sum())
    # A quotient whose denominator may be 0 has no finite interval (Fieller 1954).
    if not n or _may_be_zero(lower, seed):
        return Interval(np.nan, np.nan, np.nan, n, UNDEFINED, n_dropped=dropped)
    low, high, method = _limits(upper, lower, seed)
    return Interval(_quotient_index(upper, lower), low, high, n, method, n_dropped=dropped)


def pooled_curve(
    x: Int64[np.ndarray, " point"],
    upper: Float64[np.ndarray, "prompt point"],
    lower: Float64[np.ndarray, "prompt point"],
    *,
    seed: int = SEED,
) -> Curve:
    """`pooled_index` at each of several points, with pointwise limits."""
    found = [pooled_index(up, low, seed=seed) for up, low in zip(upper.T, lower.T, strict=True)]
    estimate, low, high = np.array([[one.estimate, one.low, one.high] for one in found]).T
    n = np.array([one.n for one in found])
    return Curve(x, estimate, low, high, n, tuple(one.method for one in found))


def _quotient_index(
    upper: Float64[np.ndarray, " prompt"], lower: Float64[np.ndarray, " prompt"]
) -> float:
    # Not the mean of quotients, which a prompt with a small loss would dominate.
    return float(1 - upper.mean() / lower.mean())


def _may_be_zero(lower: Float64[np.ndarray, " prompt"], seed: int) -> bool:
    found = estimate_with_interval(lower, seed=seed)
    low, high = found.low, found.high
    if np.isnan(low):  # too few prompts for an interval: use the mean
        low = high = found.estimate
    return bool(low <= TOLERANCE and high >= -TOLERANCE)


def _limits(
    upper: Float64[np.ndarray, " prompt"], lower: Float64[np.ndarray, " prompt"], seed: int
) -> tuple[float, float, str]:
    n = len(upper)
    if n < SMALLEST_SAMPLE:
        return np.nan, np.nan, too_few(n)
    estimate = _quotient_index(upper, lower)
    # the delta method: deviations of the quotient to first order, one for each prompt
    residuals = (upper - (1 - estimate) * lower) / lower.mean()
    if np.ptp(residuals) <= _NO_SPREAD * max(float(np.abs(residuals).max()), 1.0):
        return estimate, estimate, SAME_QUOTIENT
    if n < BOOTSTRAP_FROM:
        # ddof=1 and n - 1 degrees of freedom: the linearised quotient is treated as a plain mean.
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * residuals.std(ddof=1) / np.sqrt(n))
        return estimate - half, estimate + half, LINEARISED
    return _bootstrapped(upper, lower, seed)


def _bootstrapped(
    upper: Float64[np.ndarray, " prompt"], lower: Float64[np.ndarray, " prompt"], seed: int
) -> tuple[float, float, str]:
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # a NaN is handled below
        found = stats.bootstrap(
            (upper, lower),
            lambda up, low, axis: 1 - up.mean(axis) / low.mean(axis),
            # Prompts are resampled whole: numerator and denominator of a prompt belong together.
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="BCa",
            batch=_BATCH,
            rng=np.random.default_rng(seed),
        )
    low, high = map(float, found.confidence_interval)
    if not (np.isfinite(low) and np.isfinite(high)):
        return np.nan, np.nan, UNSTABLE
    return low, high, PAIRED


SCOPES = ("all", "listed")
"""Heads in which B removes the value: all of the layers, or only the listed ones."""
PASSES = ("base", "A", "B_all", "B_listed", "AB_all", "AB_listed")
COMPARISONS = (
    Comparison("base", "A"),
    *(Comparison("base", f"B_{scope}") for scope in SCOPES),
    *(Comparison("base", f"AB_{scope}") for scope in SCOPES),
    # Against A, not base: what B removes once A has acted.
    *(Comparison("A", f"AB_{scope}") for scope in SCOPES),
)


@dataclass(frozen=True, slots=True, eq=False)
class PromptRedundancy:
    """The seven comparisons on one prompt.

    Attributes:
        nip: By comparison, in the order of `COMPARISONS`, and layer.
        cosine: By comparison and layer, in the same order.
        overlap: By scope, in the order of `SCOPES`, and layer; NaN if B changes nothing.
    """

    nip: Float64[np.ndarray, "comparison layer"]
    cosine: Float64[np.ndarray, "comparison layer"]
    overlap: Float64[np.ndarray, "scope layer"]


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """One comparison over all prompts, by layer."""

    comparison: Comparison
    nip: Spread
    cosine: Spread


@dataclass(frozen=True, slots=True, eq=False)
class RedundancyIndex:
    """R and the overlap by layer, with pointwise limits.

    Attributes:
        scope: "all" or "listed": the heads in which B removes the value.
        pooled: R from the mean losses of all prompts.
        per_prompt: Mean of R of each prompt; a prompt whose loss under B is within `TOLERANCE` of 0
            has none. A few small losses can dominate this mean: prefer `pooled`.
        overlap: Share of the vector removed by B that A has already removed.
    """

    scope: str
    pooled: Curve
    per_prompt: Spread
    overlap: Spread


@dataclass(frozen=True, slots=True, eq=False)
class Redundancy:
    """The redundancy test over all prompts.

    Attributes:
        layers: Layers in which A acts.
        n_prompts: Number of prompts, including those without data at some layer.
        agreements: In the order of `COMPARISONS`.
        indices: One for each scope of B.
    """

    layers: tuple[int, ...]
    n_prompts: int
    agreements: tuple[Agreement, ...]
    indices: tuple[RedundancyIndex, ...]


def prompt_redundancy(outputs: Mapping[str, Outputs]) -> PromptRedundancy:
    """Measure one prompt from its six passes.

    Args:
        outputs: By the names in `PASSES`.

    Raises:
        InputError: A pass is missing or has another name.
    """
    if set(outputs) != set(PASSES):
        raise InputError(
            f"expected the passes {', '.join(PASSES)}, got {', '.join(outputs)}; run these six"
        )
    pairs = [(outputs[each.reference], outputs[each.changed]) for each in COMPARISONS]
    base, a = outputs["base"], outputs["A"]
    return PromptRedundancy(
        nip=np.stack([nip(*pair) for pair in pairs]),
        cosine=np.stack([cosine(*pair) for pair in pairs]),
        overlap=np.stack(
            [overlap(base, a, outputs[f"B_{scope}"], outputs[f"AB_{scope}"]) for scope in SCOPES]
        ),
    )


def overlap(base: Outputs, a: Outputs, b: Outputs, ab: Outputs) -> Float64[np.ndarray, " layer"]:
    """Share of the vector removed by B that A has already removed.

    Args:
        base: Outputs of the layers without an edit.
        a: Under A.
        b: Under B.
        ab: Under both.

    Returns:
        By layer; NaN if B removes less than `TOLERANCE` of the length of the output.
    """
    # float64 before subtracting: a float32 difference of nearly equal outputs is mostly rounding
    alone = base.astype(np.float64) - b
    after = a.astype(np.float64) - ab
    squares = (alone**2).sum(-1)
    # Squared lengths on both sides, hence the square of the tolerance.
    known = squares > TOLERANCE**2 * (base.astype(np.float64) ** 2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Projection on the vector that B removes alone. Both differences have that one reference,
        # so the overlap is not moved by A shortening the output, as R is.
        return np.where(known, 1 - (after * alone).sum(-1) / squares, np.nan)


def index_of(
    alone: Float64[np.ndarray, "*cell"], after: Float64[np.ndarray, "*cell"]
) -> Float64[np.ndarray, "*cell"]:
    """R of each prompt.

    Args:
        alone: NIP(base, B).
        after: NIP(A, AB).

    Returns:
        NaN where B alone loses nothing.
    """
    loss = 1 - alone
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(loss) > TOLERANCE, 1 - (1 - after) / loss, np.nan)


def redundancy(
    prompts: Sequence[PromptRedundancy], *, layers: Sequence[int], seed: int = SEED
) -> Redundancy:
    """The seven comparisons and both indices over all prompts.

    Args:
        prompts: The test on each prompt.
        layers: Layers in which A acts.
        seed: Of the intervals.

    Raises:
        InputError: No prompts.
    """
    if not prompts:
        raise InputError("expected prompts to test for redundancy, got none; run some")
    nips = np.stack([one.nip for one in prompts])
    cosines = np.stack([one.cosine for one in prompts])
    overlaps = np.stack([one.overlap for one in prompts])
    x = np.arange(nips.shape[-1])
    agreements = [
        Agreement(
            each, spread(x, nips[:, place], seed=seed), spread(x, cosines[:, place], seed=seed)
        )
        for place, each in enumerate(COMPARISONS)
    ]
    indices = [_index(scope, nips, overlaps[:, place], seed) for place, scope in enumerate(SCOPES)]
    return Redundancy(tuple(layers), len(prompts), tuple(agreements), tuple(indices))


def _index(
    scope: str,
    nips: Float64[np.ndarray, "prompt comparison layer"],
    overlaps: Float64[np.ndarray, "prompt layer"],
    seed: int,
) -> RedundancyIndex:
    alone = nips[:, COMPARISONS.index(Comparison("base", f"B_{scope}"))]
    after = nips[:, COMPARISONS.index(Comparison("A", f"AB_{scope}"))]
    x = np.arange(nips.shape[-1])
    return RedundancyIndex(
        scope=scope,
        # Losses, not NIPs: R is a quotient of losses.
        pooled=pooled_curve(x, 1 - after, 1 - alone, seed=seed),
        # Pointwise: layers with different numbers of prompts have no common band.
        per_prompt=pointwise_spread(x, index_of(alone, after), seed=seed),
        overlap=pointwise_spread(x, overlaps, seed=seed),
    )


CURVES = ("base|B", "A|AB", "base|AB", "base|A")


@dataclass(frozen=True, slots=True, eq=False)
class PromptSweep:
    """One prompt at every offset; NaN at offsets beyond its first token.

    Attributes:
        nip: By curve, in the order of `CURVES`; base|A is the same at every offset.
        overlap: Share of the vector removed by B that A has already removed.
    """

    nip: Float64[np.ndarray, "curve offset layer"]
    overlap: Float64[np.ndarray, "offset layer"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerSweep:
    """The curves of one layer over the offsets; at one offset all use the same prompts.

    Attributes:
        layer: The layer.
        nip: By the names in `CURVES`.
        beyond_a: base|AB minus base|A, paired by prompt: 0 if B adds nothing to A, and minus the
            loss of base|B if B removes as much as it does alone.
        pooled: R at each offset, with pointwise limits.
        overlap: Share of the vector removed by B that A has already removed, with pointwise limits.
    """

    layer: int
    nip: dict[str, Spread]
    beyond_a: Spread
    pooled: Curve
    overlap: Spread


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """The redundancy test at every offset over all prompts.

    Attributes:
        layers: One for each layer in which A acts.
        n_prompts: Number of prompts, including those too short for some offset.
    """

    layers: tuple[LayerSweep, ...]
    n_prompts: int


def prompt_sweep(
    base: Outputs, a: Outputs, *, at: Iterable[tuple[int, Outputs, Outputs]], n_offsets: int
) -> PromptSweep:
    """Measure one prompt at the offsets that it reaches.

    Args:
        base: Outputs of the layers without an edit.
        a: Under A.
        at: Each offset with the outputs under B, and under A and B; read once.
        n_offsets: The largest offset of the sweep.

    Raises:
        InputError: An offset is below 1, above the largest, or repeated.
    """
    shape = (n_offsets, len(base))
    # base|A is NaN at unreached offsets too, so that all curves use the same prompts there.
    nips, overlaps = np.full((len(CURVES), *shape), np.nan), np.full(shape, np.nan)
    seen: set[int] = set()
    for offset, b, ab in at:
        if not 1 <= offset <= n_offsets or offset in seen:
            raise InputError(
                f"expected each offset from 1 to {n_offsets} at most once, got {offset}; leave it "
                "out"
            )
        seen.add(offset)
        pairs = ((base, b), (a, ab), (base, ab), (base, a))
        # offsets begin at 1; the order of the pairs is that of CURVES
        nips[:, offset - 1] = [nip(*pair) for pair in pairs]
        overlaps[offset - 1] = overlap(base, a, b, ab)
    return PromptSweep(nips, overlaps)


def sweep(prompts: Sequence[PromptSweep], *, layers: Sequence[int], seed: int = SEED) -> Sweep:
    """The curves of some layers over all prompts.

    Args:
        prompts: The sweep on each prompt.
        layers: Layers to summarise.
        seed: Of the intervals.

    Raises:
        InputError: No prompts, or prompts swept to different offsets.
    """
    if len({one.nip.shape for one in prompts}) != 1:
        raise InputError(
            f"expected prompts swept to the same offset, got {len(prompts)} that were not; sweep "
            "all to one"
        )
    nips = np.stack([one.nip for one in prompts])
    overlaps = np.stack([one.overlap for one in prompts])
    found = [_layer(layer, nips[..., layer], overlaps[..., layer], seed) for layer in layers]
    return Sweep(tuple(found), len(prompts))


def _layer(
    layer: int,
    nips: Float64[np.ndarray, "prompt curve offset"],
    overlaps: Float64[np.ndarray, "prompt offset"],
    seed: int,
) -> LayerSweep:
    x = np.arange(1, nips.shape[-1] + 1)
    by_name = {name: nips[:, place] for place, name in enumerate(CURVES)}
    return LayerSweep(
        layer=layer,
        nip={name: sparse_spread(x, values) for name, values in by_name.items()},
        # The paired difference has a far smaller interval than the two curves have apart.
        beyond_a=sparse_spread(x, by_name["base|AB"] - by_name["base|A"]),
        pooled=pooled_curve(x, 1 - by_name["A|AB"], 1 - by_name["base|B"], seed=seed),
        overlap=pointwise_spread(x, overlaps, seed=seed),
    )
