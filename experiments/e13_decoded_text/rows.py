"""The rows of e13: what a text is worth under plain rescoring, how varied it is, what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from experiments.e13_decoded_text.texts import ARMS, BEAM, BRANCHING, GREEDY, SUPERPOSED, Text
from experiments.means import curve_of, mean_known, mean_of
from experiments.pairs import compared_with
from tempo_analysis.parallel.diversity import (
    BLEU_ORDER,
    GRAMS,
    distinct,
    effective_branches,
    self_bleu,
)
from tempo_analysis.parallel.metrics import Metric
from tempo_analysis.parallel.widths import path_collapse, repetition

VALUES = (
    *("nll", "claimed_nll", "calibration_gap", "distinct_1", "distinct_2", "distinct_3"),
    *("repetition", "collapsed", "effective_branches", "slots_per_token", "forwards_per_token"),
    *("self_bleu", "n_paths", "picked_nll"),
)
NO_NULL = ("calibration_gap", "self_bleu", "n_paths")
"""Without a value on a greedy run, or always the same one."""
Values = Float64[np.ndarray, " prompt"]


@dataclass(frozen=True, slots=True)
class Measured:
    """The texts of one arm in numbers, one for each prompt and each of `VALUES`."""

    values: Mapping[str, Values]
    gap_by_step: Float64[np.ndarray, "prompt step"]


def measured(texts: Sequence[Text]) -> Measured:
    """Every number of every prompt of one arm; the text is the best path."""
    rows = [_numbers(text) for text in texts]
    return Measured(
        values={name: np.array([row[name] for row in rows], np.float64) for name in VALUES},
        gap_by_step=np.array([text.sequential[0] - text.claimed[0] for text in texts]),
    )


def metrics(found: Mapping[str, Measured]) -> list[Metric]:
    """Every row of the experiment."""
    made: list[Metric] = []
    for arm in ARMS:
        made += _own(found, arm)
        made += _against(found, arm)
    nll = {arm: found[arm].values["nll"] for arm in ARMS}
    made.append(
        compared_with(
            nll["posterior"] - nll["isolated"],
            "isolated",
            name="nll_less_isolated",
            arm="posterior",
        )
    )
    return made


def detail(found: Mapping[str, Measured], texts: Mapping[str, Sequence[Text]]) -> dict[str, Any]:
    """The calibration gap by token, and a check of the trees."""
    errors = [
        float(np.abs(claimed - plain).max())
        for arm in (GREEDY, *BRANCHING)
        for text in texts[arm]
        for claimed, plain in zip(text.claimed, text.sequential, strict=True)
    ]
    return {
        "largest_error_of_exact_arms": max(errors, default=float("nan")),
        "n_tokens": max((len(text.paths[0]) for text in texts[GREEDY]), default=0),
        "n_paths_rescored": len({path for arm in ARMS for one in texts[arm] for path in one.paths}),
        "calibration_gap_by_token": {arm: curve_of(found[arm].gap_by_step) for arm in SUPERPOSED},
    }


def _numbers(text: Text) -> dict[str, float]:
    path = np.array(text.paths[0], np.int64)
    paths = [np.array(one, np.int64) for one in text.paths]
    table, n_tokens = text.table, len(path)
    weights = [table.weight[table.members(step)] for step in range(1, table.n_steps + 1)]
    compared = len(paths) >= 2 and n_tokens >= BLEU_ORDER
    nll, claimed = -text.sequential[0].mean(), -text.claimed[0].mean()
    return {
        "nll": nll,
        "claimed_nll": claimed,
        "calibration_gap": claimed - nll,
        **{f"distinct_{n}": distinct([path], n) for n in GRAMS},
        "repetition": repetition(path),
        "collapsed": float(path_collapse(path).is_collapsed),
        "effective_branches": mean_known(np.array([effective_branches(one) for one in weights])),
        "slots_per_token": (len(table) - table.n_prompt) / n_tokens,
        "forwards_per_token": table.n_steps / n_tokens,
        "self_bleu": self_bleu(paths) if compared else float("nan"),
        "n_paths": len(paths),
        "picked_nll": -text.picked.mean(),
    }


def _own(found: Mapping[str, Measured], arm: str) -> list[Metric]:
    """Each value of an arm beside that of greedy."""
    made: list[Metric] = []
    for name in VALUES:
        if np.isnan(found[arm].values[name]).all():
            continue
        of_greedy = found[GREEDY].values["nll" if name == "picked_nll" else name]
        null = None if name in NO_NULL or arm == GREEDY else of_greedy
        chance = 0.0 if name == "calibration_gap" else float("nan")
        made.append(mean_of(name, arm, found[arm].values[name], null=null, chance=chance))
    return made


def _against(found: Mapping[str, Measured], arm: str) -> list[Metric]:
    """Regret against greedy and beam, and collapse against greedy, paired by prompt."""
    made: list[Metric] = []
    for other in (GREEDY, BEAM):
        if arm != other:
            apart = found[arm].values["nll"] - found[other].values["nll"]
            made.append(compared_with(apart, other, name=f"regret_to_{other}", arm=arm))
    if arm in SUPERPOSED:
        apart = found[arm].values["picked_nll"] - found[GREEDY].values["nll"]
        made.append(compared_with(apart, GREEDY, name="picked_regret_to_greedy", arm=arm))
    if arm != GREEDY:
        apart = found[arm].values["collapsed"] - found[GREEDY].values["collapsed"]
        made.append(compared_with(apart, GREEDY, name="collapsed_less_greedy", arm=arm))
    return made
