"""What silencing heads costs: only of heads that another score assigns, since it is slow."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.roles.assignment import RoleScores
from tempo.causal.name_effects import inhibition_effect, name_movers
from tempo.causal.silence import delta_nll
from tempo.census.battery import Battery
from tempo.census.prompts import NameCensus
from tempo.models.language_model import LanguageModel
from tempo.prompts.sequences import text_windows
from tempo.vocabulary import Head
from tempo_analysis.stats.intervals import Interval, estimate_with_interval

N_TEXTS = 8
LENGTH = 64
MOST_HEADS = 48
N_PROMPTS = 16

_COMMON = ("bos_sink",)
"""Held by most heads of most models: by itself it is no reason to silence one."""


def loss_effects(
    model: LanguageModel, battery: Battery, roles: Mapping[str, RoleScores]
) -> dict[str, Any]:
    """Added loss of each head that holds a role, silenced with zeros, in nats per token.

    Heads that hold nothing but the sink are left out, and so are the weakest beyond `MOST_HEADS`.

    Raises:
        InputError: The corpus is too short.
    """
    held = _holders(roles)
    chosen = held[:MOST_HEADS]
    if not chosen:
        return {"heads": {}, "left_out": 0}
    windows = text_windows(
        battery.facts, battery.corpus, n=N_TEXTS, length=LENGTH, seed=battery.seed
    )
    found = delta_nll(model, windows.ids, chosen, batch=N_TEXTS)
    return {
        "texts": N_TEXTS,
        "tokens": LENGTH,
        "replacement": found.replacement,
        "base_nll": float(found.base.mean()),
        "heads": {
            str(Head(*head)): _interval(delta, battery.seed)
            for head, delta in zip(found.heads, found.delta, strict=True)
        },
        "left_out": len(held) - len(chosen),
    }


def name_effects(model: LanguageModel, found: NameCensus) -> dict[str, Any]:
    """What heads that look at the repeated name do to the choice of the other one.

    Raises:
        ModelError: No head copies the name.
    """
    assigned = [(int(layer), int(head)) for layer, head in np.argwhere(found.role.assigned)]
    prompts = found.drawn.prompts[:N_PROMPTS]
    movers = name_movers(model, prompts)
    detail: dict[str, Any] = {"name_movers": [str(Head(*head)) for head in movers]}
    if not assigned:
        return detail
    effect = inhibition_effect(model, prompts, assigned, movers=movers)
    detail["base_logit_difference"] = _interval(effect.base)
    detail["drop"] = {
        str(Head(*head)): {
            "logit_difference": _interval(drop),
            "attention_of_movers": _interval(lost),
        }
        for head, drop, lost in zip(effect.heads, effect.drop, effect.io_drop, strict=True)
    }
    return detail


def _holders(roles: Mapping[str, RoleScores]) -> list[tuple[int, int]]:
    """Heads that hold a role other than the common ones, those of most roles first."""
    counted = {role: found for role, found in roles.items() if role not in _COMMON}
    if not counted:
        return []
    held = np.sum([found.assigned for found in counted.values()], axis=0)
    highest = np.max([np.where(f.assigned, f.percentile, 0.0) for f in counted.values()], axis=0)
    places = [(int(layer), int(head)) for layer, head in np.argwhere(held > 0)]
    return sorted(places, key=lambda place: (-held[place], -highest[place], place))


def _interval(values: Any, seed: int = 0) -> Interval:
    return estimate_with_interval(np.asarray(values, np.float64), seed=seed)
