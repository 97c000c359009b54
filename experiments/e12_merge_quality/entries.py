"""What e12 says: how close each merge comes to the exact Bayesian mixture."""

from collections.abc import Mapping
from typing import Any

from experiments.finding import Finding, Result, shown, side, status_of

WIDTHS = (2, 3, 4)
DEPTHS = (1, 2, 3, 4)
DEEP = (3, 4)
MERGES = (
    *("isolated", "unique", "visible", "mass-neutral", "log-weight"),
    *("posterior", "embedding", "best-path"),
)
CONTROLS = (
    "the whole vocabulary, tokens forced to be the same for every merge; the exact mixture comes "
    "from one run for each path."
)


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [_plain_merge(result), _repairs(result), _filter(result), _embedding(result)]


def row(result: Result, name: str, arm: str, *, n: int, d: int) -> Mapping[str, Any]:
    """One row of the metrics, by merge, width and depth."""
    wanted = (name, f"{arm} n={n} d={d}")
    found = [one for one in result["metrics"] if (one["name"], one["arm"]) == wanted]
    assert len(found) == 1, f"expected one {wanted}, got {len(found)}"
    return found[0]


def _plain_merge(result: Result) -> Finding:
    over = _over(result, "kl_over_best_path", "isolated", DEPTHS)
    first = {
        arm: ", ".join(shown(row(result, "kl", arm, n=n, d=1)) for n in WIDTHS) for arm in MERGES
    }
    return Finding(
        claim="One superposed sequence describes what follows a set better than its best single "
        "path does.",
        evidence="KL of the exact Bayesian mixture to the readout one token after the set, in "
        f"nats, for n = {', '.join(map(str, WIDTHS))}: "
        + "; ".join(f"{arm} {values}" for arm, values in first.items())
        + f". Isolated over best-path, paired by prompt: {_range(over)} over n and d.",
        status=_of(over, below=1),
        rule="supported if the interval of the ratio of KL lies below 1 for every n and depth, "
        "refuted if above 1 for every one.",
        controls=CONTROLS + " The ratio is of geometric means, so prompts in which one path has "
        "almost all the weight count most; the means of KL stand beside it.",
    )


def _repairs(result: Result) -> Finding:
    parts, holds = [], []
    for arm in ("unique", "visible", "mass-neutral", "log-weight", "posterior"):
        over = _over(result, "kl_over_isolated", arm, DEPTHS)
        parts.append(f"{arm} {_range(over)}")
        if arm in ("mass-neutral", "log-weight", "posterior"):
            holds += [side(one, of=1) for one in over]
    return Finding(
        claim="A bias on the scores brings the superposed readout closer to the exact mixture.",
        evidence="KL over that of plain isolated, paired by prompt, smallest and largest over n "
        "and d: " + "; ".join(parts) + ".",
        status=status_of(all(one < 0 for one in holds), all(one > 0 for one in holds)),
        rule="supported if the interval lies below 1 for -log n, log w and the posterior at every "
        "n and depth; refuted if above 1 for all.",
        controls=CONTROLS + " Closer to the mixture is not more attention: -log n takes mass away "
        "from sets.",
        published="an embedding or a bias would repair it (readout)",
        why="no missing mass is repaired, but log w and the posterior bring the readout nearer to "
        "the exact mixture: KL over plain isolated "
        + _range(_over(result, "kl_over_isolated", "log-weight", DEPTHS))
        + " and "
        + _range(_over(result, "kl_over_isolated", "posterior", DEPTHS)),
    )


