"""Runs one prompt under many conditions and keeps what the measures need."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from analysis.ablation.passes import Pass
from tempo.ablating.conditions import Condition, Target, other_place
from tempo.causal.forward import Forwarded, forward_each
from tempo.models.language_model import LanguageModel
from tempo.policy.edits import Edit

ROWS_AT_ONCE = 512
"""Rows of one packed forward; their logits are held at once."""


@dataclass(frozen=True, slots=True)
class Part:
    """One condition, where it is asked for or in its control's place."""

    condition: Condition
    in_control: bool = False


Recipe = tuple[Part, ...]
"""What is done in one pass; the base has no part."""

BASE: Recipe = ()


def recipe(*conditions: Condition, in_control: bool = False) -> Recipe:
    """Conditions together; their names do not matter, so equal ones run once."""
    return tuple(Part(replace(one, name=""), in_control) for one in conditions)


def run_passes(
    model: LanguageModel,
    ids: Sequence[int],
    recipes: Mapping[str, Recipe],
    *,
    target: Target,
    linears: Mapping[int, nn.Linear],
    seed: tuple[int, ...],
) -> dict[str, Pass]:
    """One pass for each name; equal recipes are run once.

    Args:
        linears: The output projection of every layer.
        seed: Of the draw of the controls' places.
    """
    different = list(dict.fromkeys(recipes.values()))
    edits = [_edits(one, target, n_heads=model.n_heads, seed=seed) for one in different]
    found: dict[Recipe, Pass] = {}
    for start, end in _chunks(len(different), len(ids)):
        forwarded = forward_each(model, ids, edits[start:end])
        passes = _passes(forwarded, target.at, linears=linears)
        found |= dict(zip(different[start:end], passes, strict=True))
    return {name: found[one] for name, one in recipes.items()}


def has_control(condition: Condition, target: Target, *, n_heads: int) -> bool:
    """Whether there is another place for a condition."""
    return other_place(condition, target, n_heads=n_heads, seed=(0,)) is not None


def _edits(wanted: Recipe, target: Target, *, n_heads: int, seed: tuple[int, ...]) -> list[Edit]:
    edits: list[Edit] = []
    for part in wanted:
        place = target
        if part.in_control:
            place = other_place(part.condition, target, n_heads=n_heads, seed=seed)
        assert place is not None, "a control is asked for where there is one only"
        edits += part.condition.edits(place)
    return edits


def _chunks(n_passes: int, n_tokens: int) -> Iterator[tuple[int, int]]:
    size = max(1, ROWS_AT_ONCE // n_tokens)
    for start in range(0, n_passes, size):
        yield start, min(start + size, n_passes)


@torch.inference_mode()
def _passes(
    forwarded: Sequence[Forwarded], at: int, *, linears: Mapping[int, nn.Linear]
) -> list[Pass]:
    inputs = np.stack([one.head_outputs[:, at] for one in forwarded], axis=1)
    outputs = np.stack(
        [
            linear(torch.from_numpy(inputs[layer]).flatten(1).to(linear.weight)).float().cpu()
            for layer, linear in sorted(linears.items())
        ],
        axis=1,
    )
    return [
        Pass(
            at=at,
            attention_output=output,
            logits=one.logits,
            attention=one.attention[:, :, at].copy(),
        )
        for output, one in zip(outputs, forwarded, strict=True)
    ]
