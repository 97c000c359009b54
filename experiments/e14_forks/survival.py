"""How much of each branch survives under each merge: values of a probe, then rows over probes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from experiments.e14_forks.probes import Probe, Survival, js_nats, survival
from experiments.merging import ARMS, REFERENCE, TOP_PATH, Depths, Paths
from experiments.ratios import ratio_metric
from tempo_analysis.parallel.metrics import NONE, Metric, metric_row
from tempo_analysis.stats.distributions import kl_nats
from tempo_analysis.stats.intervals import estimate_with_interval
from tempo_analysis.stats.verdict import comparison, divergence_verdict

EXACT = "exact"
NO_SET = "no-set"
COMPARED = tuple(arm for arm in ARMS if arm not in ("log-weight", TOP_PATH))
"""With equal weights log w is -log n, and no member is the first."""
N_TOP = 3
STRONG = 0.1
"""Mass of all consequences under the exact mixture from which on they count as likely."""
Values = Float64[np.ndarray, " probe"]


@dataclass(frozen=True, slots=True)
class ForkResult:
    """One probe under every merge.

    Attributes:
        survival: By arm, the exact mixture and the run without the set among them.
        kl: Nats from the exact mixture after the bridge, by arm.
    """

    probe: Probe
    survival: Mapping[str, Survival]
    kl: Mapping[str, float]


def fork_result(
    probe: Probe, paths: Paths, readouts: Mapping[str, Depths], no_set: Depths
) -> ForkResult:
    """Compare what survives with the exact mixture."""
    exact = paths.mixture()
    rows = {EXACT: exact, NO_SET: no_set} | {arm: readouts[arm] for arm in COMPARED}
    return ForkResult(
        probe=probe,
        survival={arm: survival(probe, row) for arm, row in rows.items()},
        kl={arm: float(kl_nats(exact[-1], row[-1])) for arm, row in rows.items()},
    )


def metrics(results: Sequence[ForkResult]) -> list[Mapping[str, Any]]:
    """The rows of `result.json`."""
    made = [metric for arm in (EXACT, *COMPARED, NO_SET) for metric in _metrics(results, arm)]
    strong = [one for one in results if one.survival[EXACT].mass >= STRONG]
    for arm in (EXACT, *COMPARED, NO_SET) if strong else ():
        made += [
            replace(metric, name=f"{metric.name}_where_likely")
            for metric in _metrics(strong, arm)
            if metric.name in ("consequence_mass", "survival_js", "recovered", "kl")
        ]
    return [metric_row(metric) for metric in made]


def detail(results: Sequence[ForkResult]) -> dict[str, Any]:
    """The shares of every probe under a few arms, and the mass on its consequences."""
    shown = (EXACT, REFERENCE, "posterior", "embedding", NO_SET)
    return {
        "arms": list(shown),
        "shares_then_mass": {
            one.probe.fork.id: [_line(one.survival[arm]) for arm in shown] for one in results
        },
    }


def _line(found: Survival) -> str:
    return " ".join(f"{value:.3f}" for value in (*found.share.tolist(), found.mass))


def _metrics(results: Sequence[ForkResult], arm: str) -> list[Metric]:
    mine = [one.survival[arm] for one in results]
    exact = [one.survival[EXACT] for one in results]
    null = [one.survival[NO_SET] for one in results]
    branches = np.array([one.n_branches for one in mine])
    made = [
        _plain("effective_branches", arm, branches, [one.n_branches for one in null]),
        _plain("recovered", arm, [one.recovered for one in mine], [one.recovered for one in null]),
        *(
            _plain(
                f"top_is_member_{place + 1}",
                arm,
                [float(one.top == place) for one in mine],
                [float(one.top == place) for one in null],
            )
            for place in range(N_TOP)
        ),
    ]
    if arm == EXACT:
        return made
    mass = np.array([np.log(a.mass / b.mass) for a, b in zip(mine, exact, strict=True)])
    spread = np.log(branches) - np.log([one.n_branches for one in exact])
    return [
        *made,
        ratio_metric("consequence_mass", arm, mass, "exact"),
        ratio_metric("effective_branches_over_exact", arm, spread, "exact"),
        *_distances(results, arm),
    ]


def _distances(results: Sequence[ForkResult], arm: str) -> list[Metric]:
    """JS of the shares and KL of the readouts, both from the exact mixture, in nats."""

    def js_of(other: str) -> Values:
        return np.array([js_nats(one.survival[other], one.survival[EXACT]) for one in results])

    def kl_of(other: str) -> Values:
        return np.array([one.kl[other] for one in results])

    made: list[Metric] = []
    for name, of in (("survival_js", js_of), ("kl", kl_of)):
        nats = estimate_with_interval(of(arm))
        null = float(of(NO_SET).mean())
        made.append(Metric(name, arm, "nats", nats, 0.0, null, divergence_verdict(nats)))
    if arm != REFERENCE:
        apart = estimate_with_interval(js_of(arm) - js_of(REFERENCE))
        text = comparison(apart, "the null", scale="difference").replace("the null", REFERENCE)
        made.append(Metric("survival_js_minus_isolated", arm, "nats", apart, NONE, 0.0, text))
    return made


def _plain(name: str, arm: str, values: Sequence[float] | Values, null: Sequence[float]) -> Metric:
    """A mean beside that of the run without the set."""
    here, without = np.asarray(values, np.float64), np.asarray(null, np.float64)
    text = "this arm is the null"
    if arm != NO_SET:
        text = comparison(estimate_with_interval(here - without), "the null", scale="difference")
    return Metric(name, arm, "", estimate_with_interval(here), NONE, float(without.mean()), text)
