"""What e06 says: its findings, with the rule that turns intervals into a status."""

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import Row, above, below, listed, number, outside, said, within

BETAS = ("-2", "-1", "-0.5", "0.5", "1", "2")
MILD = ("mass-neutral", "log-weight")
OTHERS = (*MILD, "posterior")
MARGIN = 1.15
SHARPER = 0.95
ROUNDING = 1e-4
PERCENT = f"{100 * (1 - SHARPER):.0f} %"
TWIN = (
    "the same tokens, positions and sets with and without the bias; a check of both traces finds "
    "nothing else changed"
)


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [
        _repair(result),
        _within_a_row(result),
        _response(result),
        _boost(result),
        _entropy(result),
        _mild(result),
    ]


def _boosts(betas: tuple[str, ...] = BETAS) -> tuple[str, ...]:
    return tuple(f"boost:{beta}" for beta in betas)


def _rows(result: Result, name: str, changes: tuple[str, ...]) -> dict[str, Row]:
    return {change: metric(result, name, change) for change in changes}


def _twins(result: Result, name: str, changes: tuple[str, ...]) -> dict[str, Row]:
    return {change: metric(result, name, f"isolated|{change}") for change in changes}


def _repair(result: Result) -> Finding:
    up = _boosts(tuple(beta for beta in BETAS if float(beta) > 0))
    ratio = _twins(result, "paired_ratio_without_sink", up)
    entropy = _rows(result, "readout_entropy_ratio", up)
    next_set = _rows(result, "next_set_probability_change", up)
    before = next(iter(next_set.values()))["null"]
    better = [below(entropy[one], SHARPER) or above(next_set[one], 0) for one in up]
    no_better = [above(entropy[one], SHARPER) and not above(next_set[one], 0) for one in up]
    raised = [above(row, 1) for row in ratio.values()]
    return Finding(
        claim="A bias that gives sets more weight improves the prediction: it is sharper, or puts "
        "more on the tokens that the run went on with.",
        evidence=f"Weight ratio as a factor of that without bias: {listed(ratio)}. Entropy of the "
        f"readout as a factor: {listed(entropy)}. Change of the probability of the set that the "
        f"run without bias went on with, {number(before)} there: {listed(next_set)}. "
        f"{_size(result)}",
        status=status_of(
            any(a and b for a, b in zip(raised, better, strict=True)),
            all(a and b for a, b in zip(raised, no_better, strict=True)),
        ),
        rule="supported if for some beta > 0 the interval of the weight ratio lies above 1 and "
        f"that of the entropy below {SHARPER} or that of the probability change above 0; refuted "
        f"if for every beta > 0 the ratio lies above 1, the entropy above {SHARPER}, and the "
        "probability change does not lie above 0.",
        controls=f"{TWIN}. The probability favours the run without bias, whose own choice the "
        "tokens were; it is a lower bound, since tokens outside the stored top 256 count as 0. "
        "Neither number is quality: distance from the exact mixture of the paths, and the "
        "embedding, are the business of e12.",
        published="an embedding or a bias would repair it",
        why=f"bias only: the weight ratio changes by factors of {listed(ratio)}, the entropy of "
        f"the readout by {listed(entropy)}",
    )


def _within_a_row(result: Result) -> Finding:
    found = result["detail"]["first_layer_distance_from_beta"]
    apart = max(found[change] for change in _boosts())
    odds = _rows(result, "row_odds_over_exp_beta", _boosts())
    return Finding(
        claim="In the first layer a bias of beta multiplies what a row pays to sets, relative to "
        "other slots, by exp(beta), exactly.",
        evidence=f"Largest distance of a row's change of log odds from beta, over all rows of the "
        f"first layer, all prompts and beta = {', '.join(BETAS)}: {number(apart)}. Over all "
        f"layers, row by row and averaged afterwards, as a factor of exp(beta): {listed(odds)}. "
        f"{_size(result)}",
        status=status_of(apart < ROUNDING, apart >= ROUNDING),
        rule=f"supported if the largest distance is below {ROUNDING:g}, refuted otherwise.",
        controls=f"{TWIN}. Deeper, queries and keys differ from those without bias, so a factor "
        "other than 1 is what the model makes of the bias.",
    )


