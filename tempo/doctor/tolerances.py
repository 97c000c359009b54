"""How far two executions of one model may lie apart: sums are made in another order."""

from dataclasses import dataclass

import torch

_USUAL_SIZE = 10.0
"""Float32 tolerances are for logits and scores of about this size, and grow with larger ones."""
_LOGITS = {"float32": 1e-4}
_ATTENTION = {"float32": 1e-5}
_HALF_STEPS = 8.0
"""In half precision, the number of steps of the dtype at the size of the largest value."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Largest allowed differences, and the dtype they are for.

    Attributes:
        logits: Between raw logits.
        attention: Between weights of a row.
    """

    logits: float
    attention: float
    dtype: str


def tolerances(dtype: str, *, largest_logit: float, largest_score: float) -> Tolerances:
    """What rounding explains in a dtype, for logits and scores (before the softmax) of this size."""
    if dtype == "float32":
        return Tolerances(
            1e-4 * max(1, largest_logit / _USUAL_SIZE), 1e-5 * max(1, largest_score / _USUAL_SIZE), dtype
        )
    step = torch.finfo(getattr(torch, dtype)).eps
    return Tolerances(_HALF_STEPS * step * largest_logit, _HALF_STEPS * step, dtype)
