"""What e05 says: its findings, with the rule that turns intervals into a status."""

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import Row, above, below, listed, number, outside, said, within

NUMBERS = range(2, 7)
ROUNDING = 1e-4
LAW_MARGIN = 1.2
LITTLE_JS = 0.05
LAW = "n m / (1 + (n - 1) m)"
ONE = "one copy on the same prompt; a check of the traces finds the same model and positions"


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [
        _neutral(result),
        _growth(result),
        _law(result),
        _little(result),
        _each(result),
    ]


def _arm(n: int, bias: str = "") -> str:
    return f"duplicates:{n}{bias}"


def _rows(result: Result, name: str) -> dict[str, Row]:
    return {f"n = {n}": metric(result, name, _arm(n)) for n in NUMBERS}


def _neutral(result: Result) -> Finding:
    found = result["detail"]["largest_difference_from_one_copy"]
    mass, kl, log = (
        max(found[_arm(n, "+mass-neutral")][name] for n in NUMBERS)
        for name in ("mass_error", "largest_kl", "log_error")
    )
    same = max(mass, kl, log) < ROUNDING
    return Finding(
        claim="With a bias of -log n, n copies of every token are to the model one copy.",
        evidence=f"n = {NUMBERS[0]} to {NUMBERS[-1]}, the largest difference from one copy "
        f"anywhere: mass of a row on earlier generated slots {number(mass)}, KL of a readout "
        f"{number(kl)} nats (a lower bound from the stored top 256 tokens), log-probability of a "
        f"listed token {number(log)}. {_size(result)}",
        status=status_of(same, not same),
        rule=f"supported if all three are below {ROUNDING:g}, refuted otherwise: the largest "
        "values, not means.",
        controls=f"{ONE}. Every layer, head, query and step from the second on; the next entry "
        "is the same without the bias.",
    )


def _growth(result: Result) -> Finding:
    mass, grown = _rows(result, "generated_mass"), _rows(result, "mass_increase")
    law = _rows(result, "mass_over_law_of_layers")
    holds = all(above(row, 0) for row in grown.values()) and all(
        below(row, 1) for row in law.values()
    )
    fails = any(below(row, 0) for row in grown.values()) or any(
        above(row, 1) for row in law.values()
    )
    return Finding(
        claim="The mass on earlier generated slots grows with every copy, but less than the law "
        "of equal odds from layer means says.",
        evidence=f"Share of a row: one copy {number(mass['n = 2']['null'])}; {listed(mass)}. More "
        f"than with one copy fewer, paired by prompt: {listed(grown)}. As a factor of {LAW}, with "
        f"m the mean of each layer under one copy: {listed(law)}. {_size(result)}",
        status=status_of(holds, fails),
        rule="supported if every increase lies above 0 and every factor below 1; refuted if an "
        "increase lies below 0 or a factor above 1.",
        controls=f"{ONE}. The law bends, so a law of means says more than the mean of laws: see "
        "the next entry.",
    )


def _law(result: Result) -> Finding:
    layers, rows = _rows(result, "mass_over_law_of_layers"), _rows(result, "mass_over_law_of_rows")
    error = max(result["detail"]["largest_law_error_in_first_layer"][_arm(n)] for n in NUMBERS)
    return Finding(
        claim="The law of equal odds from layer means tells the mass on n copies to within "
        f"{100 * (LAW_MARGIN - 1):.0f} %.",
        evidence=f"Mass as a factor of the law from layer means: {listed(layers)}. Of the law row "
        f"by row, averaged afterwards: {listed(rows)}. In the first layer the largest distance of "
        f"a row from the law is {number(error)}. {_lowest(result)} {_size(result)}",
        status=status_of(
            all(within(row, 1 / LAW_MARGIN, LAW_MARGIN) for row in layers.values()),
            any(outside(row, 1 / LAW_MARGIN, LAW_MARGIN) for row in layers.values()),
        ),
        rule=f"supported if every factor of layer means lies within 1/{LAW_MARGIN} and "
        f"{LAW_MARGIN}; refuted if one lies outside.",
        controls=f"{ONE}. The law is exact where queries and keys are those of one copy, as in the "
        "first layer; row by row, what is missing deeper is a change of scores, of these slots or "
        "others; the rest of the factor of layer means is averaging.",
    )


def _lowest(result: Result) -> str:
    found = result["detail"]["mass_over_law_of_rows_by_layer"]
    curve, arm = found["curve"], found["arm"]
    if None in curve["low"]:
        return f"By layer, {arm}: too few prompts for a band."
    off = sum(high < 1 for high in curve["high"])
    place = min(range(len(curve["x"])), key=lambda point: curve["estimate"][point])
    row = {name: curve[name][place] for name in ("estimate", "low", "high")}
    return (
        f"Row by row, {arm} lies below the law in {off} of {len(curve['x'])} layers, lowest in "
        f"layer {curve['x'][place]}: {said(row)}, limits for all layers at once."
    )


def _little(result: Result) -> Finding:
    n = NUMBERS[-1]
    js, top = (metric(result, f"readout_{name}", _arm(n)) for name in ("js", "top_1_overlap"))
    return Finding(
        claim=f"Feeding {n} copies of every token moves the readout by less than {LITTLE_JS} nats.",
        evidence=f"JS of the readouts of {n} copies and of one: {said(js)} nats, a lower bound "
        f"from the stored top 256 tokens. Both have the same most probable token in a share of "
        f"{said(top)} of the steps. {_size(result)}",
        status=status_of(below(js, LITTLE_JS), above(js, LITTLE_JS)),
        rule=f"supported if the interval of the JS lies below {LITTLE_JS}; refuted if above.",
        controls=f"{ONE}; identical readouts have 0; steps from the second on, the first that sees "
        "copies.",
    )


def _each(result: Result) -> Finding:
    js, more = _rows(result, "readout_js"), _rows(result, "js_increase")
    return Finding(
        claim="Every further copy moves the readout farther from that of one copy.",
        evidence=f"JS in nats: {listed(js)}. More than with one copy fewer, paired by prompt: "
        f"{listed(more)}. {_size(result)}",
        status=status_of(
            all(above(row, 0) for row in more.values()), any(below(row, 0) for row in more.values())
        ),
        rule="supported if every increase lies above 0; refuted if one lies below.",
        controls=f"{ONE}. A JS is never below 0, so the first increase must be above it; the "
        "others need not be.",
    )


def _size(result: Result) -> str:
    n = NUMBERS[-1]
    row = metric(result, "generated_mass", _arm(n))
    sets = result["n_sets"][f"{_arm(n)}@isolated"]
    return f"{row['n']} prompts, {sets} sets of {n} copies."
