"""What e08 says: its findings, with the rule that turns intervals into a status."""

from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import above, below, listed, number, said

SAME = 1e-6
"""Nats; what rounding leaves."""
REAL = 1e-3
"""Nats; the ghost was predicted to exceed this."""
PREDICTED_AREA = 0.6


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    asked = (_later, _evict, _ghost, _smaller, _probability, _free)
    return [one(result) for one in asked]


def _later(result: Result) -> Finding:
    name = "pruned_over_surviving"
    held_out = metric(result, name, "attention, next queries")
    same = metric(result, name, "attention, same queries")
    return Finding(
        claim="A member that attention would prune now gets less attention later, too.",
        evidence="Attention of the members that got less than the best of their set, over that of "
        f"the best: {said(same)} from the queries that decide who is best, {said(held_out)} from "
        f"the set after that, in the run without deaths; {held_out['n']} prompts, {_sets(result)}.",
        status=status_of(below(held_out, 1), above(held_out, 1)),
        rule="supported if the interval of the ratio from the later queries lies below 1, refuted "
        "if above.",
        controls="the ratio from the deciding queries lies below 1 by construction and is no "
        "evidence; later queries took no part in the decision, and a member chosen at random would "
        "have 1 there. Whether attention says what the prediction needs is another entry.",
        published="pruning correlates with attention",
        why=f"attention decides by construction; from later queries, members to be pruned get "
        f"{said(held_out)} of what the best gets",
    )


def _evict(result: Result) -> Finding:
    row, largest = metric(result, "kl", "evict"), result["detail"]["largest_evict_nats"]
    known = largest is not None
    return Finding(
        claim="Freeing the keys and values of a dead member changes nothing beside masking them.",
        evidence=f"KL(mask || evict) two steps after the deaths: {said(row)} nats, at most "
        f"{number(largest)}; {_sets(result)}.",
        status=status_of(known and largest < SAME, known and largest >= SAME),
        rule=f"supported if the largest is below {SAME:g} nats, refuted otherwise.",
        controls="tokens forced; the whole vocabulary.",
    )


def _ghost(result: Result) -> Finding:
    row = metric(result, "kl", "ghost")
    return Finding(
        claim="The dead leave a ghost: masking a member is not the same as its never having been "
        "there.",
        evidence=f"KL(recompute || mask) two steps after the deaths: {said(row)} nats, "
        f"{row['n']} prompts, {_sets(result)}.",
        status=status_of(above(row, REAL), below(row, REAL)),
        rule=f"supported if the interval lies above {REAL:g} nats, refuted if below.",
        controls="both runs have the same survivors, tokens and positions; only what the dead left "
        "in the states of the set that saw them differs. Masking against evicting, which keep the "
        f"same states, gives {said(metric(result, 'kl', 'evict'))}.",
    )


def _smaller(result: Result) -> Finding:
    over = {keep: metric(result, "ghost_over_effect", keep) for keep in ("recompute", "mask")}
    effect = {keep: metric(result, "kl", keep) for keep in ("recompute", "mask")}
    less = metric(result, "effect_over_recompute", "mask")
    row = over["recompute"]
    return Finding(
        claim="The ghost is smaller than the effect of pruning itself.",
        evidence=f"KL(recompute || mask) over KL(unpruned || recompute): {said(row)}; over "
        f"KL(unpruned || mask): {said(over['mask'])} (geometric means over prompts). The effects "
        f"are {listed(effect)} nats; with mask the readout moves {said(less)} times as far as with "
        "recompute.",
        status=status_of(below(row, 1), above(row, 1)),
        rule="supported if the interval of the ghost over the effect of recompute lies below 1, "
        "refuted if above.",
        controls="paired by prompt, forced tokens, mean over the sets of a prompt first.",
    )


def _probability(result: Result) -> Finding:
    row = metric(result, "area", "probability")
    ratio = metric(result, "pruned_over_surviving", "probability")
    return Finding(
        claim="The members that attention prunes were less probable than the one that survives.",
        evidence="Share of pairs of a dead and the surviving member in which the dead one had "
        f"less probability: {said(row)}; probability of the dead over that of the survivor "
        f"{said(ratio)}; {row['n']} prompts.",
        status=status_of(above(row, PREDICTED_AREA), below(row, PREDICTED_AREA)),
        rule=f"supported if the interval of the share lies above {PREDICTED_AREA} (predicted "
        "before the run), refuted if below.",
        controls="chance 0.5 and 1; inside a set only.",
    )


def _free(result: Result) -> Finding:
    row = metric(result, "free_text_changed", "pruned")
    sets = metric(result, "free_sets_changed", "pruned")
    share, age = (
        metric(result, f"free_{name}", "pruned") for name in ("death_share", "age_at_death")
    )
    detail = result["detail"]
    return Finding(
        claim="Pruning by attention while decoding changes the text of most prompts.",
        evidence=f"With members dying below {detail['share']:g} of the attention of their set, "
        f"{detail['free_deaths']} of {detail['free_members_at_risk']} members die: {said(share)} "
        f"of those of a prompt, at an age of {said(age)} steps. The top path changes in "
        f"{said(row)} of prompts, a set in {said(sets)}.",
        status=status_of(above(row, 0.5), below(row, 0.5)),
        rule="supported if the interval of the share of prompts with another text lies above 0.5, "
        "refuted if below. Nothing was predicted.",
        controls="the same prompts decoded by the same rules without pruning; mask. Members of the "
        "last set are not at risk and not counted. The first member of a set stays in the text "
        "even where it dies later.",
    )


def _sets(result: Result) -> str:
    detail = result["detail"]
    return f"{detail['n_dead']} deaths in {detail['n_pruned_sets']} sets"
