"""How far each merge lies from the exact mixture: values of a prompt, then rows over prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from experiments.merging import (
    ARMS,
    BEST_PATH,
    EMBEDDING,
    KV_MERGES,
    REFERENCE,
    UNIFORM,
    Depths,
    Paths,
)
from experiments.ratios import ratio_metric
from experiments.result import rounded
from tempo_analysis.parallel.metrics import Metric, metric_row
from tempo_analysis.report.document import plain
from tempo_analysis.stats.distributions import kl_nats
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import comparison, divergence_verdict

MERGES = (*KV_MERGES, EMBEDDING)
LEAST_KL = 1e-6
"""Nats; in ratios, what lies below counts as this."""
DIGITS = 4
"""Significant ones that are written."""
MANY_PATHS = 1.5
"""Effective paths from which on a prompt counts as one where several remain."""
SPREAD_ARMS = (REFERENCE, "posterior", "oracle-posterior", BEST_PATH)
Values = Float64[np.ndarray, " prompt"]


@dataclass(frozen=True, slots=True)
class Quality:
    """What one prompt says of every merge; depth 0 is right after the set.

    Attributes:
        kl: Nats from the exact mixture, by arm.
        same_top: Whether the most probable token is that of the exact mixture, by arm.
        top_weight: Share of the path of the most probable member under the exact mixture.
        n_paths: exp of the entropy of all shares.
        filter_error: Largest difference of a probability between the mixture of the paths and the
            readout of the engine's exact filter: rounding.
    """

    kl: Mapping[str, Float64[np.ndarray, " depth"]]
    same_top: Mapping[str, Bool[np.ndarray, " depth"]]
    top_weight: Float64[np.ndarray, " depth"]
    n_paths: Float64[np.ndarray, " depth"]
    filter_error: float


def quality_of(paths: Paths, readouts: Mapping[str, Depths], filtered: Depths) -> Quality:
    """Compare the readouts of every merge with the exact mixture."""
    target = paths.mixture()
    share = np.exp(paths.log_weight)
    return Quality(
        kl={arm: kl_nats(target, readouts[arm]) for arm in ARMS},
        same_top={arm: readouts[arm].argmax(-1) == target.argmax(-1) for arm in ARMS},
        top_weight=share[:, 0],
        n_paths=np.exp(-(share * paths.log_weight).sum(-1)),
        filter_error=float(np.abs(np.exp(target) - np.exp(filtered)).max()),
    )


def metrics(found: Mapping[int, Sequence[Quality]]) -> list[Mapping[str, Any]]:
    """The rows of `result.json`, by width and depth from 1 on."""
    made: list[Metric] = []
    for width, qualities in found.items():
        for depth in range(1, len(qualities[0].top_weight)):
            point = f"n={width} d={depth}"
            kl = {arm: np.array([one.kl[arm][depth] for one in qualities]) for arm in ARMS}
            made += _distances(kl, point)
            made += _survival(qualities, point, width=width, depth=depth)
            remain = np.array([one.n_paths[depth] for one in qualities]) >= MANY_PATHS
            made += _where_paths_remain({arm: kl[arm][remain] for arm in SPREAD_ARMS}, point)
    return [rounded(plain(metric_row(metric)), DIGITS) for metric in made]


def detail(found: Mapping[int, Sequence[Quality]]) -> dict[str, Any]:
    """Checks at depth 0, and how often each merge has the exact mixture's best token."""
    return {
        "least_kl_in_ratios": LEAST_KL,
        "largest_error_of_exact_filter": max(
            one.filter_error for many in found.values() for one in many
        ),
        "kl_at_depth_0": {
            f"n={width}": {arm: float(np.mean([one.kl[arm][0] for one in many])) for arm in ARMS}
            for width, many in found.items()
        },
        "kl_minus_best_path_by_depth": {
            f"n={width}": {arm: _over_best_path(many, arm) for arm in MERGES}
            for width, many in found.items()
        },
        "same_top_token_by_depth": {
            f"n={width}": {
                arm: np.mean([one.same_top[arm][1:] for one in many], axis=0) for arm in ARMS
            }
            for width, many in found.items()
        },
    }


def _over_best_path(qualities: Sequence[Quality], arm: str) -> list[list[float]]:
    """At every depth from 1 on, KL minus that of the best path, with its interval, in nats."""
    apart = np.array([one.kl[arm] - one.kl[BEST_PATH] for one in qualities])[:, 1:]
    found = [estimate_with_interval(column) for column in apart.T]
    return [rounded([one.estimate, one.low, one.high], DIGITS - 1) for one in found]


def _distances(kl: Mapping[str, Values], point: str) -> list[Metric]:
    """KL of every arm, and paired over plain isolated and over the best single path."""
    scale = float(kl[UNIFORM].mean())
    logs = {arm: np.log(np.maximum(values, LEAST_KL)) for arm, values in kl.items()}
    made: list[Metric] = []
    for arm, values in kl.items():
        nats = estimate_with_interval(values)
        made.append(
            Metric("kl", f"{arm} {point}", "nats", nats, 0.0, scale, divergence_verdict(nats))
        )
        if arm in MERGES and arm != REFERENCE:
            over = logs[arm] - logs[REFERENCE]
            made.append(ratio_metric("kl_over_isolated", f"{arm} {point}", over, REFERENCE))
        if arm in MERGES:
            over = logs[arm] - logs[BEST_PATH]
            made.append(ratio_metric("kl_over_best_path", f"{arm} {point}", over, BEST_PATH))
    return made


def _where_paths_remain(kl: Mapping[str, Values], point: str) -> list[Metric]:
    """KL minus that of the best path, of the prompts where one path does not have it all yet."""
    best = kl[BEST_PATH]
    made: list[Metric] = []
    for arm, values in kl.items():
        apart = estimate_with_interval(values - best if arm != BEST_PATH else best)
        text = comparison(apart, "the null", scale="difference").replace("the null", BEST_PATH)
        name = "kl_minus_best_path_where_paths_remain"
        if arm == BEST_PATH:
            name, text = "kl_where_paths_remain", divergence_verdict(apart)
        made.append(Metric(name, f"{arm} {point}", "nats", apart, 0.0, 0.0, text))
    return made


def _survival(qualities: Sequence[Quality], point: str, *, width: int, depth: int) -> list[Metric]:
    """How the exact mixture's shares concentrate; the null is the share before any token."""
    share = np.array([one.top_weight for one in qualities])
    paths = np.array([one.n_paths for one in qualities])
    made: list[Metric] = []
    for name, values, chance in (
        ("weight_of_top_path", share, 1 / width),
        ("effective_paths", paths, float(width)),
    ):
        change = estimate_with_interval(values[:, depth] - values[:, 0])
        text = comparison(change, "the null", scale="difference")
        found = estimate_with_interval(values[:, depth])
        made.append(
            Metric(name, f"exact {point}", "", found, chance, float(values[:, 0].mean()), text)
        )
    return made
