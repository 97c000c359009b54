"""What e02 says: its findings, with the rule that turns intervals into a status."""

from typing import Any

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import Row, above, below, listed, number, outside, said, within

PUBLISHED = {"isolated": 0.48, "visible": 0.58}
"""The published weight of parallel tokens over that of others."""
ARMS = ("visible", "ordered")
MARGIN = 1.1
LITTLE_JS = 0.05
SAME_TOP = 0.8
TWIN = (
    "visible and ordered members are fed the tokens, positions and sets of the isolated run; a "
    "check of both traces finds only the relation changed"
)


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [
        _published_ratios(result),
        _minimal_effect(result),
        _readouts(result),
        _top_token(result),
        _with_sink(result),
        _without_sink(result),
        _order(result),
    ]


def _published_ratios(result: Result) -> Finding:
    name = "attention_ratio_with_sink"
    rows = {arm: metric(result, name, arm) for arm in PUBLISHED}
    nulls = ", ".join(f"{number(row['null'])} beside {arm}" for arm, row in rows.items())
    over = {arm: metric(result, f"{name}_over_null", arm) for arm in PUBLISHED}
    published = " and ".join(f"{value} when {arm}" for arm, value in PUBLISHED.items())
    return Finding(
        claim=f"Next to other tokens, parallel tokens get {published}.",
        evidence=f"The same statistic, with the first token among the others: {listed(rows)}. On "
        "the greedy runs of the same prompts, where nothing is parallel, slots with the same "
        f"labels have {nulls}. Over that null, paired by prompt: {listed(over)}. {_size(result)}",
        status=status_of(
            all(within(rows[arm], value / MARGIN, value * MARGIN) for arm, value in _published()),
            any(outside(rows[arm], value, value) for arm, value in _published()),
        ),
        rule=f"supported if each interval lies within a factor of {MARGIN} of the published "
        "number; otherwise refuted if one of the numbers lies outside its interval.",
        controls=f"chance 1; {TWIN}. Published were means of one prompt on a larger model, so the "
        "numbers need not agree; the greedy run shows what such a number says about parallel "
        "tokens.",
        published="isolated 0.48, visible 0.58",
        why=f"with the first token counted: {listed(rows)}; on greedy runs {nulls}",
    )


def _published() -> list[tuple[str, float]]:
    return list(PUBLISHED.items())


def _minimal_effect(result: Result) -> Finding:
    rows = _twins(result, "paired_ratio_without_sink")
    with_sink = _twins(result, "paired_ratio_with_sink")
    mass = _twins(result, "earlier_set_mass_change")
    row = rows["visible"]
    return Finding(
        claim="Whether siblings see each other changes what later tokens pay to earlier sets by "
        f"less than {100 * (MARGIN - 1):.0f} %.",
        evidence="Weight per slot of earlier sets over weight per other earlier slot, as a factor "
        f"of the same with isolated members: {listed(rows)}; with the first token among the "
        f"others: {listed(with_sink)}. Change of the share of a row on earlier sets: "
        f"{listed(mass)}. {_size(result)}",
        status=status_of(within(row, 1 / MARGIN, MARGIN), outside(row, 1 / MARGIN, MARGIN)),
        rule=f"supported if the interval of visible, without the first token, lies within "
        f"1/{MARGIN} and {MARGIN}; refuted if it lies outside.",
        controls=f"{TWIN}. A row that sees its own siblings has less left for all earlier slots, "
        "which lowers the share on sets and leaves the ratio alone.",
        published="isolation has minimal effect on attention to earlier sets",
        why=f"weight ratio as a factor of that of isolated members: {listed(rows)}",
    )


def _readouts(result: Result) -> Finding:
    js = _twins(result, "readout_js")
    others = {
        text: _twins(result, f"readout_{name}")
        for text, name in (
            ("KL from isolated", "kl_forward"),
            ("KL to isolated", "kl_backward"),
            ("cosine", "cosine"),
        )
    }
    row = js["visible"]
    return Finding(
        claim=f"Letting siblings see each other moves the readouts by less than {LITTLE_JS} nats.",
        evidence=f"JS from the readouts of isolated members, in nats: {listed(js)}. "
        + " ".join(f"{text}: {listed(rows)}." for text, rows in others.items())
        + f" {_size(result)}",
        status=status_of(below(row, LITTLE_JS), above(row, LITTLE_JS)),
        rule=f"supported if the interval of the JS of visible lies below {LITTLE_JS}; refuted if "
        "above.",
        controls=f"{TWIN}; steps before the first set of width >= 2 are left out. All are lower "
        "bounds from the stored top 256 tokens; identical readouts have 0, and a cosine of 1.",
    )


