"""Has A already removed what the values of the token before t would have given?

A is an ablation at t. B takes out the values of token t - 1, in all heads or in the listed ones
only. AB is both. Seven comparisons at t; two indices say in one number what they show:

R = 1 - (1 - NIP(A, AB)) / (1 - NIP(base, B)): the share of B's loss that A has already caused. Each
loss is a share of its own reference, and A shortens the one of A|AB. So R is 1 where A leaves B
nothing to do; but where A takes away something else altogether, B's loss is a larger share of what
is left and R falls below 0.

Overlap = 1 - <A - AB, base - B> / ||base - B||^2: how much of the vector that B takes away is
already gone. 1 where all of it is, exactly 0 where B takes the same vector away with A and without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.ablation.measures import cosine, nip
from analysis.ablation.passes import Comparison, Outputs
from analysis.ablation.pooled import TOLERANCE, pooled_curve
from tempo.errors import InputError
from tempo_analysis.stats.bands import Spread, pointwise_spread, spread
from tempo_analysis.stats.intervals import SEED, Curve

SCOPES = ("all", "listed")
"""In which heads B takes the values out."""
PASSES = ("base", "A", "B_all", "B_listed", "AB_all", "AB_listed")
COMPARISONS = (
    Comparison("base", "A"),
    *(Comparison("base", f"B_{scope}") for scope in SCOPES),
    *(Comparison("base", f"AB_{scope}") for scope in SCOPES),
    *(Comparison("A", f"AB_{scope}") for scope in SCOPES),
)


@dataclass(frozen=True, slots=True, eq=False)
class PromptRedundancy:
    """The seven comparisons on one prompt.

    Attributes:
        nip: By comparison, as `COMPARISONS` are ordered, and layer.
        cosine: The same.
        overlap: By scope, as `SCOPES` are ordered, and layer; NaN where B changes nothing.
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
class Index:
    """How much of B's work A has done, by layer; limits hold for each layer by itself.

    Attributes:
        scope: "all" or "listed": the heads in which B takes values out.
        pooled: R from the mean losses of all prompts.
        per_prompt: R of each prompt, averaged; a prompt whose loss under B is within `TOLERANCE` of
            0 has none. A few small losses can rule this mean: read `pooled`.
        overlap: Share of the vector that B takes away which is already gone.
    """

    scope: str
    pooled: Curve
    per_prompt: Spread
    overlap: Spread


@dataclass(frozen=True, slots=True, eq=False)
class Redundancy:
    """The test over all prompts.

    Attributes:
        layers: Where A acts.
        n_prompts: Prompts, those without data at some layer included.
        agreements: In the order of `COMPARISONS`.
        indices: One for each scope of B.
    """

    layers: tuple[int, ...]
    n_prompts: int
    agreements: tuple[Agreement, ...]
    indices: tuple[Index, ...]


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
    """Share of the vector that B takes away which A has already removed.

    NaN where B takes away nothing: less than `TOLERANCE` of the length of the output.
    """
    alone = base.astype(np.float64) - b
    after = a.astype(np.float64) - ab
    squares = (alone**2).sum(-1)
    known = squares > TOLERANCE**2 * (base.astype(np.float64) ** 2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, 1 - (after * alone).sum(-1) / squares, np.nan)


def index_of(
    alone: Float64[np.ndarray, "*cell"], after: Float64[np.ndarray, "*cell"]
) -> Float64[np.ndarray, "*cell"]:
    """R of each prompt from NIP(base, B) and NIP(A, AB); NaN where B alone loses nothing."""
    loss = 1 - alone
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(loss) > TOLERANCE, 1 - (1 - after) / loss, np.nan)


def redundancy(
    prompts: Sequence[PromptRedundancy], *, layers: Sequence[int], seed: int = SEED
) -> Redundancy:
    """The seven comparisons and both indices over all prompts.

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
) -> Index:
    alone = nips[:, COMPARISONS.index(Comparison("base", f"B_{scope}"))]
    after = nips[:, COMPARISONS.index(Comparison("A", f"AB_{scope}"))]
    x = np.arange(nips.shape[-1])
    return Index(
        scope=scope,
        pooled=pooled_curve(x, 1 - after, 1 - alone, seed=seed),
        per_prompt=pointwise_spread(x, index_of(alone, after), seed=seed),
        overlap=pointwise_spread(x, overlaps, seed=seed),
    )