def _response(result: Result) -> Finding:
    rows = _rows(result, "paired_ratio_over_exp_beta", _boosts())
    ratio = _twins(result, "paired_ratio_without_sink", (*_boosts(), *OTHERS))
    sets = _twins(result, "earlier_set_mass_change", (*_boosts(), *OTHERS))
    sink = _twins(result, "sink_mass_change", (*_boosts(), *OTHERS))
    percent = f"{100 * (MARGIN - 1):.0f} %"
    return Finding(
        claim=f"Over all layers the weight ratio follows exp(beta) to within {percent}.",
        evidence=f"Weight ratio over that without bias, as a factor of exp(beta): {listed(rows)}. "
        f"Not divided: {listed(ratio)}. Change of the share of a row on earlier sets: "
        f"{listed(sets)}; on the first token: {listed(sink)}. {_largest(result)} {_size(result)}",
        status=status_of(
            all(within(row, 1 / MARGIN, MARGIN) for row in rows.values()),
            any(outside(row, 1 / MARGIN, MARGIN) for row in rows.values()),
        ),
        rule=f"supported if every factor lies within 1/{MARGIN} and {MARGIN}; refuted if one lies "
        "outside.",
        controls=f"{TWIN}. The ratio divides means over rows: rows that give sets much of their "
        "weight count most, and these cannot give exp(beta) times as much. Row by row see the "
        "entry before.",
    )


def _largest(result: Result) -> str:
    """The layer where the mass on sets responds most to each boost."""
    parts = []
    for change in _boosts():
        curve = result["detail"]["set_mass_change_by_layer"][change]
        layer = max(range(len(curve["estimate"])), key=lambda one: abs(curve["estimate"][one]))
        row = {name: curve[name][layer] for name in ("estimate", "low", "high")}
        parts.append(f"{change} in layer {layer}, by {said(row)}")
    return f"The share on sets changes most: {'; '.join(parts)} (limits for all layers at once)."


def _boost(result: Result) -> Finding:
    row = metric(result, "js_less_visible", "boost:1")
    js = _twins(result, "readout_js", ("visible", *_boosts(), *OTHERS))
    return Finding(
        claim="A boost of 1 moves the readouts farther than letting siblings see each other does.",
        evidence=f"JS from the readouts without bias, in nats: {listed(js)}. Boost of 1 less "
        f"visible, paired by prompt: {said(row)}. {_size(result)}",
        status=status_of(above(row, 0), below(row, 0)),
        rule="supported if the interval of the paired difference lies above 0; refuted if below.",
        controls=f"{TWIN}; visible changes the relation instead. Both are averaged over the steps "
        "from the first set on; a bias cannot act before the step after it, seeing siblings can. "
        "JS is a lower bound from the stored top 256 tokens.",
    )


def _entropy(result: Result) -> Finding:
    rows = _rows(result, "readout_entropy_ratio", _boosts())
    others = _rows(result, "readout_entropy_ratio", OTHERS)
    return Finding(
        claim=f"No boost lowers the entropy of the readouts by as much as {PERCENT}.",
        evidence=f"Entropy as a factor of that without bias: {listed(rows)}. Other biases: "
        f"{listed(others)}. {_size(result)}",
        status=status_of(
            all(above(row, SHARPER) for row in rows.values()),
            any(below(row, SHARPER) for row in rows.values()),
        ),
        rule=f"supported if every interval of a boost lies above {SHARPER}; refuted if one lies "
        "below.",
        controls=f"{TWIN}. The logarithm is averaged over the steps of a prompt from the first set "
        "on, then over prompts. 1 is no effect.",
    )


def _mild(result: Result) -> Finding:
    rows = _rows(result, "js_less_cut", MILD)
    js = _twins(result, "readout_js", (*MILD, "boost:-1"))
    return Finding(
        claim="Biases of -log n and log w move the readouts less than a boost of -1 does.",
        evidence=f"JS from the readouts without bias, in nats: {listed(js)}. Less that of the "
        f"boost of -1, paired by prompt: {listed(rows)}. {_size(result)}",
        status=status_of(
            all(below(row, 0) for row in rows.values()), any(above(row, 0) for row in rows.values())
        ),
        rule="supported if both paired differences lie below 0; refuted if one lies above.",
        controls=f"{TWIN}. mass-neutral is -log n: weaker than a boost of -1 for two members, "
        "stronger from three on. log-weight is log w, w the member's share of its set.",
    )


def _size(result: Result) -> str:
    row = metric(result, "paired_ratio_without_sink", "isolated|boost:1")
    return f"{row['n']} prompts, {result['n_sets']['isolated']} sets of width >= 2."
