"""What e15 says: its findings, with the rule that turns intervals into a status."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import above, below, number, said

SHOWN = ("previous_token", "induction", "duplicate_token", "positional", "delimiter", "retrieval")
MOST = 0.5
"""Share of the heads that the claim about sinks is about."""


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [_census(result), _order(result), _sinks(result), _funnel(result), _successor(result)]


def _census(result: Result) -> Finding:
    roles = result["detail"]["roles"]
    told = "; ".join(f"{role.replace('_', ' ')} {_held(roles[role])}" for role in SHOWN)
    rest = {role: one["n_assigned"] for role, one in roles.items() if role not in SHOWN}
    others = ", ".join(f"{role.replace('_', ' ')} {count}" for role, count in rest.items())
    held = all(roles[role]["n_assigned"] for role in SHOWN)
    return Finding(
        claim="The model has heads for the previous token, induction, duplicates, fixed offsets, "
        "delimiters and retrieval.",
        evidence=f"Heads that hold the role, of {result['detail']['n_heads']}, the best by score: "
        f"{told}. Others: {others}. {_texts(result)}",
        status=status_of(held, not held),
        rule="supported if each of the six roles is held by a head: score above the threshold, "
        "above the 99th percentile of the null over heads, q below 0.05 over sequences.",
        controls="each role against its own null (shuffled keys, unrepeated halves, permuted "
        "labels, a random span); untrained models hold none of them.",
    )


def _order(result: Result) -> Finding:
    after = metric(result, "depth_after_previous_token", "induction")
    depths = {
        role: metric(result, "depth", role)
        for role in ("previous_token", "duplicate_token", "induction", "retrieval")
    }
    told = "; ".join(f"{role.replace('_', ' ')} {said(row)}" for role, row in depths.items())
    return Finding(
        claim="Induction lies deeper in the model than looking at the previous token.",
        evidence="Depth (0 the first layer, 1 the last), the mean of layers weighted by mean "
        f"score above chance: {told}; induction less previous token {said(after)}. "
        f"{_texts(result)}",
        status=status_of(above(after, 0), below(after, 0)),
        rule="supported if the interval of the difference lies above 0, refuted if below.",
        controls="the same weighting for both; intervals resample the sequences, which are not the "
        "same ones for the two roles.",
    )


def _sinks(result: Result) -> Finding:
    detail = result["detail"]
    n = detail["roles"]["bos_sink"]["n_assigned"]
    share = n / detail["n_heads"]
    sinks = detail["sinks"]
    return Finding(
        claim="More than half of the heads are sinks.",
        evidence=f"{n} of {detail['n_heads']} heads ({100 * share:.0f} %) put more than "
        f"{sinks['epsilon']:g} of their rows on slot 0 on average and pass the null; sink rate "
        f"(share of heads and texts above that) {number(sinks['rate_percent'])} %. Best: "
        f"{_best(detail['roles']['bos_sink']['best'])}. {_texts(result)}",
        status=status_of(share > MOST, share <= MOST),
        rule="supported if more than half of the heads hold the role, refuted otherwise; the role "
        "itself rests on intervals over texts.",
        controls="query 0, which sees nothing else, is left out; the null has the keys of every "
        "row shuffled. Slot 0 is an ordinary token here: this tokenizer adds no bos.",
    )


def _funnel(result: Result) -> Finding:
    change = {sink: metric(result, "entropy_change", f"{sink} sink") for sink in _SINKS}
    ends = {
        sink: (
            metric(result, "entropy_first_third", f"{sink} sink"),
            metric(result, "entropy_last_third", f"{sink} sink"),
        )
        for sink in _SINKS
    }
    told = "; ".join(
        f"{sink} slot 0 {said(first)} to {said(last)}, change {said(change[sink])}"
        for sink, (first, last) in ends.items()
    )
    return Finding(
        claim="The entropy funnel is the sink: attention narrows with depth only when slot 0 is "
        "counted.",
        evidence="Entropy over the logarithm of the visible slots, mean of the first third of the "
        f"layers to that of the last: {told}. {_texts(result)}",
        status=status_of(
            below(change["with"], 0) and not below(change["without"], 0),
            below(change["without"], 0) or not below(change["with"], 0),
        ),
        rule="supported if the interval of the change lies below 0 with slot 0 and not below 0 "
        "without it; refuted otherwise.",
        controls="rows are rescaled to their mass outside slot 0; heads average first, thirds of "
        "the layers are paired within each text.",
    )


def _successor(result: Result) -> Finding:
    roles = result["detail"]["roles"]
    ov, attention = roles["successor_ov"], roles["successor_attention"]
    return Finding(
        claim="No head of the model is a successor head by what it writes.",
        evidence=f"Share of successions that a head's OV circuit gets right, best: "
        f"{_best(ov['best'])}; chance {number(ov['best'][0]['chance'])}, null p99 "
        f"{number(ov['best'][0]['null_p99'])}. By attention (ordinal less unrelated words, held "
        f"against shuffled ordinals over distinct pairs of words) {_held(attention)}. "
        f"{_texts(result)}",
        status=status_of(ov["n_assigned"] == 0, ov["n_assigned"] > 0),
        rule="supported if no head passes the threshold, the exact null and q below 0.05.",
        controls="the null is a head that picks evenly in the family; digits are no single tokens "
        "here and are left out. Heads that attend to the ordinal before do not write the next one.",
    )


_SINKS = ("with", "without")


def _held(role: Mapping[str, Any]) -> str:
    return f"{role['n_assigned']} ({_best(role['best'][:3])})"


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['head']} {number(row['score'])}" for row in rows[:3])


def _texts(result: Result) -> str:
    return f"{result['n_prompts']} sequences of each kind; {result['detail']['texts']['source']}."
