"""What e14 says: which consequences of a set the next distribution still holds."""

from experiments.finding import Finding, Result, metric, shown, side, status_of

MERGES = ("isolated", "unique", "visible", "mass-neutral", "posterior", "embedding", "best-path")
DIFFERENT = 0.02


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [_branches(result), _which_merge(result)]


def _branches(result: Result) -> Finding:
    mass = {arm: metric(result, "consequence_mass", arm) for arm in (*MERGES, "no-set")}
    recovered = metric(result, "recovered", "isolated")
    exact = metric(result, "recovered", "exact")
    plain, null = mass["isolated"], mass["no-set"]
    known = plain["low"] is not None and null["high"] is not None
    return Finding(
        claim="After a fork the superposed sequence still holds the consequences of its members.",
        evidence="Probability on the members' consequences over that of the exact mixture: "
        + "; ".join(f"{arm} {shown(row)}" for arm, row in mass.items())
        + f". Members whose consequence is among the n most probable tokens: isolated "
        f"{shown(recovered)}, exact mixture {shown(exact)}; with no set {recovered['null']:.2g}. "
        f"{result['n_prompts']} probes. Effective branches, exp of the entropy of the shares: "
        f"isolated {shown(metric(result, 'effective_branches', 'isolated'))}, with no "
        f"set {shown(metric(result, 'effective_branches', 'no-set'))}: these say nothing alone.",
        status=status_of(
            known and plain["low"] > 0.5 and plain["low"] > null["high"],
            known and plain["high"] < 0.5,
        ),
        rule="supported if the interval of the mass under isolated lies above half of the exact "
        "mixture's and above that without a set; refuted if below half.",
        controls="equal weights before the bridge; the same prefix and bridge without a set; "
        f"probes chosen by plain runs only, dropped: {_dropped(result)}.",
    )


def _which_merge(result: Result) -> Finding:
    rows = {
        arm: metric(result, "survival_js_minus_isolated", arm)
        for arm in MERGES
        if arm != "isolated"
    }
    own = metric(result, "survival_js", "isolated")
    apart = [rows[arm] for arm in ("unique", "visible")]
    known = all(row["low"] is not None for row in apart)
    return Finding(
        claim="It makes no difference to the survival of branches whether members share a "
        f"position or see each other (within {DIFFERENT} nats of JS).",
        evidence=f"JS of the shares of the consequences to the exact mixture's: isolated "
        f"{shown(own)} nats (no set: {own['null']:.2g}); minus that of isolated, paired by probe: "
        + "; ".join(f"{arm} {shown(row)}" for arm, row in rows.items())
        + ".",
        status=status_of(
            known and all(row["low"] > -DIFFERENT and row["high"] < DIFFERENT for row in apart),
            known
            and any(side(row, of=-DIFFERENT) < 0 or side(row, of=DIFFERENT) > 0 for row in apart),
        ),
        rule=f"supported if the intervals of unique and visible lie within {DIFFERENT}; refuted if "
        "one lies outside.",
        controls="the largest possible JS is log 2; the null is the same bridge with no set.",
    )


def _dropped(result: Result) -> str:
    reasons = result["dropped_because"]
    return "; ".join(f"{why} {count}" for why, count in reasons.items()) or "none"
