"""What e03 says: its findings, with the rule that turns intervals into a status."""

import math
from typing import Any

from experiments.finding import Finding, Result, metric, status_of
from experiments.limits import (
    Row,
    above,
    below,
    enough,
    number,
    told,
    within,
)
from experiments.thirds import PAIRS, THIRDS, order
from tempo_analysis.stats.intervals import MARGIN

TEN_PERCENT = round(math.exp(MARGIN), 3)
REFUSED = "parallel_verdict"


def entries(result: Result) -> list[Finding]:
    """The findings, in order; a run that could not be split says why."""
    if not result["detail"]:
        return [_refused(result)]
    return [
        _down_weighting(result),
        _odds_law(result),
        _set_gain(result),
        _late_layers(result),
        _rank(result),
        _two_routes(result),
    ]


def _down_weighting(result: Result) -> Finding:
    drift, dilution = _row(result, "score_drift"), _row(result, "competition")
    counts = result["detail"]["heads_below_above_tested"]["without"]
    down, up, tested = counts["all"]
    first_down, first_up, first_tested = counts["first"]
    holds = below(drift, 1) and not within(drift, TEN_PERCENT)
    fails = above(drift, 1) or within(drift, TEN_PERCENT)
    return Finding(
        claim="Parallel tokens are down-weighted: in a set a member's score falls, apart from what "
        "the normaliser takes.",
        evidence=f"{_sentence(_verdict(result))} A member gets "
        f"{told(_row(result, 'member_gain'))} of the weight that the same token gets alone: "
        f"{told(drift)} by its score (down-weighting) times {told(dilution)} by competition "
        "(what the normaliser takes). First sets only: score "
        f"{told(_row(result, 'first_score_drift'))}, competition "
        f"{told(_row(result, 'first_competition'))}. With the first token in the "
        f"reference the score part is {told(_row(result, 'score_drift_with_sink'))}; with heads "
        "weighted by the mass they give the member it is "
        f"{told(_row(result, 'score_drift_weighted_by_mass'))}. Heads, at q < 0.05 of {tested}: "
        f"{down} below 1, {up} above, {tested - down - up} undecided; in first sets {first_down}, "
        f"{first_up} and {first_tested - first_down - first_up}. {_counts(result)}",
        status=_status(result, holds, fails),
        rule=f"supported if the interval of the score part lies below 1 and not within "
        f"1/{TEN_PERCENT} and {TEN_PERCENT}; refuted if it lies above 1 or within these. "
        "Geometric means over prompts of layer, head and query means of logarithms.",
        controls="1 is the same token alone: the same slot table without its siblings, decoded "
        "again, read by the same queries. Layer 0 and a second route to the score part are checked "
        "in an entry below. One model; the queries carry the set too, so a score falls because "
        "of a changed query, not because a key changed.",
        published="parallel tokens are down-weighted",
        why=f"a member's score is {told(drift)} and its share by competition {told(dilution)} of "
        "what they are alone",
    )


def _odds_law(result: Result) -> Finding:
    rest, factor = _row(result, "mass_elsewhere"), result["options"]["odds_law"]
    return Finding(
        claim="Competition is what independent odds predict: a set dilutes its members and moves "
        "no other mass.",
        evidence=f"Competition {told(_row(result, 'competition'))}; the odds law predicts "
        f"{told(_row(result, 'dilution_predicted'))}; what is left is {told(rest)}. First sets: "
        f"{told(_row(result, 'first_competition'))}, predicted "
        f"{told(_row(result, 'first_dilution_predicted'))}, left "
        f"{told(_row(result, 'first_mass_elsewhere'))}. With the first token in the reference "
        f"{told(_row(result, 'mass_elsewhere_with_sink'))} is left; the first token itself gets "
        f"{told(_row(result, 'sink_gain'))} of its mass alone.",
        status=_status(
            result, within(rest, factor), above(rest, factor) or below(rest, 1 / factor)
        ),
        rule=f"supported if the interval of what is left lies within 1/{factor} and {factor}; "
        "refuted if it lies outside on one side.",
        controls="the law takes each member's odds alone, head by head, and is exact where no "
        "score changes (layer 0). Two things are left over: mass that moved outside the "
        "prompt's slots, and what members with a changed score left to all others.",
    )


