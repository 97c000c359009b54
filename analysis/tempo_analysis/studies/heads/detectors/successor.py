"""Successor heads: attention to the word before in an order, and writing the word that follows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights, ProcessedEmbedding
from tempo.prompts.word_runs import Family
from tempo_analysis.studies.heads.detectors.circuit_maps import (
    heads_of,
    read_map,
    sized,
    unembedded,
    write_map,
)
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows, at_cells

SUCCESSOR_THRESHOLD = 0.05
"""Cut on the signal, ordinal less words."""


@dataclass(frozen=True, slots=True)
class SuccessorRun:
    """One run under four conditions of one length; differences of scores have chance 0.

    Attributes:
        ordinal: Elements in order.
        words: As many unrelated words.
        shuffled: The same elements in another order.
        descending: The same elements backwards.
    """

    ordinal: HeadScore
    words: HeadScore
    shuffled: HeadScore
    descending: HeadScore

    def signal(self) -> HeadScore:
        """Ordinal less words: what the role's threshold is for."""
        return self.ordinal.less(self.words)

    def null(self) -> HeadScore:
        """Shuffled less words: the null of the signal.

        Words alone cannot be the null. A head that attends to any element of the same class beats
        them as well, and keeps its score when the elements are shuffled.
        """
        return self.shuffled.less(self.words)

    def direction(self) -> HeadScore:
        """Ordinal less descending: positive where the head cares which way the run goes."""
        return self.ordinal.less(self.descending)


def successor_attention(rows: SequenceRows, elements: Int64[np.ndarray, " element"]) -> HeadScore:
    """Mean over consecutive elements of the weight from one to the one before.

    One number for each run, so long runs do not weigh more than short ones when runs are averaged.
    Runs share pairs of elements, so they are less than independent: draw them from several
    families. Among 12 elements an untrained head with sharp attention can pass by its taste in a
    few pairs.

    Args:
        rows: The rows of one run.
        elements: Slots of the elements, ascending; the separators between them are skipped.

    Raises:
        InputError: Fewer than two elements, or slots that do not ascend within the sequence.
    """
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
        InputError: They differ in length.
    """
    run = SuccessorRun(ordinal, words, shuffled, descending)
    for each in (words, shuffled, descending):
        same_pairs = np.array_equal(each.n_queries, ordinal.n_queries)
        if not (same_pairs and np.allclose(each.chance, ordinal.chance, equal_nan=True)):
            raise InputError(
                "expected four conditions with elements at the same slots, got other ones; draw "
                "controls of the length of the run"
            )
    return run


@dataclass(frozen=True, slots=True)
class SuccessorOv:
    """Share of successions that each head gets right.

    Attributes:
        hits: Which of the tested elements are followed by their successor.
        score: Their share.
        chance: Of a head that picks evenly among the other elements of the family.
        null_p99: 99th percentile of the share of such a head, exactly.
        p: One-sided chance of such a head to get as many, exactly.
        by_family: Share within each family, in the order of `families`.
        families: Names of the families tested.
        left_out: What the weights alone do not show of this model.
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
        """Successions tested."""
        return self.hits.shape[-1]


@dataclass(frozen=True, slots=True)
class Order:
    """A family of tokens and which of them follow one another.

    Attributes:
        tokens: All that compete.
        before: Places in `tokens` of the elements that have a successor.
        after: Places of their successors.
    """

    name: str
    tokens: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def order_of(family: Family) -> Order:
    """What a tokenizer keeps of a family."""
    before, after = zip(*family.successions, strict=True) if family.successions else ((), ())
    return Order(family.name, family.tokens, before, after)


def successor_ov(
    weights: CircuitWeights, orders: Sequence[Order], sample: ProcessedEmbedding
) -> SuccessorOv:
    """Judge every head; `sample` must hold every token of the families.

    Raises:
        InputError: No family with a succession among three elements, or a token is not held.
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
    picked = [1 / (len(order.tokens) - 1) for order in used for _ in order.before]
    tail = tail_of_hits(picked)
    n = len(picked)
    return SuccessorOv(
        hits=hits,
        score=hits.mean(-1),
        chance=float(np.mean(picked)),
        null_p99=int(np.flatnonzero(tail <= 0.01)[0] - 1) / n,
        p=tail[hits.sum(-1)],
        by_family=np.stack([block.mean(-1) for block in blocks]),
        families=tuple(order.name for order in used),
        left_out=weights.left_out(),
    )


def successions(
    weights: CircuitWeights, order: Order, sample: ProcessedEmbedding
) -> Bool[np.ndarray, "layer head tested"]:
    """For each element with a successor, whether that has the highest logit of the family."""
    rows = [sample.tokens.index(token) for token in order.tokens]
    said = unembedded(weights, weights.unembedding[list(order.tokens)])
    shape = (len(weights.layers), weights.n_heads, len(order.before))
    hits = np.empty(shape, np.bool_)
    for layer, head in heads_of(weights):
        read = sized(weights.layers[layer].input_norm, sample.mlp[rows])
        logits = said @ write_map(weights, layer, head) @ (read_map(weights, layer, head) @ read.T)
        hits[layer, head] = _is_highest(logits[:, list(order.before)], np.array(order.after))
    return hits


def tail_of_hits(chances: Sequence[float]) -> Float64[np.ndarray, " count"]:
    """Probability of at least 0, 1, ... hits in independent trials of these chances."""
    counts = np.ones(1)
    for chance in chances:
        counts = np.convolve(counts, [1 - chance, chance])
    return np.append(np.minimum(np.cumsum(counts[::-1])[::-1], 1.0), 0.0)


def _is_highest(
    logits: np.ndarray, wanted: Int[np.ndarray, " tested"]
) -> Bool[np.ndarray, " tested"]:
    """Whether the wanted row of each column is higher than every other; ties are no hits."""
    mine = logits[wanted, np.arange(len(wanted))]
    return (logits >= mine).sum(0) == 1
