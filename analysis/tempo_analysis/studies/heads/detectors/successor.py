"""Successor heads: by attention to the preceding element, and by the OV circuit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights, ProcessedEmbedding
from tempo.prompts.word_runs import Family
from tempo_analysis.studies.heads.detectors.circuit_maps import (
    every_head,
    read_map,
    sized,
    unembedded,
    write_map,
)
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows, at_cells

SUCCESSOR_THRESHOLD = 0.05
"""Cut on the signal, ordinal minus words: that of the head suite of Goodfire's SPD (PR 403)."""


@dataclass(frozen=True, slots=True)
class SuccessorRun:
    """Scores of one run of elements under four conditions of one length.

    All have the same slots and so the same chance value: differences have chance 0.

    Attributes:
        ordinal: Elements of a family in order, such as Monday, Tuesday, Wednesday.
        words: As many unrelated words.
        shuffled: The same elements in random order.
        descending: The same elements in reverse order.
    """

    ordinal: HeadScore
    words: HeadScore
    shuffled: HeadScore
    descending: HeadScore

    def signal(self) -> HeadScore:
        """Ordinal minus words: the score of the role, in [-1, 1]."""
        return self.ordinal.less(self.words)

    def null(self) -> HeadScore:
        """Shuffled minus words: the null of the signal.

        Words alone cannot be the null: a head that attends to any element of the same class scores
        above them too, and keeps its score when the elements are shuffled.
        """
        return self.shuffled.less(self.words)


def successor_attention(rows: SequenceRows, elements: Int64[np.ndarray, " element"]) -> HeadScore:
    """Mean over consecutive elements of the weight from one to the one before; in [0, 1].

    One number for each run, so that long runs weigh no more than short ones. Chance is the mean of
    1 / visible slots. Runs of one family share pairs of elements and are not independent: with 12
    elements, an untrained head with sharp attention can score high by preferring a few pairs. Draw
    runs from several families.

    Args:
        rows: The attention rows of one run.
        elements: Slots of the elements, ascending, without the separators between them.

    Raises:
        InputError: Fewer than two elements, or slots that do not ascend within the sequence.
    """
    # ascending slots: first and last bound all others
    in_range = len(elements) >= 2 and elements[0] >= 0 and elements[-1] < rows.n_queries
    if not in_range or (np.diff(elements) <= 0).any():
        raise InputError(
            f"expected at least two ascending slots below {rows.n_queries}, got "
            f"{elements.tolist()}; give the slots of the elements"
        )
    return at_cells(rows, query=elements[1:], slot=elements[:-1])


def successor_run(
    ordinal: HeadScore, *, words: HeadScore, shuffled: HeadScore, descending: HeadScore
) -> SuccessorRun:
    """Put the four conditions of one run together.

    Raises:
        InputError: Their elements do not stand at the same slots.
    """
    run = SuccessorRun(ordinal, words, shuffled, descending)
    for each in (words, shuffled, descending):
        # equal slots give equal chance values, so these stand in for the slots
        same_pairs = np.array_equal(each.n_queries, ordinal.n_queries)
        if not (same_pairs and np.allclose(each.chance, ordinal.chance, equal_nan=True)):
            raise InputError(
                "expected four conditions with elements at the same slots, got other ones; draw "
                "controls of the length of the run"
            )
    return run


