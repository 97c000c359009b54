"""Effects of silencing heads: added loss, and for S-inhibition the choice between two names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tempo.causal.name_effects import inhibition_effect, name_movers
from tempo.causal.silence import delta_nll
from tempo.models.language_model import LanguageModel
from tempo.prompts.names import NamePrompt
from tempo.prompts.sequences import text_windows
from tempo.vocabulary import Head
from tempo_analysis.stats.intervals import Interval, estimate_with_interval
from tempo_analysis.studies.heads.assignment import RoleScores
from tempo_analysis.studies.heads.plan import CensusPlan

# One forward for each head over these texts: together they bound the time of the check.
N_TEXTS = 8
LOSS_LENGTH = 64
MOST_HEADS = 48

N_NAME_PROMPTS = 16

_COMMON = ("bos_sink",)
"""Roles that most heads of most models hold, so that they are no reason to silence a head."""


def loss_effects(
    model: LanguageModel, plan: CensusPlan, roles: Mapping[str, RoleScores]
) -> dict[str, Any]:
    """Added loss, in nats per token, of each head with a role when it is silenced with zeros.

    Heads whose only role is `bos_sink` are left out, and heads beyond the first `MOST_HEADS`.

    Raises:
        InputError: The corpus is too short.
    """
    candidates = _heads_with_roles(roles)
    chosen = candidates[:MOST_HEADS]
    if not chosen:
        return {"heads": {}, "left_out": 0}
    windows = text_windows(plan.facts, plan.corpus, n=N_TEXTS, length=LOSS_LENGTH, seed=plan.seed)
    found = delta_nll(model, windows.ids, chosen, batch=N_TEXTS)
    return {
        "texts": N_TEXTS,
        "tokens": LOSS_LENGTH,
        "replacement": found.replacement,
        "base_nll": float(found.base.mean()),
        "heads": {
            str(head): _interval(delta, plan.seed)
            for head, delta in zip(chosen, found.delta, strict=True)
        },
        "left_out": len(candidates) - len(chosen),
    }


def name_effects(
    model: LanguageModel, role: RoleScores, prompts: Sequence[NamePrompt]
) -> dict[str, Any]:
    """Effect of the heads with the role `s_inhibition` on the logit and on the name movers.

    Raises:
        ModelError: No head copies the name.
    """
    assigned = [Head(int(layer), int(head)) for layer, head in np.argwhere(role.assigned)]
    prompts = prompts[:N_NAME_PROMPTS]
    movers = name_movers(model, prompts)
    detail: dict[str, Any] = {"name_movers": [str(Head(*head)) for head in movers]}
    if not assigned:
        return detail
    effect = inhibition_effect(model, prompts, assigned, movers=movers)
    detail["base_logit_difference"] = _interval(effect.base)
    detail["drop"] = {
        str(head): {
            "logit_difference": _interval(drop),
            "attention_of_movers": _interval(lost),
        }
        for head, drop, lost in zip(assigned, effect.drop, effect.io_drop, strict=True)
    }
    return detail


def _heads_with_roles(roles: Mapping[str, RoleScores]) -> list[Head]:
    """Heads with a role that is not common: those of most roles first, then by best percentile."""
    counted = [found for role, found in roles.items() if role not in _COMMON]
    if not counted:
        return []
    n_roles = np.sum([found.assigned for found in counted], axis=0)
    highest = np.max([np.where(f.assigned, f.percentile, 0.0) for f in counted], axis=0)
    heads = [Head(int(layer), int(head)) for layer, head in np.argwhere(n_roles > 0)]
    return sorted(heads, key=lambda head: (-n_roles[head], -highest[head], head))


def _interval(values: Any, seed: int = 0) -> Interval:
    return estimate_with_interval(np.asarray(values, np.float64), seed=seed)
