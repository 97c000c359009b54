"""What e16 says: its findings, with the rule that turns intervals into a status."""

from collections.abc import Sequence

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import Row, above, below, listed, number, said

SURE = 2
"""Outcomes that a repair must improve: one of six intervals may lie below 0 by chance."""
LEFT_OUT = 0.05
REPAIRS = ("one bias", "a bias for each head")
THIRDS = ("first third", "middle third", "last third")
OUTCOMES = {
    "set_nll_change": "-log p of the next set",
    "mixture_kl_change": "KL from the exact mixture of the paths",
    "free_path_nll_change": "-log p of the freely decoded top path in the plain model, per token",
}


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [
        _repair(result),
        _restoring(result),
        _other_way(result),
        _control(result),
        _readers(result),
        _thirds(result),
        _free(result),
    ]


def _repair(result: Result) -> Finding:
    names = [name for name in REPAIRS if name in result["detail"]["repairs"]]
    rows = {
        title: {one: metric(result, key, f"repaired with {one}") for one in names}
        for key, title in OUTCOMES.items()
    }
    told = "; ".join(f"change of {title}: {listed(found)}" for title, found in rows.items())
    gaps = "; ".join(
        f"{one} ({result['detail']['repairs'][one]['about']}) leaves heads "
        f"{number(result['detail']['repairs'][one]['gap'])} nats from their mass alone, "
        f"{number(result['detail']['repairs'][one]['gap_before'])} before"
        for one in names
    )
    outcomes = [[found[one] for found in rows.values()] for one in names]
    better = [_one_side(each, up=False, least=SURE) for each in outcomes]
    worse = [_one_side(each, up=True) for each in outcomes]
    untold = result["detail"]["no_repair"] or f"{gaps}. {told}"
    return Finding(
        claim="Boosting members of sets to the mass they get alone improves what follows.",
        evidence=f"{untold}. {_size(result)}",
        status=status_of(any(better), bool(worse) and all(worse)),
        rule=f"supported if for some way of repairing the intervals of {SURE} of these changes "
        "lie below 0 and none above; refuted if for every way one lies above 0 and none below.",
        controls=f"{_same(result)}. "
        "The dose of each head is chosen on the other half of the prompts, the "
        "one bias on all. The "
        "next set is the choice of the run without bias, which favours that run; the exact "
        "mixture and the plain model do not. The mixture is known at one step of a prompt only.",
        published="parallel tokens should be boosted, per layer and head, to repair their "
        "attention",
        why=f"repaired, {told}" if names else untold,
    )


def _restoring(result: Result) -> Finding:
    loss = metric(result, "mass_of_alone", "all")
    ours = metric(result, "restoring_dose", "all")
    law = metric(result, "restoring_dose_by_law", "all")
    gap = metric(result, "restoring_dose_less_law", "all")
    thirds = {one: metric(result, "restoring_dose", one) for one in THIRDS}
    laws = {one: metric(result, "restoring_dose_less_law", one) for one in THIRDS}
    without = result["detail"]["restoring"]["all"]["n_without"]
    known = without <= LEFT_OUT * result["n_prompts"]
    return Finding(
        claim="The bias that gives members their mass alone is larger than dilution explains.",
        evidence=f"Mass of a member in its set over alone, all heads: {said(loss)}. Restored at "
        f"{said(ours)} nats ({without} prompts by no dose asked for); by the odds law at "
        f"{said(law)}; measured less law {said(gap)}. By thirds of the layers, each boosted by "
        f"itself: {listed(thirds)}; less law: {listed(laws)}. {_size(result)}",
        status=status_of(known and above(gap, 0), known and below(gap, 0)),
        rule="supported if the interval of measured less law lies above 0, refuted if below; "
        f"neither if more than {LEFT_OUT:.0%} of the prompts have no dose, since those need the "
        "largest.",
        controls=f"{_same(result)}. "
        "Alone is recomputed without siblings and without a bias. The law is "
        "exact at layer 0, where a test holds it against the measured curve.",
    )


def _other_way(result: Result) -> Finding:
    arms = _arms(result, "all")
    rows = {one: metric(result, "mixture_kl_change", f"all {one}") for one in arms}
    down, up = rows["-1"], rows["+1"]
    base = metric(result, "mixture_kl", "all +0")
    return Finding(
        claim="A bias of -1 on members, and not one of +1, brings the readout nearer to the exact "
        "mixture of the paths.",
        evidence=f"Change of KL(exact mixture || readout), {said(base)} nats without a bias, at "
        f"the first step that sees a set: {listed(rows)}. {_size(result)}",
        status=status_of(below(down, 0) and above(up, 0), above(down, 0) or below(up, 0)),
        rule="supported if the interval at -1 lies below 0 and that at +1 above, refuted if one "
        "lies on the other side.",
        controls=f"{_same(result)}. "
        "The mixture is that of plain runs of every path through the first set "
        "and the one after it, weighed by their probabilities.",
    )


