"""The numbers of one concept in the heads of one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tempo.vocabulary import Head
from tempo_analysis.studies.concepts.effect import ConceptEffect
from tempo_analysis.studies.concepts.separation import ConceptHeads
from tempo_analysis.studies.concepts.verdict import Endings

BEST = 10
"""Heads that a summary names."""


@dataclass(frozen=True, slots=True)
class ConceptCheck:
    """The heads that were silenced, and the effects.

    Attributes:
        heads: Heads of highest AUROC on held-out pairs, chosen on every other pair.
        zero: Effect of silencing them.
        mean: Effect of holding them at their mean over both sides instead.
    """

    heads: tuple[Head, ...]
    zero: ConceptEffect
    mean: ConceptEffect


@dataclass(frozen=True, slots=True)
class ConceptNumbers:
    """One concept, every head of one model.

    Attributes:
        model: Identity of the model, as in a trace.
        concept: Name of the pairs.
        heads: The numbers of every captured head.
        layers: Number of each captured layer.
        skipped: Layer, kind and reason of each layer that was not captured.
        pooling: "last" or "mean": which tokens of a text were read.
        endings: Last tokens and lengths of the two texts of a pair.
        permutations: Number of random swaps in the null.
        seed: Of every draw.
        check: The causal check; None if it was not made.
        no_check: Why it was not made.
    """

    model: Mapping[str, Any]
    concept: str
    heads: ConceptHeads
    layers: tuple[int, ...]
    skipped: tuple[Mapping[str, Any], ...]
    pooling: str
    endings: Endings
    permutations: int
    seed: int
    check: ConceptCheck | None
    no_check: str = ""

    def best_first(self) -> list[tuple[int, Head]]:
        """Every head with the row of its layer: assigned ones, then by AUROC, then by length."""
        found = self.heads
        # lexsort sorts by its last key first; ~assigned puts True first.
        keys = (-found.written_norm.ravel(), -found.auroc.ravel(), ~found.assigned.ravel())
        n_heads = found.auroc.shape[1]
        order = [divmod(place, n_heads) for place in np.lexsort(keys).tolist()]
        return [(row, Head(self.layers[row], head)) for row, head in order]

    def kv_head(self, head: int) -> int:
        """The KV head that a query head reads."""
        return head // int(self.model["queries_per_kv_head"])