def _top_token(result: Result) -> Finding:
    top, ten = _twins(result, "readout_top_1_overlap"), _twins(result, "readout_top_overlap")
    row = top["visible"]
    return Finding(
        claim="Isolated and visible members agree on the most probable next token in more than "
        f"{100 * SAME_TOP:.0f} % of steps.",
        evidence=f"Share of steps with the same most probable token as isolated: {listed(top)}. "
        f"Share of the ten most probable in common: {listed(ten)}. {_size(result)}",
        status=status_of(above(row, SAME_TOP), below(row, SAME_TOP)),
        rule=f"supported if the interval of visible lies above {SAME_TOP}; refuted if below.",
        controls=f"{TWIN}; averaged over the steps of a prompt first; identical readouts have 1.",
    )


def _with_sink(result: Result) -> Finding:
    excess = metric(result, "sibling_excess_with_sink", "visible")
    return Finding(
        claim="Visible siblings pay each other less than even attention would.",
        evidence=f"{_spread(result, 'with')} {_layers(result, 'with')} {_size(result)}",
        status=status_of(below(excess, 0), above(excess, 0)),
        rule="supported if the interval of what visible siblings get less even attention lies "
        "below 0; refuted if above.",
        controls=f"{TWIN}. All query rows of sets of width >= 2; even attention over the slots "
        "that the row sees, the first token among them. The next entry leaves it out.",
    )


def _without_sink(result: Result) -> Finding:
    excess = metric(result, "sibling_excess_without_sink", "visible")
    return Finding(
        claim="Without the first token, visible siblings pay each other more than even attention "
        "would.",
        evidence=f"{_spread(result, 'without')} {_layers(result, 'without')} {_size(result)}",
        status=status_of(above(excess, 0), below(excess, 0)),
        rule="supported if the interval of what visible siblings get less even attention lies "
        "above 0; refuted if below.",
        controls=f"{TWIN}. Rows are rescaled to their mass outside the first token, and even "
        "attention leaves it out too.",
    )


def _order(result: Result) -> Finding:
    largest = {arm: result["detail"][arm]["largest_unseen"] for arm in ("isolated", "ordered")}
    zero = max(largest.values()) == 0
    row = metric(result, "sibling_share_with_sink", "ordered")
    return Finding(
        claim="Ordered members pay exactly nothing to siblings of higher rank number, isolated "
        "members to any.",
        evidence="Largest weight on a sibling that may not be seen, anywhere: "
        + ", ".join(f"{arm} {number(value)}" for arm, value in largest.items())
        + f". Ordered members pay the siblings before them {said(row)} of a row. {_size(result)}",
        status=status_of(zero, not zero),
        rule="supported if both largest weights are exactly 0, refuted otherwise.",
        controls="every layer, head and query of sets of width >= 2.",
    )


def _twins(result: Result, name: str) -> dict[str, Row]:
    return {arm: metric(result, name, f"isolated|{arm}") for arm in ARMS}


def _spread(result: Result, sink: str) -> str:
    parts = []
    for arm in ARMS:
        siblings, own = (metric(result, f"{p}_share_{sink}_sink", arm) for p in ("sibling", "own"))
        excess = metric(result, f"sibling_excess_{sink}_sink", arm)
        parts.append(
            f"{arm}: siblings together get {said(siblings)} of a row, even attention "
            f"{number(siblings['chance'])}, the difference is {said(excess)}; the query itself "
            f"gets {said(own)}, even attention {number(own['chance'])}; "
            f"{_steps(result, arm, sink)}."
        )
    return " ".join(parts)


def _steps(result: Result, arm: str, sink: str) -> str:
    """Weight per sibling at each difference of ranks, near the query."""
    found: dict[str, Any] = result["detail"][arm][sink]
    curve = found["by_difference"]
    columns = zip(curve["x"], curve["estimate"], found["chance_by_difference"], strict=True)
    near = [one for one in columns if one[0] and abs(one[0]) <= 2 and one[1] is not None]
    return "by difference of rank, one sibling gets " + ", ".join(
        f"{difference:+d} {number(weight)} (even {number(even)})"
        for difference, weight, even in near
    )


def _layers(result: Result, sink: str) -> str:
    found = result["detail"]["visible"][sink]
    pairs = zip(found["siblings_by_layer"], found["siblings_chance_by_layer"], strict=True)
    more = [layer for layer, (share, even) in enumerate(pairs) if share > even]
    first = [layer for layer in more if layer - 1 not in more]
    last = [layer for layer in more if layer + 1 not in more]
    runs = [f"{a} to {b}" if a < b else str(a) for a, b in zip(first, last, strict=True)]
    return f"Means of visible lie above even attention in layers {', '.join(runs) or 'none'}."


def _size(result: Result) -> str:
    row = metric(result, "paired_ratio_without_sink", "isolated|visible")
    return f"{row['n']} prompts, {result['n_sets']['isolated']} sets of width >= 2."