def _set_gain(result: Result) -> Finding:
    gain, least = _row(result, "set_gain"), result["options"]["more_than_one"]
    return Finding(
        claim=f"A set as a whole gets more than {least} times what one of its tokens gets alone.",
        evidence=f"All members together over the mean of each alone: {told(gain)}; first sets "
        f"{told(_row(result, 'first_set_gain'))}. {_width(result)}",
        status=_status(result, above(gain, least), below(gain, least)),
        rule=f"supported if the interval lies above {least}, refuted if below.",
        controls="1 would be a set that shares out what one token gets; a set that is neither "
        "diluted nor down-weighted would get its width.",
    )


def _late_layers(result: Result) -> Finding:
    rows = {pair: _row(result, f"score_drift_{pair[0]}_over_{pair[1]}") for pair in PAIRS}
    late = [order(rows, "late", other, 1) for other in ("early", "middle")]
    most = _largest(rows)
    return Finding(
        claim="Late layers down-weight most.",
        evidence="Score part, alone 1, by thirds of the layers: "
        + "; ".join(f"{third} {told(_row(result, f'score_drift_{third}'))}" for third in THIRDS)
        + ". Compared prompt by prompt, limits for all three comparisons at once: "
        + "; ".join(f"{a} over {b} {told(row)}" for (a, b), row in rows.items())
        + f". {most} First sets: "
        + "; ".join(
            f"{third} {told(_row(result, f'first_score_drift_{third}'))}" for third in THIRDS
        )
        + f". {_layers(result)}",
        status=_status(result, late == [-1, -1], 1 in late),
        rule="supported if the late third lies below both others; refuted if it lies above one of "
        "them.",
        controls="in layer 0 the score part is 1 whatever siblings do; the band holds in all "
        "layers at once. Layers are not replicates: limits are over prompts.",
        published="late layers down-weight most",
        why=f"late over early {told(rows['late', 'early'])}, late over middle "
        f"{told(rows['late', 'middle'])}",
    )


def _rank(result: Result) -> Finding:
    in_set, alone = (_row(result, f"lambda_{kind}_by_rank") for kind in ("in_set", "alone"))
    drift = _row(result, "drift_by_rank")
    return Finding(
        claim="Lambda, a member's log mass against the prompt's, falls with rank inside a set, "
        "alone as well as in the set: rank is content, not company.",
        evidence=f"Nats for each rank further down: in the set {told(in_set)}, alone "
        f"{told(alone)}; their difference, what siblings cost a lower rank more, {told(drift)}. "
        "Nats for each nat of log probability: in the set "
        f"{told(_row(result, 'lambda_in_set_by_log_probability'))}, alone "
        f"{told(_row(result, 'lambda_alone_by_log_probability'))}, difference "
        f"{told(_row(result, 'drift_by_log_probability'))}. Both at once, alone: rank "
        f"{told(_row(result, 'lambda_alone_by_rank_given_probability'))}, log probability "
        f"{told(_row(result, 'lambda_alone_by_probability_given_rank'))}; in the set: rank "
        f"{told(_row(result, 'lambda_in_set_by_rank_given_probability'))}, log probability "
        f"{told(_row(result, 'lambda_in_set_by_probability_given_rank'))}.",
        status=_status(
            result, below(in_set, 0) and below(alone, 0), above(in_set, 0) or above(alone, 0)
        ),
        rule="supported if both slopes on rank lie below 0, refuted if one lies above.",
        controls="least squares within sets, an intercept for each, pooled over prompts; prompts "
        "are resampled whole. A member and its twin are the same token at the same place. Rank and "
        "probability go together, so the fit of both at once has wide limits.",
    )


