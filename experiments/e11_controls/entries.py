"""What e11 says: its findings, with the rule that turns intervals into a status."""

from experiments.finding import Finding, Result, metric, status_of
from experiments.limits import Row, above, below, enough, number, told, within

CONTROLS = {
    "plain_without_sink": "none",
    "matched_distance": "same distance",
    "value_weighted_without_sink": "value-weighted",
    "uncollapsed_without_sink": "without collapsed prompts",
    "low_probability": "against singles of low probability",
}
"""Name among the metrics, and in words."""


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [_sign(result), _distance(result), _values(result), _collapse(result)]


def _sign(result: Result) -> Finding:
    over = {name: _row(result, f"{name}_over_null") for name in CONTROLS}
    raw = {name: _row(result, name) for name in CONTROLS}
    detail, cut = result["detail"], result["options"]["low_probability_below"]
    return Finding(
        claim="No control turns the sign: a member of a set gets less than its null, the first "
        "token left out.",
        evidence=f"Ratio of {result['options']['arm']} over its null, by control: "
        + "; ".join(f"{CONTROLS[name]} {told(row)}, n = {row['n']}" for name, row in over.items())
        + ". The ratios themselves, with their null: "
        + "; ".join(f"{CONTROLS[name]} {told(row)}, null {_null(row)}" for name, row in raw.items())
        + f". Singles of low probability: {detail['low_singles']} below {cut}, mean probability "
        f"{number(detail['mean_probability']['low_singles'])}; members have "
        f"{number(detail['mean_probability']['members'])}.",
        status=_status(
            result,
            all(below(row, 1) for row in over.values()),
            any(above(row, 1) for row in over.values()),
        ),
        rule="supported if the interval over the null lies below 1 under every control, refuted if "
        "it lies above 1 under one.",
        controls="the null is the greedy run of the same prompt, its steps labelled as the sets "
        "and, in the last, as the singles of the arm. Controls are taken one at a time. Below 1 is "
        "less weight, be it by dilution or by a lower score: the split tells them apart.",
    )


def _distance(result: Result) -> Finding:
    name = "matched_distance"
    ratio, over = _row(result, name), _row(result, f"{name}_over_null")
    chance = _row(result, f"{name}_over_chance")
    counts = result["detail"]["distance"]
    matched = counts["matched_own"] + counts["matched_pooled"]
    return Finding(
        claim="A member gets less weight than a generated single token at the same distance.",
        evidence=f"Per head, members over singles at their distance: {told(ratio)}; even attention "
        f"would give {number(ratio['chance'])} on these rows, and over that it is {told(chance)}. "
        f"The null has {_null(ratio)}; over the null {told(over)}. By head, means lie below 1 in "
        f"{counts['heads_below_one']} of {counts['heads_with_data']}, a description. "
        f"Of {matched + counts['left_out']} weights of members {counts['matched_own']} were "
        f"matched within their prompt, {counts['matched_pooled']} with other prompts, "
        f"{counts['left_out']} not at all.",
        status=_status(
            result,
            below(chance, 1) and below(over, 1),
            above(chance, 1) or above(over, 1),
        ),
        rule="supported if the interval lies below 1 over even attention and over the null, "
        "refuted if one of them lies above.",
        controls="recency cannot move this ratio. Rows are rescaled to what they give outside the "
        "first token. Probability and identity of the tokens are not matched here.",
    )


def _values(result: Result) -> Finding:
    margin = result["options"]["same_ratio"]
    up = _row(result, "value_weighted_over_plain_with_sink_ratio")
    same = _row(result, "value_weighted_over_plain_without_sink_over_null")
    plain, weighted = (
        {sink: _row(result, f"{kind}_{sink}_sink") for sink in ("with", "without")}
        for kind in ("plain", "value_weighted")
    )
    return Finding(
        claim="Weighting by the value brings the ratio with the first token up and leaves the "
        f"ratio without it, over its null, within a factor {margin}.",
        evidence=f"With the first token: plain {told(plain['with'])}, value-weighted "
        f"{told(weighted['with'])}, quotient {told(up)}. Without it, over the null: plain "
        f"{told(_row(result, 'plain_without_sink_over_null'))}, value-weighted "
        f"{told(_row(result, 'value_weighted_without_sink_over_null'))}, quotient {told(same)}. "
        f"The first token has {told(_row(result, 'sink_mass'))} of the weight of a row and "
        f"{told(_row(result, 'sink_share_by_value'))} of weight times value.",
        status=_status(
            result,
            above(up, 1) and within(same, margin),
            below(up, 1) or above(same, margin) or below(same, 1 / margin),
        ),
        rule=f"supported if the first quotient lies above 1 and the second within 1/{margin} and "
        f"{margin}; refuted if the first lies below 1 or the second outside.",
        controls="quotients are paired by prompt. The value is its norm through the head's part of "
        "the output projection; norms do not add up where vectors cancel.",
    )


def _collapse(result: Result) -> Finding:
    options, arm = result["options"], result["options"]["arm"]
    rates = {name: metric(result, "collapse_rate", name) for name in (arm, "greedy")}
    plain, kept = (
        _row(result, f"{kind}_without_sink_over_null") for kind in ("plain", "uncollapsed")
    )
    known = None not in (plain["estimate"], kept["estimate"])
    moved = kept["estimate"] / plain["estimate"] if known else None
    limit = options["moves_nothing"]
    nothing = known and 1 / limit < moved < limit
    few = below(rates[arm], options["few_collapsed"])
    many = above(rates[arm], options["few_collapsed"])
    return Finding(
        claim=f"Fewer than {100 * options['few_collapsed']:.0f} % of prompts collapse into "
        f"repetition, and leaving them out moves the ratio by less than {100 * (limit - 1):.0f} %.",
        evidence="Share of prompts that end in a loop or repeat themselves: "
        + "; ".join(f"{name} {told(row)}" for name, row in rates.items())
        + f". {result['detail']['collapsed_prompts']} of {result['n_prompts']} prompts do in one "
        f"of the two. Ratio over its null with all prompts {told(plain)}, without them "
        f"{told(kept)}, a factor {number(moved)}.",
        status=_status(result, few and nothing, many or (known and not nothing)),
        rule=f"supported if the interval of the share in {arm} lies below "
        f"{options['few_collapsed']} and the factor within 1/{limit} and {limit}; refuted if the "
        "share lies above or the factor outside. The factor is one of estimates, without a test.",
        controls="a prompt that collapses in either run is left out of both. A few generated steps "
        "are little room for a loop, so this says nothing about long texts.",
    )


def _row(result: Result, name: str) -> Row:
    return metric(result, name, result["options"]["arm"])


def _status(result: Result, holds: bool, fails: bool) -> str:
    """Of the numbers, where there is data enough for a claim."""
    claims = enough(result["n_prompts"], result["n_sets"][result["options"]["arm"]])
    return status_of(claims and holds, claims and fails)


def _null(row: Row) -> str:
    return number(row["null"])