def _filter(result: Result) -> Finding:
    shallow = _over(result, "kl_over_best_path", "posterior", (1,))
    deep = _over(result, "kl_over_best_path", "posterior", DEEP)
    bound = _over(result, "kl_over_best_path", "oracle-posterior", DEEP)
    means = "; ".join(
        f"n={n} d={d} {row(result, 'kl', 'posterior', n=n, d=d)['estimate']:.2g} against "
        f"{row(result, 'kl', 'best-path', n=n, d=d)['estimate']:.2g}"
        for n in WIDTHS
        for d in (1, 4)
    )
    gaps = "; ".join(
        f"n={n} {_gaps(result['detail']['kl_minus_best_path_by_depth'][f'n={n}']['posterior'])}"
        for n in WIDTHS
    )
    return Finding(
        claim="With the posterior as a bias, superposed decoding stays nearer to the exact filter "
        "than its best single path beyond depth 2: a decoding mode of its own.",
        evidence=f"KL over that of best-path at depth 1: {_range(shallow)}; at depths 3 and 4: "
        f"{_range(deep)}; with the exact posterior, a bound: {_range(bound)}. Means of KL, "
        f"posterior against best-path: {means}; paired differences at depths 1 to 4: "
        f"{gaps}. Only prompts in which paths remain: {_remaining(result)}.",
        status=_of(deep, below=1, any_fails=True),
        rule="supported if the interval lies below 1 for every n at depths 3 and 4; refuted if it "
        "lies above 1 for some n and below 1 for none.",
        controls=CONTROLS + " best-path knows afterwards which path is best, which decoding does "
        "not: it is a hard opponent. The weights concentrate on one path at once, and there the "
        "ratio compares numbers near 0; which prompts keep several was looked at afterwards. "
        "top-path is what greedy follows.",
    )


def _embedding(result: Result) -> Finding:
    over = _over(result, "kl_over_isolated", "embedding", DEPTHS)
    first = [row(result, "kl", arm, n=4, d=1) for arm in ("embedding", "isolated")]
    return Finding(
        claim="One slot with the mean of the members' embeddings merges worse than their keys and "
        "values side by side.",
        evidence=f"KL over that of plain isolated: {_range(over)} (geometric means). Means one "
        f"token after a set of 4: embedding {shown(first[0])}, isolated {shown(first[1])}.",
        status=_of(over, above=1),
        rule="supported if the interval of the ratio lies above 1 for every n and depth, refuted "
        "if below 1 for every one.",
        controls=CONTROLS + " The embedding is weighed by w, so plain isolated, which is not, is "
        "an easy opponent; log-weight, which is, lies at "
        + _range(_over(result, "kl_over_isolated", "log-weight", DEPTHS))
        + ".",
    )


def _remaining(result: Result) -> str:
    """Posterior less best-path where one path has not all the weight; found after the fact."""
    parts: list[str] = []
    for n in WIDTHS:
        for d in (1, 4):
            wanted = ("kl_minus_best_path_where_paths_remain", f"posterior n={n} d={d}")
            rows = [one for one in result["metrics"] if (one["name"], one["arm"]) == wanted]
            said = _gaps([[one["estimate"], one["low"], one["high"]] for one in rows]) or "no data"
            parts.append(f"n={n} d={d} {said}")
    return "; ".join(parts)


def _gaps(rows: list[list[float | None]]) -> str:
    return ", ".join(
        "no data" if low is None else f"{mean:.2g} ({low:.2g} to {high:.2g})"
        for mean, low, high in rows
    )


def _over(result: Result, name: str, arm: str, depths: tuple[int, ...]) -> list[Mapping[str, Any]]:
    return [row(result, name, arm, n=n, d=d) for n in WIDTHS for d in depths]


def _of(
    rows: list[Mapping[str, Any]],
    *,
    below: float | None = None,
    above: float | None = None,
    any_fails: bool = False,
) -> str:
    """Whether all intervals lie on one side."""
    if any(one["low"] is None for one in rows):
        return "inconclusive"
    wanted = -1 if below is not None else 1
    sides = [side(one, of=below if below is not None else above or 1) for one in rows]
    against = [one == -wanted for one in sides]
    fails = any(against) and wanted not in sides if any_fails else all(against)
    return status_of(all(one == wanted for one in sides), fails)


def _range(rows: list[Mapping[str, Any]]) -> str:
    known = [one for one in rows if one["estimate"] is not None]
    if not known:
        return "no data"
    ordered = sorted(known, key=lambda one: one["estimate"])
    ends = [
        f"{one['estimate']:.2g}"
        if one["low"] is None
        else f"{one['estimate']:.2g} ({one['low']:.2g} to {one['high']:.2g})"
        for one in (ordered[0], ordered[-1])
    ]
    return " to ".join(ends)