def _two_routes(result: Result) -> Finding:
    found, limit = result["checks"]["agreement"], result["options"]["same_drift_nats"]
    first, whole = (result["checks"][f"layer_zero_{kind}_sets_nats"] for kind in ("first", "all"))
    zero, apart = result["options"]["no_drift_nats"], (found["within_run"], found["across_runs"])
    known = None not in (*apart, first)
    holds = known and max(apart) <= limit and first <= zero
    return Finding(
        claim=f"The score part is the same by rows and by stored queries and keys, to {limit:g} "
        "nats, and is nothing in layer 0.",
        evidence=f"Largest difference of the two routes over {found['n_values']} cells of "
        f"{found['n_members']} members of {found['n_prompts']} prompts, decoded again with queries "
        f"and keys: {number(apart[0])} nats against rows of the same decoding, {number(apart[1])} "
        f"against the rows that were split. Prompts left out for other tokens: "
        f"{found['n_other_tokens']}. Largest score part in layer 0, any head, query and member: "
        f"{number(first)} nats in first sets, {number(whole)} in all.",
        status=status_of(holds, known and not holds),
        rule=f"supported if every difference is at most {limit:g} nats and layer 0 of first sets "
        f"at most {zero:g}, refuted otherwise. A check of the instrument, not a sample.",
        controls="the split of a row is an identity and checks nothing; scores from queries and "
        "keys never pass through a row.",
    )


def _refused(result: Result) -> Finding:
    return Finding(
        claim="Parallel tokens are down-weighted: in a set a member's score falls, apart from what "
        "the normaliser takes.",
        evidence=f"No data: {_verdict(result)}.",
        status="inconclusive",
        rule="without a set that could be split there is no verdict.",
        controls="none.",
        published="parallel tokens are down-weighted",
        why="no data",
    )


def _row(result: Result, name: str) -> Row:
    return metric(result, name, result["arm"])


def _verdict(result: Result) -> str:
    return str(_row(result, REFUSED)["verdict"])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _status(result: Result, holds: bool, fails: bool) -> str:
    """Of the numbers, where there is data enough for a claim."""
    claims = enough(result["n_prompts"], result["detail"]["n_sets_split"])
    return status_of(claims and holds, claims and fails)


def _counts(result: Result) -> str:
    detail: dict[str, Any] = result["detail"]
    return (
        f"Sets split: {detail['n_sets_split']} with {detail['n_members']} members, "
        f"{detail['n_sets_left_out']} left out; {detail['n_prompts_with_first_set']} prompts have "
        "a first set."
    )


def _width(result: Result) -> str:
    detail = result["detail"]
    width = detail["n_members"] / detail["n_sets_split"]
    return f"Mean width {width:.3g}."


def _largest(rows: dict[tuple[str, str], Row]) -> str:
    """Which third lies below both others, if one does."""
    others = {third: [one for one in THIRDS if one != third] for third in THIRDS}
    most = [
        third
        for third in THIRDS
        if all(order(rows, third, other, 1) < 0 for other in others[third])
    ]
    return f"Most in the {most[0]} third." if most else "No third lies below both others."


def _layers(result: Result) -> str:
    layers, drift = result["detail"]["layers"], result["detail"]["by_layer"]["all"]["drift"]
    below_one = [
        str(layer)
        for layer, high in zip(layers, drift["high"], strict=True)
        if high is not None and high < 1
    ]
    known = [
        (value, layer)
        for layer, value in zip(layers, drift["estimate"], strict=True)
        if value is not None
    ]
    if not known:
        return "By layer: no data."
    lowest, where = min(known)
    return (
        f"By layer, the band lies below 1 in {len(below_one)} of {len(layers)} layers; the lowest "
        f"estimate, {lowest:.3g}, is in layer {where}."
    )
