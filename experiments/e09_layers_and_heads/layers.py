"""Entropy by layer, prompt by prompt, and how far two arms lie apart."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from tempo_analysis.parallel.entropy import PromptEntropy
from tempo_analysis.stats.bands import band
from tempo_analysis.stats.intervals import Curve

ENTROPIES = {
    "normalised_entropy": "normalised",
    "normalised_entropy_without_sink": "normalised_without_sink",
}
"""Name among the metrics, and in `parallel.entropy`: with the first token and without it."""


def by_layer(prompts: Sequence[PromptEntropy], name: str) -> Float64[np.ndarray, "prompt layer"]:
    """Mean over heads, queries and steps within each layer."""
    return np.stack([getattr(one, ENTROPIES[name]).by_layer() for one in prompts])


def arm_difference(arm: Sequence[PromptEntropy], null: Sequence[PromptEntropy], name: str) -> Curve:
    """Arm less null at each layer, paired by prompt; limits hold in all layers at once."""
    apart = by_layer(arm, name) - by_layer(null, name)
    return band(np.arange(apart.shape[1]), apart)
