"""Sentences generated from the numbers of one member."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from tempo_analysis.report.document import number
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.studies.follow.logit_lens import Lens
from tempo_analysis.studies.follow.trajectory import (
    ByLayer,
    Control,
    Course,
    KnockedOut,
    correlation,
    quoted,
)

SAME_STATE = 1e-3
"""Relative difference of two states below which they are reported as the same:
well above the difference that rounding alone makes."""
COMPARABLE = 1.5
"""Largest factor, in either direction, between two attentions reported as about the same."""
FEWEST_LAYERS = 3
"""Fewer have no rank correlation."""


def attention_sentences(
    member: Course, alone: Course | None, *, chance: ByLayer, odds_law: ByHead, n_queries: int
) -> list[str]:
    """Attention of the next step to it, with chance, the member alone and the odds law."""
    by_layer = member.attention_by_layer
    queries = f"the {n_queries} queries of the next step give it"
    queries = queries if n_queries > 1 else "the one query of the next step gives it"
    # NaN in layers whose window no longer reaches the slot.
    best = int(np.nanargmax(by_layer))
    said = [
        f"On average over layers and heads {queries} a weight of {number(_mean(by_layer))}; even "
        f"spreading would give it {number(_mean(chance))}. Most comes in layer {best}: "
        f"{number(by_layer[best])}."
    ]
    if alone is not None:
        said.append(
            f"Without its siblings it gets {number(_mean(alone.attention_by_layer))}; from that, "
            f"independent odds predict {number(_mean(odds_law.mean(-1)))} beside them."
        )
    return said


def state_sentences(member: Course, own_change: Float64[np.ndarray, " depth"]) -> list[str]:
    """How its state grows, and whether its siblings change it."""
    norm = member.norm
    grows = (
        f"The norm of its state goes from {number(norm[0])} at the embedding to "
        f"{number(norm[-1])} after the last layer; it is largest at depth {int(norm.argmax())}: "
        f"{number(norm.max())}."
    )
    largest = float(own_change.max())
    # max, not nanmax: without a twin alone every depth is NaN, and so is the maximum.
    if np.isnan(largest):
        return [grows]
    what = (
        "Its siblings do not change its states"
        if largest < SAME_STATE
        else f"Its siblings change its states, most at depth {int(own_change.argmax())}"
    )
    return [
        grows,
        f"{what}: they are at most {number(largest)} of their norm away from those it has alone.",
    ]


def lens_sentences(lens: Lens, next_text: str) -> list[str]:
    """Depth from which its lens is final, and depth at which the next token is first on top."""
    last = len(lens.text) - 1
    # Only the first depth: the token may lose the lead again; the final rank is given beside it.
    leads = np.flatnonzero(lens.next_rank == 0)
    first = f"first leads at depth {leads[0]}" if len(leads) else "never leads"
    return [
        f"The best token of its lens is {quoted(lens.text[-1][0])} from depth {lens.settles_at} of "
        f"{last} on. The run went on with {quoted(next_text)}, which {first} and ends at rank "
        f"{int(lens.next_rank[-1]) + 1}.",
        f"KL to its lens, from what it predicts itself: {number(lens.own_kl_nats[0])} nats at the "
        f"embedding, {number(lens.own_kl_nats[last // 2])} at depth {last // 2}, 0 in the end by "
        f"definition; from the readout of the whole set: {number(lens.readout_kl_nats[0])}, "
        f"{number(lens.readout_kl_nats[last // 2])} and {number(lens.readout_kl_nats[-1])}.",
    ]


def knock_out_sentences(
    member: Course, siblings: Sequence[Course], alone: Course | None, control: Control | None
) -> list[str]:
    """Effect of hiding it, compared with siblings, the member alone and a prompt slot."""
    knocked = member.knocked
    if knocked is None:
        return ["No query of the next step may see it, so there is nothing to take out."]
    # The sum is reported with the joint effect: later layers can compensate for one hidden layer.
    best, parts = knocked.strongest, knocked.one_layer_nats
    said = [
        f"Hidden from the next step in one layer, it changes the readout most in layer {best}: "
        f"KL {number(parts[best])} nats. Hidden in all layers at once: "
        f"{number(knocked.every_layer_nats)} nats, where the effects of single layers add up to "
        f"{number(float(np.nansum(parts)))}."
    ]
    beside = [f"{quoted(each.text)} {_everywhere(each.knocked)}" for each in siblings]
    if beside:
        said.append(f"Its siblings, hidden in all layers: {', '.join(beside)} nats.")
    if alone is not None:
        said.append(f"Alone and hidden in all layers: {_everywhere(alone.knocked)} nats.")
    if control is not None:
        said.append(_control_sentence(member, control))
    return said


def _control_sentence(member: Course, control: Control) -> str:
    ratio = _mean(control.attention_by_layer) / _mean(member.attention_by_layer)
    # The nearest slot of a short prompt may be far off, so the sentence depends on the ratio.
    is_near = 1 / COMPARABLE <= ratio <= COMPARABLE
    near = "gets about as much attention" if is_near else "comes nearest, but is not comparable"
    return (
        f"Of the prompt, slot 0 left out, slot {control.slot}, {quoted(control.text)}, {near} "
        f"({number(ratio)} times the member's); hidden in all layers it changes the readout by "
        f"{_everywhere(control.knocked)} nats."
    )


def correlation_sentence(member: Course, control: Control | None) -> str:
    """Correlation of attention and effect over layers, with its limits."""
    n = 0 if member.knocked is None else int(np.isfinite(member.knocked.one_layer_nats).sum())
    limit = (
        "Layers of one model are not replicates and one member is one case: there is no interval "
        "and nothing is said of others."
    )
    found = correlation(member)
    if np.isnan(found):
        why = "they do not vary" if n >= FEWEST_LAYERS else f"{n} layers are too few"
        return f"Whether attention goes with effect cannot be asked: {why}. {limit}"
    beside = "" if control is None else f"; of the prompt slot {number(correlation(control))}"
    return (
        f"Over the {n} layers that see it, Spearman's correlation of the attention it gets and the "
        f"effect of hiding it is {number(found)} (unrelated: 0){beside}. {limit}"
    )


def _everywhere(knocked: KnockedOut | None) -> str:
    return "unseen" if knocked is None else number(knocked.every_layer_nats)


def _mean(by_layer: ByLayer) -> float:
    """Mean over the layers in which the slot is seen."""
    return float(np.nanmean(by_layer))
