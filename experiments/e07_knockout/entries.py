"""What e07 says: its findings, with the rule that turns intervals into a status."""

from experiments.e07_knockout.measures import PREDICTORS
from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import above, below, listed, number, outside, said, within

USEFUL = 0.1
"""A rank correlation below this is of no use."""
PREDICTED = (0.3, 0.7)
MARGIN = 0.1
"""Rank correlations this near count as about as good."""


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [_matters(result), _size(result), _others(result), _pruning(result)]


def _matters(result: Result) -> Finding:
    row = metric(result, "rank_correlation", "attention")
    area = metric(result, "area", "attention")
    return Finding(
        claim="The member that gets more attention from the next set is the one that the next "
        "prediction needs more.",
        evidence="Rank correlation, within sets, of the attention that a member gets from the next "
        "set and of what the readout after that set loses without the member (KL, whole "
        f"vocabulary): {said(row)}, {row['n']} prompts. The member with the largest effect has the "
        f"higher attention in {said(area)} of pairs. {_sizes(result)}",
        status=status_of(above(row, 0), below(row, USEFUL)),
        rule="supported if the interval of the rank correlation lies above 0, refuted if it "
        f"reaches 0 and lies below {USEFUL}.",
        controls="chance 0 for the correlation and 0.5 for pairs; tokens, positions and weights "
        "are forced, so that one member's absence is all that changes. Ranks are compared inside a "
        "set only: differences between sets, steps and prompts cannot make the correlation.",
        published="pruning correlates with attention",
        why=f"rank correlation of attention and effect of removal {said(row)} within sets",
    )


def _size(result: Result) -> Finding:
    row = metric(result, "rank_correlation", "attention")
    low, high = PREDICTED
    return Finding(
        claim="Attention says moderately well which member matters: rank correlation between "
        f"{low} and {high}.",
        evidence=f"{said(row)}, {row['n']} prompts; chance 0, a perfect order has 1.",
        status=status_of(within(row, low, high), outside(row, low, high)),
        rule=f"supported if the interval lies between {low} and {high}, refuted if it lies "
        "outside; the range was predicted before the run.",
        controls="attention is the mean over all layers, heads and queries of the next set; single "
        "heads may say more or less.",
    )


def _others(result: Result) -> Finding:
    rows = {name: metric(result, "rank_correlation", name) for name in PREDICTORS}
    area = {name: metric(result, "area", name) for name in PREDICTORS}
    less = "rank_correlation_less_attention"
    value, probability = (metric(result, less, name) for name in ("value-weighted", "probability"))
    apart = metric(result, "right_where_probability_disagrees", "attention")
    worse = below(value, -MARGIN) or outside(probability, -MARGIN, MARGIN)
    return Finding(
        claim="Value-weighted attention says no less than attention which member matters, and the "
        "member's probability about as much.",
        evidence=f"Rank correlations with the effect: {listed(rows)}; shares of pairs in which the "
        f"member with the largest effect has more of it: {listed(area)}. Against attention, paired "
        f"by prompt: value-weighted {said(value)}, probability {said(probability)}. Where "
        "attention and probability order two members of a set apart, attention is right in "
        f"{said(apart)} of pairs ({apart['n']} prompts have such pairs).",
        status=status_of(above(value, -MARGIN) and within(probability, -MARGIN, MARGIN), worse),
        rule=f"supported if the interval of value-weighted less attention lies above -{MARGIN} and "
        f"that of probability less attention within {MARGIN} of 0; refuted if the first lies below "
        f"-{MARGIN} or the second more than {MARGIN} from 0.",
        controls="chance 0 for correlations and their differences, 0.5 for pairs. A set is ordered "
        "by probability, so rank and probability order its members alike. Probability is known "
        "before the next set runs, attention only after it.",
    )


def _pruning(result: Result) -> Finding:
    rows = {
        name: metric(result, "effect_of_least", name)
        for name in ("attention", "value-weighted", "probability")
    }
    row = rows["attention"]
    return Finding(
        claim="Pruning the member with least attention costs less than pruning one at random.",
        evidence="Effect of losing the member with least attention over that of losing a member "
        f"drawn at random: {said(row)}; by what is least: {listed(rows)}.",
        status=status_of(below(row, 1), above(row, 1)),
        rule="supported if the interval of the ratio lies below 1, refuted if above; geometric "
        "mean over prompts of ratios of mean effects.",
        controls="a random choice has 1. The least probable member is the one that pruning without "
        "any attention would take.",
    )


def _sizes(result: Result) -> str:
    row, detail = metric(result, "effect", "a member"), result["detail"]
    return (
        f"{detail['n_members']} members of {detail['n_knocked_sets']} sets; losing one costs "
        f"{said(row)} nats, at most {number(detail['largest_effect_nats'])}."
    )