def _control(result: Result) -> Finding:
    arms = _arms(result, "all")
    rows = {one: metric(result, "kl_change", f"all {one}") for one in arms}
    other = {one: metric(result, "kl_change", f"control {one}") for one in arms}
    apart = {one: metric(result, "kl_change", f"all less control {one}") for one in arms}
    return Finding(
        claim="A boost of parallel members moves the readouts farther than the same boost of as "
        "many slots in no set.",
        evidence=f"KL from no bias, nats: {listed(rows)}; control: {listed(other)}; difference, "
        f"paired: {listed(apart)}. Coefficient of the squared dose, doses up to 2: "
        f"{said(metric(result, 'kl_slope', 'all'))}; KL at the largest dose less twice that at "
        f"the smallest: {said(metric(result, 'kl_up_less_twice_down', 'all'))}. {_size(result)}",
        status=status_of(above(apart["+1"], 0), below(apart["+1"], 0)),
        rule="supported if the interval of the paired difference at +1 lies above 0, refuted if "
        "below.",
        controls=f"{_same(result)}. "
        "The control has "
        f"{number(result['detail']['control_slots_per_member'])} slots for each member; it does "
        "not match distance, position, content or the share they had before.",
    )


def _readers(result: Result) -> Finding:
    share = metric(result, "kl_share_of_all", "set readers +1")
    apart = metric(result, "kl_change", "set readers less other heads +1")
    both = {one: metric(result, "kl_change", f"{one} +1") for one in ("set readers", "other heads")}
    n = result["detail"]["targets"]["set readers"]["n_heads"]
    return Finding(
        claim="A boost of the heads that give sets most moves the readouts farther than one of as "
        "many other heads.",
        evidence=f"KL at +1 in {n} heads each: {listed(both)}; difference {said(apart)}. Share of "
        f"the KL of all {result['detail']['targets']['all']['n_heads']} heads: {said(share)}. "
        f"{_size(result)}",
        status=status_of(above(apart, 0), below(apart, 0)),
        rule="supported if the interval of the paired difference lies above 0, refuted if below.",
        controls=f"{_same(result)}. "
        "Heads are chosen on the other half of the prompts; as many others are "
        "drawn, in the same layers where these have some left.",
    )


def _thirds(result: Result) -> Finding:
    rows = {one: metric(result, "kl_change", f"{one} +1") for one in THIRDS}
    apart = {one: metric(result, "kl_change", f"{one} less first third +1") for one in THIRDS[1:]}
    return Finding(
        claim="A boost in the first third of the layers moves the readouts least.",
        evidence=f"KL at +1: {listed(rows)}; less the first third: {listed(apart)}. "
        f"{_size(result)}",
        status=status_of(
            all(above(row, 0) for row in apart.values()),
            any(below(row, 0) for row in apart.values()),
        ),
        rule="supported if both paired differences lie above 0, refuted if one lies below.",
        controls=f"{_same(result)}. An early boost changes what later layers do with it as well.",
    )


def _free(result: Result) -> Finding:
    arms = _arms(result, "all")
    paths = {one: metric(result, "free_path_nll_change", f"all {one}") for one in arms}
    grams = {one: metric(result, "free_distinct_2_change", f"all {one}") for one in arms}
    branches = {one: metric(result, "free_branches_change", f"all {one}") for one in arms}
    other = {one: metric(result, "free_path_nll_change", f"control {one}") for one in arms}
    most = paths[arms[-1]]
    return Finding(
        claim="Decoded freely under the largest boost, the text is less likely in the plain model.",
        evidence=f"Change of -log p per token of the top path: {listed(paths)}; control: "
        f"{listed(other)}. Different bigrams: {listed(grams)}. Effective branches: "
        f"{listed(branches)}. {_size(result)}",
        status=status_of(above(most, 0), below(most, 0)),
        rule=f"supported if the interval at {arms[-1]} lies above 0, refuted if below.",
        controls="texts of one length, an end of sequence is never chosen; every path is run again "
        "alone in the model without bias.",
    )


def _one_side(rows: Sequence[Row], *, up: bool, least: int = 1) -> bool:
    """Whether some intervals lie on one side of 0, at least so many, and none on the other."""
    higher = sum(above(row, 0) for row in rows)
    lower = sum(below(row, 0) for row in rows)
    return (higher >= least and not lower) if up else (lower >= least and not higher)


def _same(result: Result) -> str:
    """What is the same with and without a bias."""
    return (
        "identical tokens and positions, one edit; the same code adding nothing moves the mean "
        f"KL of no prompt beyond {number(result['detail']['rounding_nats'])} nats"
    )


def _arms(result: Result, target: str) -> Sequence[str]:
    """The doses but 0, as they stand in the names of arms."""
    assert target in result["detail"]["targets"]
    return [f"{beta:+g}" for beta in result["detail"]["betas"] if beta]


def _size(result: Result) -> str:
    return f"{result['n_prompts']} prompts, {result['n_sets']['isolated']} sets of width >= 2."
