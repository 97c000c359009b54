"""What e13 says: its findings, with the rule that turns intervals into a status."""

from collections.abc import Mapping

from experiments.e13_decoded_text.texts import BEAM, BRANCHING, GREEDY, NARROW, SUPERPOSED
from experiments.finding import Finding, Result, metric, status_of
from experiments.pairs import Row, above, below, listed, number, said, within

PREDICTED = (0.05, 0.5)
"""Nats per token that superposed texts were predicted to lose."""
NO_MORE = 0.05
"""Collapse rates less than this above greedy count as no more."""


def entries(result: Result) -> list[Finding]:
    """The findings, in order."""
    return [
        _less_likely(result),
        _size(result),
        _overstated(result),
        _beams(result),
        _posterior(result),
        _collapse(result),
    ]


def _less_likely(result: Result) -> Finding:
    regret = _rows(result, "regret_to_greedy", SUPERPOSED)
    beam = _rows(result, "regret_to_beam", SUPERPOSED)
    picked = _rows(result, "picked_regret_to_greedy", SUPERPOSED)
    return Finding(
        claim="The text of a superposed run is less likely, by plain rescoring, than that of "
        "greedy decoding.",
        evidence="Nats per token that the top path (the first member of every set) costs more than "
        f"the greedy text: {listed(regret)}; more than the best beam at about as many slots: "
        f"{listed(beam)}. The greedy text costs {said(metric(result, 'nll', GREEDY))}. A plain run "
        "that picks from every set the member it finds most probable costs, over greedy: "
        f"{listed(picked)}. {_texts(result)}",
        status=status_of(
            all(above(row, 0) for row in regret.values()),
            any(below(row, 0) for row in regret.values()),
        ),
        rule="supported if the interval of the regret to greedy lies above 0 in every arm, refuted "
        "if it lies below 0 in one.",
        controls="every path is run again alone, one token a step; the same prompts and lengths, "
        f"end of sequence never selected. Slots per token: {_slots(result)}. The picked text says "
        "how much of the loss is the choice of the path and how much the sets. A likely text is "
        "not yet a good one.",
    )


def _size(result: Result) -> Finding:
    regret = _rows(result, "regret_to_greedy", SUPERPOSED)
    low, high = PREDICTED
    return Finding(
        claim=f"A superposed text costs {low} to {high} nats per token more than the greedy one.",
        evidence=f"{listed(regret)}; {regret['isolated']['n']} prompts.",
        status=status_of(
            all(within(row, low, high) for row in regret.values()),
            any(below(row, low) or above(row, high) for row in regret.values()),
        ),
        rule="supported if the interval lies in this range in every arm, refuted if it lies "
        "outside in one; the range was predicted before the run.",
        controls="as in the entry before.",
    )


def _overstated(result: Result) -> Finding:
    gap = _rows(result, "calibration_gap", SUPERPOSED)
    claimed = _rows(result, "claimed_nll", SUPERPOSED)
    error = result["detail"]["largest_error_of_exact_arms"]
    return Finding(
        claim="A superposed run overstates how likely its text is.",
        evidence="Log-probability of the top path by plain rescoring less what the run gave its "
        f"tokens, in nats per token: {listed(gap)}. The runs claim {listed(claimed)} nats per "
        f"token. {_texts(result)}",
        status=status_of(
            all(below(row, 0) for row in gap.values()), any(above(row, 0) for row in gap.values())
        ),
        rule="supported if the interval of the gap lies below 0 in every arm, refuted if it lies "
        "above 0 in one.",
        controls="greedy, beam and tree have no gap: the largest difference of a token's "
        f"log-probability over all their paths is {number(error)}. The first token never has one.",
    )


def _beams(result: Result) -> Finding:
    nll = _rows(result, "nll", (GREEDY, *BRANCHING))
    tree, beam = (metric(result, "regret_to_greedy", arm) for arm in (NARROW, BEAM))
    apart = metric(result, "regret_to_beam", NARROW)
    return Finding(
        claim="At equal slots beam search has the likeliest text, and the tree lies between greedy "
        "and beam.",
        evidence=f"Nats per token: {listed(nll)}. Less greedy: beam {said(beam)}, tree "
        f"{said(tree)}; tree less beam {said(apart)}. Slots per token: {_slots(result)}; "
        "wide-tree is the preset, with up to eight paths.",
        status=status_of(
            below(beam, 0) and below(tree, 0) and above(apart, 0),
            above(beam, 0) or above(tree, 0) or below(apart, 0),
        ),
        rule="supported if the intervals of beam and tree less greedy lie below 0 and that of tree "
        "less beam above 0; refuted if one of them lies on the other side.",
        controls="beams and the tree's paths are as many as the isolated run of the prompt is wide "
        "in the mean, rounded; with one they are greedy.",
    )


def _posterior(result: Result) -> Finding:
    row = metric(result, "nll_less_isolated", "posterior")
    regret = _rows(result, "regret_to_greedy", ("isolated", "posterior"))
    return Finding(
        claim="With posterior weights a superposed text lies nearer to greedy than without.",
        evidence=f"Nats per token, posterior less isolated: {said(row)}; over greedy: "
        f"{listed(regret)}. {_texts(result)}",
        status=status_of(below(row, 0), above(row, 0)),
        rule="supported if the interval of the difference lies below 0, refuted if above.",
        controls="both decode freely with the same threshold, so their sets differ after the first "
        "tokens.",
    )


def _collapse(result: Result) -> Finding:
    more = _rows(result, "collapsed_less_greedy", SUPERPOSED)
    rate = _rows(result, "collapsed", (GREEDY, *SUPERPOSED))
    variety = _rows(result, "distinct_2", (GREEDY, BEAM, *SUPERPOSED, NARROW))
    alike = _rows(result, "self_bleu", BRANCHING)
    branches = _rows(result, "effective_branches", (*SUPERPOSED, *BRANCHING))
    return Finding(
        claim="Superposed texts collapse into repetition no more often than greedy ones.",
        evidence=f"Share of prompts whose text ends in a loop or a repetitive tail: "
        f"{listed(rate)}; less greedy, paired: {listed(more)}. Different bigrams: "
        f"{listed(variety)}. Self-BLEU of the paths of a run: {listed(alike)}; effective branches: "
        f"{listed(branches)}. {_texts(result)}",
        status=status_of(
            all(below(row, NO_MORE) for row in more.values()),
            any(above(row, 0) for row in more.values()),
        ),
        rule=f"supported if the interval of the rate less greedy's lies below {NO_MORE} in every "
        "arm, refuted if it lies above 0 in one.",
        controls="texts of one length. A superposed run has one path of its own, so no self-BLEU; "
        "greedy has one branch. Longer texts collapse more.",
    )


def _rows(result: Result, name: str, arms: tuple[str, ...]) -> Mapping[str, Row]:
    return {arm: metric(result, name, arm) for arm in arms}


def _slots(result: Result) -> str:
    return listed(_rows(result, "slots_per_token", (GREEDY, *SUPERPOSED, *BRANCHING)))


def _texts(result: Result) -> str:
    return f"{result['n_prompts']} prompts, texts of {result['detail']['n_tokens']} tokens."
