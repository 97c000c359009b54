"""What e10 says: its findings, with the rule that turns intervals into a status."""

from collections.abc import Mapping
from typing import Any

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import above, below, listed, number, said

SAME = 1e-3
"""Share of a state's norm."""
ALIKE = 0.9
"""Cosine predicted to be exceeded in every layer."""
Curve = Mapping[str, Any]


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [_own_state(result), _drift(result), _nearest(result), _lens(result)]


def _own_state(result: Result) -> Finding:
    largest = result["detail"]["largest_own_change"]
    known = largest is not None
    return Finding(
        claim="An isolated member of a first set has the same states as alone, at every depth.",
        evidence="Largest norm of the difference between a member's state in the set and alone, "
        f"over its norm, at any depth: {number(largest)}. What differs is what it gets: the next "
        f"set pays it {said(metric(result, 'attention_in_set', 'member'))} of what it pays it "
        f"alone. {_sets(result)}",
        status=status_of(known and largest < SAME, known and largest >= SAME),
        rule=f"supported if the largest is below {SAME:g}, refuted otherwise.",
        controls="the embedding and every layer up to the input of the final norm; a slow forward "
        "over the finished slot table, not the engine. Later sets differ: their members see the "
        "sets before.",
    )


def _drift(result: Result) -> Finding:
    curve = _curve(result, "cosine_rank_0")
    ranks = {f"rank {rank}": metric(result, "cosine", f"rank {rank}") for rank in range(3)}
    lower = metric(result, "cosine_less_rank_0", "rank 1")
    between = metric(result, "cosine_between", "members alone")
    less = metric(result, "cosine_less_between", "rank 0")
    alike = bool(curve) and all(low is not None and low > ALIKE for low in curve["low"])
    unlike = any(high is not None and high < ALIKE for high in curve.get("high", []))
    return Finding(
        claim="After a set the next query is in nearly the state that it has after the top member "
        "alone, and less nearly that after a lower-ranked one.",
        evidence="Cosine of its states after the set and after one member alone, mean over the "
        f"depths behind the embedding: {listed(ranks)}; rank 1 less rank 0 {said(lower)}. After "
        f"the top member: {_depths(curve)} States after two different members alone are "
        f"{said(between)} alike; the set's state is nearer to the top member's by {said(less)}. "
        f"{_sets(result)}",
        status=status_of(alike and below(lower, 0), unlike or above(lower, 0)),
        rule=f"supported if the simultaneous band of the top member's cosine lies above {ALIKE} at "
        "every depth and the interval of rank 1 less rank 0 below 0; refuted if the band lies "
        f"below {ALIKE} at any depth or the interval above 0.",
        controls="the same query tokens at the same positions; the states of two members alone are "
        "the null, as states share large common components.",
    )


def _nearest(result: Result) -> Finding:
    attended, top = (metric(result, "nearest_is", name) for name in ("attended", "rank 0"))
    over = metric(result, "nearest_is_less_chance", "attended")
    less = metric(result, "nearest_is_less_rank_0", "attended")
    return Finding(
        claim="A query's last state after a set lies nearest to its state after the member that it "
        "attends to most.",
        evidence=f"It does for {said(attended)} of queries, for a member drawn at random it would "
        f"for {number(attended['null'])}: more by {said(over)}. It lies nearest to the state after "
        f"the most probable member for {said(top)}; attention less probability {said(less)}. "
        f"{attended['n']} prompts.",
        status=status_of(above(over, 0), below(over, 0)),
        rule="supported if the interval of the share less that of a random member lies above 0, "
        "refuted if below.",
        controls="nearest by cosine before the final norm; attention is the mean over all layers "
        "and heads of that query. The most probable member is what a guess without attention "
        "would name.",
    )


def _lens(result: Result) -> Finding:
    name = "lens_set_less_own"
    parts = {
        part: metric(result, name, part) for part in ("first third", "middle third", "last third")
    }
    error = result["detail"]["largest_lens_error"]
    return Finding(
        claim="A member's logit lens tends to its own continuation, not to the set's.",
        evidence="KL(readout of the set || lens) less KL(what the member itself predicts || lens), "
        f"in nats, by thirds of the layers: {listed(parts)}. Above 0 the lens is nearer to the "
        f"member's own. {_sets(result)}",
        status=status_of(
            above(parts["middle third"], 0) and above(parts["last third"], 0),
            below(parts["middle third"], 0) or below(parts["last third"], 0),
        ),
        rule="supported if the intervals of the middle and the last third lie above 0, refuted if "
        "one lies below. Nothing was predicted.",
        controls="the last lens is the member's own prediction by construction, and an isolated "
        "member never sees the set, so only the depth at which it turns is news; the lens of the "
        f"last state equals the logits to {number(error)}.",
    )


def _depths(curve: Curve) -> str:
    known = [value for value in curve.get("estimate", []) if value is not None]
    if not known:
        return "no data."
    lowest = min(range(len(known)), key=known.__getitem__)
    low = curve["low"][lowest]
    band = "no band" if low is None else f"band {low:.3g} to {curve['high'][lowest]:.3g}"
    return (
        f"{known[0]:.3g} at the embedding, {known[1]:.4g} after the first layer, lowest at depth "
        f"{lowest} ({known[lowest]:.3g}, {band}), {known[-1]:.3g} in the end."
    )


def _curve(result: Result, name: str) -> Curve:
    return result["detail"]["curves"].get(name, {})


def _sets(result: Result) -> str:
    detail = result["detail"]
    return f"{detail['n_members']} members of {detail['n_first_sets']} first sets."
