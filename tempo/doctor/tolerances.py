"""How far two executions of one model may lie apart: their sums are made in another order."""

from dataclasses import dataclass

import torch

_USUAL_SIZE = 10.0
"""Tolerances are for logits and scores of about this size, and grow with larger ones."""
_HALF_STEPS = 8.0
"""In half precision, what is allowed in steps of the dtype."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Largest differences that rounding explains.

    Attributes:
        logits: Between raw logits.
        attention: Between weights of a row.
    """

    logits: float
    attention: float


def tolerances(dtype: str, *, largest_logit: float, largest_score: float) -> Tolerances:
    """The tolerances of a dtype, for logits and scores (before the softmax) of this size."""
    logits, scores = (max(1.0, size / _USUAL_SIZE) for size in (largest_logit, largest_score))
    if dtype == "float32":
        return Tolerances(1e-4 * logits, 1e-5 * scores)
    step = torch.finfo(getattr(torch, dtype)).eps
    return Tolerances(_HALF_STEPS * step * _USUAL_SIZE * logits, _HALF_STEPS * step * scores)
