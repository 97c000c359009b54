"""TransformerLens's `detect_head` scores, for comparison: another normalisation, named as such.

Their "mul" divides by the attention of the whole matrix, T rows, and the detectors here by the rows
that have a target; so a perfect previous-token head has 1 here and, its row 0 being of no use,
(T - 1) / T there. Their "abs" is 1 less T times the mean absolute difference, rounded to three
digits; not rounded here.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from tempo.errors import InputError
from tempo_analysis.studies.heads.detectors.rows import ByHead

Measure = Literal["mul", "abs"]
Pattern = Literal["previous_token_head", "duplicate_token_head", "induction_head"]


def lens_similarity(
    weights: Float32[np.ndarray, "layer head query slot"],
    detection: Float64[np.ndarray, "_ _"],
    *,
    measure: Measure,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
) -> ByHead:
    """How much every head looks like a detection pattern, by TransformerLens's measure.

    Raises:
        InputError: The rows are not square, or the pattern has another shape.
    """
    n, n_slots = weights.shape[2:]
    if n != n_slots or detection.shape != (n, n):
        raise InputError(
            f"expected square rows and a pattern of their shape, got {weights.shape[2:]} and "
            f"{detection.shape}; give whole sequences"
        )
    attention = weights.astype(np.float64)
    if measure == "abs":
        return 1 - n * _left(
            np.abs(attention - detection), exclude_bos, exclude_current_token
        ).mean((-2, -1))
    kept = _left(attention, exclude_bos, exclude_current_token)
    total = kept.sum((-2, -1))
    return (kept * detection).sum((-2, -1)) / np.where(total > 0, total, np.nan)


def lens_pattern(
    token: Int64[np.ndarray, " slot"], name: Pattern
) -> Float64[np.ndarray, "query slot"]:
    """The detection pattern that TransformerLens draws for a named head."""
    n = len(token)
    if name == "previous_token_head":
        return np.eye(n, k=-1)
    copies = np.tril(token[:, None] == token[None, :], k=-1).astype(np.float64)
    if name == "duplicate_token_head":
        return copies
    return np.pad(copies, [(0, 0), (1, 0)])[:, :n]


def _left(
    cells: Float64[np.ndarray, "layer head query slot"],
    exclude_bos: bool,
    exclude_current_token: bool,
) -> Float64[np.ndarray, "layer head query slot"]:
    n = cells.shape[-1]
    dropped = np.zeros((n, n), bool)
    dropped[:, 0] = exclude_bos
    dropped |= exclude_current_token & np.eye(n, dtype=bool)
    return np.where(dropped, 0.0, cells)
