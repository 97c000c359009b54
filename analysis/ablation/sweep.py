"""The same test at every offset: B takes out the values of token t - o, for o = 1, 2, ...

A flat curve base|AB, beside base|A, is read as "A has removed everything that comes from there". It
is flat too where B does nothing anywhere, so base|B and A|AB are measured beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from analysis.ablation.measures import nip
from analysis.ablation.passes import Outputs
from analysis.ablation.pooled import pooled_curve
from analysis.ablation.redundancy import overlap
from tempo.errors import InputError
from tempo_analysis.stats.bands import Spread, pointwise_spread, sparse_spread
from tempo_analysis.stats.intervals import SEED, Curve

CURVES = ("base|B", "A|AB", "base|AB", "base|A")


@dataclass(frozen=True, slots=True, eq=False)
class PromptSweep:
    """One prompt at every offset; NaN where there is no token so far back.

    Attributes:
        nip: By curve, as `CURVES` are ordered; base|A has one value, at the offsets there are.
        overlap: Share of what B takes away that A had removed.
    """

    nip: Float64[np.ndarray, "curve offset layer"]
    overlap: Float64[np.ndarray, "offset layer"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerSweep:
    """The curves of one layer over the offsets, each over the same prompts at each offset.

    Attributes:
        nip: By the names in `CURVES`.
        beyond_a: base|AB less base|A, paired over prompts: 0 where B adds nothing to A,
            and minus the loss of base|B where it takes away what it does alone.
        pooled: R at each offset; limits hold for each offset by itself.
        overlap: Share of the vector that B takes away which A had removed; limits likewise.
    """

    layer: int
    nip: dict[str, Spread]
    beyond_a: Spread
    pooled: Curve
    overlap: Spread


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """The test at every offset over all prompts.

    Attributes:
        layers: Those where A acts.
        n_prompts: Prompts, those too short for some offset included.
    """

    layers: tuple[LayerSweep, ...]
    n_prompts: int


def prompt_sweep(
    base: Outputs, a: Outputs, *, at: Iterable[tuple[int, Outputs, Outputs]], n_offsets: int
) -> PromptSweep:
    """Measure one prompt at the offsets it has.

    Args:
        at: Each offset with the outputs under B and under A and B; read once, one by one.
        n_offsets: The largest offset of the sweep.

    Raises:
        InputError: An offset below 1 or above the largest, or one that comes twice.
    """
    shape = (n_offsets, len(base))
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
        nips[:, offset - 1] = [nip(*pair) for pair in pairs]
        overlaps[offset - 1] = overlap(base, a, b, ab)
    return PromptSweep(nips, overlaps)


def sweep(prompts: Sequence[PromptSweep], *, layers: Sequence[int], seed: int = SEED) -> Sweep:
    """The curves of some layers over all prompts.

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
        beyond_a=sparse_spread(x, by_name["base|AB"] - by_name["base|A"]),
        pooled=pooled_curve(x, 1 - by_name["A|AB"], 1 - by_name["base|B"], seed=seed),
        overlap=pointwise_spread(x, overlaps, seed=seed),
    )
