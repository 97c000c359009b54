"""What is kept of one prompt: every comparison, and the rows of t under every condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from analysis.ablation.effects import PromptEffect, prompt_effect
from analysis.ablation.offsets import N_OFFSETS, PromptOffsets, prompt_offsets, variation
from analysis.ablation.passes import Comparison, Pass
from tempo.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class PromptNumbers:
    """One prompt, without its passes.

    Attributes:
        effects: By comparison.
        offsets: By condition.
        variations: How far the rows of t have moved, by comparison.
    """

    effects: Mapping[Comparison, PromptEffect]
    offsets: Mapping[str, PromptOffsets]
    variations: Mapping[Comparison, Float32[np.ndarray, "layer head"]]


def prompt_numbers(
    passes: Mapping[str, Pass],
    comparisons: Sequence[Comparison],
    *,
    n_offsets: int = N_OFFSETS,
) -> PromptNumbers:
    """Measure one prompt.

    Args:
        passes: By the name of their condition.
        comparisons: Which are held against which.

    Raises:
        InputError: A comparison names no pass, or passes are of different prompts or tokens.
    """
    missing = {name for each in comparisons for name in (each.reference, each.changed)}
    missing -= set(passes)
    if missing or not comparisons:
        raise InputError(
            f"expected comparisons of the passes {', '.join(passes)}, got "
            f"{', '.join(map(str, comparisons)) or 'none'}; run "
            f"{', '.join(sorted(missing)) or 'some'} too"
        )
    pairs = {each: (passes[each.reference], passes[each.changed]) for each in comparisons}
    return PromptNumbers(
        effects={each: prompt_effect(*pair) for each, pair in pairs.items()},
        offsets={
            name: prompt_offsets(one.attention, t=one.at, n_offsets=n_offsets)
            for name, one in passes.items()
        },
        variations={
            each: variation(one.attention, other.attention) for each, (one, other) in pairs.items()
        },
    )
