"""The rows of e08: the ghost beside the effect of pruning, who is pruned, and free runs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from experiments.e08_pruning.free import FreeRun
from experiments.e08_pruning.measures import PAIRS, PrunedSet
from experiments.means import divergence_of, factor_of, mean_known, mean_of
from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.stats.association import EVEN_AREA

LEAST_NATS = 1e-9
"""In logarithms, what lies below counts as this."""
Values = Float64[np.ndarray, " prompt"]


def metrics(sets: Sequence[PrunedSet], free: Sequence[FreeRun]) -> list[Metric]:
    """Every row of the experiment."""
    return [*_distances(sets, len(free)), *_pruned(sets, len(free)), *_free(free)]


def detail(sets: Sequence[PrunedSet], free: Sequence[FreeRun]) -> dict[str, Any]:
    """Checks and counts beside the rows."""
    ages = np.concatenate([one.ages for one in free]) if free else np.empty(0, np.int64)
    changed = [one.first_change for one in free if one.first_change]
    return {
        "n_pruned_sets": len(sets),
        "n_dead": sum(int((~one.survives).sum()) for one in sets),
        "largest_evict_nats": max((one.nats["evict"] for one in sets), default=np.nan),
        "free_deaths": len(ages),
        "free_members_at_risk": sum(one.n_members for one in free),
        "free_deaths_by_age": np.bincount(ages)[1:],
        "free_first_changed_steps": np.bincount(changed)[1:] if changed else [],
    }


def _distances(sets: Sequence[PrunedSet], n_prompts: int) -> list[Metric]:
    nats = {
        name: by_prompt(sets, n_prompts, lambda one, name=name: one.nats[name]) for name in PAIRS
    }
    logs = {name: np.log(np.maximum(values, LEAST_NATS)) for name, values in nats.items()}
    made = [divergence_of("kl", name, values) for name, values in nats.items()]
    for other in ("mask", "recompute"):
        apart = logs["ghost"] - logs[other]
        made.append(factor_of("ghost_over_effect", other, apart, other="the effect of pruning"))
    made.append(
        factor_of(
            "effect_over_recompute", "mask", logs["mask"] - logs["recompute"], other="recompute"
        )
    )
    return made


def _pruned(sets: Sequence[PrunedSet], n_prompts: int) -> list[Metric]:
    area = by_prompt(sets, n_prompts, lambda one: _area(one.probability, one.survives))
    made = [mean_of("area", "probability", area, chance=EVEN_AREA)]
    quantities = {
        "attention, same queries": lambda one: one.got,
        "attention, next queries": lambda one: one.got_later,
        "probability": lambda one: one.probability,
    }
    for arm, values in quantities.items():
        ratio = by_prompt(
            sets, n_prompts, lambda one, values=values: _log_ratio(values(one), one.survives)
        )
        made.append(factor_of("pruned_over_surviving", arm, ratio, other="surviving members"))
    return made


def _free(free: Sequence[FreeRun]) -> list[Metric]:
    ages = np.array([one.ages.mean() if len(one.ages) else np.nan for one in free])
    deaths = np.array([len(one.ages) / one.n_members if one.n_members else np.nan for one in free])
    changed = np.array([float(one.text_changed) for one in free])
    sets = np.array([float(one.first_change > 0) for one in free])
    return [
        mean_of("free_death_share", "pruned", deaths, unit="share of members", chance=0.0),
        mean_of("free_age_at_death", "pruned", ages, unit="steps"),
        mean_of("free_text_changed", "pruned", changed, unit="share of prompts", chance=0.0),
        mean_of("free_sets_changed", "pruned", sets, unit="share of prompts", chance=0.0),
    ]


def by_prompt(
    sets: Sequence[PrunedSet], n_prompts: int, value: Callable[[PrunedSet], float]
) -> Values:
    """Mean over the sets of each prompt; NaN without any."""
    return np.array(
        [
            mean_known(np.array([value(one) for one in sets if one.prompt == place]))
            for place in range(n_prompts)
        ]
    )


def _area(score: np.ndarray, positive: np.ndarray) -> float:
    """Share of the dead that have less than the survivor; ties count 1/2."""
    (best,) = score[positive]
    rest = score[~positive]
    return float(((rest < best) + (rest == best) / 2).mean())


def _log_ratio(values: np.ndarray, survives: np.ndarray) -> float:
    return float(np.log(values[~survives]).mean() - np.log(values[survives]).mean())