@dataclass(frozen=True, slots=True)
class SuccessorOv:
    """Share of successions that the OV circuit of each head gets right.

    Attributes:
        hits: Elements whose successor has the highest logit of the family.
        score: Share of hits; in [0, 1].
        chance: Expected share of a head that picks at random among the other elements of a family.
        null_p99: 99th percentile of the share of such a head, exact.
        p: One-sided p-value: probability that such a head has at least as many hits, exact.
        by_family: Share of hits within each family, in the order of `families`.
        families: Names of the families tested.
        left_out: Parts of the model that the weights alone leave out.
    """

    hits: Bool[np.ndarray, "layer head tested"]
    score: Float64[np.ndarray, "layer head"]
    chance: float
    null_p99: float
    p: Float64[np.ndarray, "layer head"]
    by_family: Float64[np.ndarray, "family layer head"]
    families: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of successions tested."""
        return self.hits.shape[-1]


@dataclass(frozen=True, slots=True)
class Order:
    """A family of tokens in an order, such as the days of the week.

    Attributes:
        name: Of the family.
        tokens: Ids of all elements, which compete for the highest logit.
        before: Indices into `tokens` of the elements that have a successor.
        after: Indices into `tokens` of these successors.
    """

    name: str
    tokens: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def order_of(family: Family) -> Order:
    """The order of the elements of a family that are one token each."""
    before, after = zip(*family.successions, strict=True) if family.successions else ((), ())
    return Order(family.name, family.tokens, before, after)


def successor_ov(
    weights: CircuitWeights, orders: Sequence[Order], sample: ProcessedEmbedding
) -> SuccessorOv:
    """Successor score of every head: share of elements whose successor gets the highest logit.

    The logits are W_U W_O W_V of the embedding after MLP 0, over the elements of the family. The
    null is a head that picks at random among the other elements: its number of hits is a sum of
    independent trials, so chance, percentile and p-values are exact.

    Source: Gould et al. 2023 (arXiv 2312.09230).

    Args:
        weights: Of the model.
        orders: Families; those of fewer than 3 elements, or without a succession, are left out.
        sample: Embeddings after MLP 0 of at least all tokens of these families.

    Raises:
        InputError: No family is left, or the sample lacks a token.
    """
    used = [order for order in orders if len(order.tokens) >= 3 and order.before]
    missing = {token for order in used for token in order.tokens} - set(sample.tokens)
    if not used or missing:
        raise InputError(
            f"expected families of 3 elements, all of them embedded, got {len(used)} families and "
            f"{len(missing)} tokens that are not; embed them or leave out the successor role"
        )
    blocks = [successions(weights, order, sample) for order in used]
    hits = np.concatenate(blocks, axis=-1)
    # one trial for each succession; an element never competes with itself in the null
    picked = [1 / (len(order.tokens) - 1) for order in used for _ in order.before]
    tail = tail_of_hits(picked)
    n = len(picked)
    return SuccessorOv(
        hits=hits,
        score=hits.mean(-1),
        chance=float(np.mean(picked)),
        # the largest number of hits whose upper tail is still above 1 %
        null_p99=int(np.flatnonzero(tail <= 0.01)[0] - 1) / n,
        p=tail[hits.sum(-1)],
        by_family=np.stack([block.mean(-1) for block in blocks]),
        families=tuple(order.name for order in used),
        left_out=weights.left_out(),
    )


def successions(
    weights: CircuitWeights, order: Order, sample: ProcessedEmbedding
) -> Bool[np.ndarray, "layer head tested"]:
    """For each element with a successor, whether the successor has the highest logit."""
    rows = [sample.tokens.index(token) for token in order.tokens]
    output_rows = unembedded(weights, weights.unembedding[list(order.tokens)])
    shape = (len(weights.layers), weights.n_heads, len(order.before))
    hits = np.empty(shape, np.bool_)
    for layer, head in every_head(weights):
        # [element said, element attended to], within one family
        read = sized(weights.layers[layer].input_norm, sample.mlp[rows])
        logits = (
            output_rows
            @ write_map(weights, layer, head)
            @ (read_map(weights, layer, head) @ read.T)
        )
        hits[layer, head] = _is_highest(logits[:, list(order.before)], np.array(order.after))
    return hits


def tail_of_hits(chances: Sequence[float]) -> Float64[np.ndarray, " count"]:
    """Probability of at least 0, 1, ..., n + 1 hits in n independent trials of these chances."""
    # distribution of the number of hits (Poisson binomial): one convolution for each trial
    counts = np.ones(1)
    for chance in chances:
        counts = np.convolve(counts, [1 - chance, chance])
    return np.append(np.minimum(np.cumsum(counts[::-1])[::-1], 1.0), 0.0)


def _is_highest(
    logits: np.ndarray, wanted: Int[np.ndarray, " tested"]
) -> Bool[np.ndarray, " tested"]:
    """Whether the wanted row of each column is its only maximum; ties are no hits."""
    mine = logits[wanted, np.arange(len(wanted))]
    return (logits >= mine).sum(0) == 1
