"""The attention rows of one causal sequence, scores averaged over them, and shuffled rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64

from tempo.errors import InputError
from tempo_analysis.stats.averages import ByHead

Square = Bool[np.ndarray, "query slot"]
Stacked = Float64[np.ndarray, "sequence layer head"]


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """All attention weights of one sequence; query i stands at slot i.

    Attributes:
        token: Token ids, one for each slot.
        weights: Softmax output. A row sums to 1, or to less if the model has a learned sink; slots
            that the query cannot see have weight 0.
        visible: Attention mask [layer query slot] of a model with sliding windows; None means plain
            causal attention.
    """

    token: Int64[np.ndarray, " token"]
    weights: Float32[np.ndarray, "layer head query slot"]
    visible: Bool[np.ndarray, "_ _ _"] | None = None

    def __post_init__(self) -> None:
        n_queries, n_slots = self.weights.shape[2:]
        if n_slots != len(self.token) or n_queries > n_slots:
            raise InputError(
                "expected one token for each slot and no more queries than slots, got "
                f"{len(self.token)} tokens, {n_queries} queries and {n_slots} slots; give the ids "
                "that the rows were made from"
            )
        expected = (self.weights.shape[0], n_queries, n_slots)
        if self.visible is not None and self.visible.shape != expected:
            raise InputError(
                f"expected visibility [layer query slot] of shape {expected}, got "
                f"{self.visible.shape}; give one mask for each layer"
            )

    @property
    def n_queries(self) -> int:
        """Number of query rows; at most the number of slots."""
        return self.weights.shape[2]

    def visibility(self) -> Bool[np.ndarray, "layer query slot"]:
        """Attention mask of each layer: True where the query can attend to the slot."""
        if self.visible is not None:
            return self.visible
        causal = np.tri(*self.weights.shape[2:], dtype=bool)
        return np.broadcast_to(causal, (self.weights.shape[0], *causal.shape))

    def relabelled(self, *, key: Sequence[int]) -> "SequenceRows":
        """The same weights with the token ids permuted: the null of scores that compare token ids.

        The first token keeps its id. Most heads put much weight on slot 0, so a permuted
        id there would measure the attention sink only.

        Args:
            key: Seed sequence of the permutation.
        """
        rng = np.random.default_rng(list(key))
        order = np.concatenate([[0], 1 + rng.permutation(len(self.token) - 1)])
        return replace(self, token=self.token[order])


@dataclass(frozen=True, slots=True)
class HeadScore:
    """The score of every head in one sequence, beside its chance value.

    Attributes:
        score: NaN for a head without data.
        chance: The score under uniform attention: each row spread evenly over its visible slots.
        n_queries: Query rows that were averaged, for each layer.
    """

    score: ByHead
    chance: ByHead
    n_queries: Int64[np.ndarray, " layer"]

    def over_chance(self) -> "HeadScore":
        """Score divided by chance, so uniform attention has 1; NaN where chance is 0."""
        chance = np.where(self.chance > 0, self.chance, np.nan)
        even = np.where(np.isnan(chance), np.nan, 1.0)
        return HeadScore(self.score / chance, even, self.n_queries)

    def less(self, other: "HeadScore") -> "HeadScore":
        """Difference of the two scores and of their chance values."""
        n_queries = np.minimum(self.n_queries, other.n_queries)
        return HeadScore(self.score - other.score, self.chance - other.chance, n_queries)


def mean_mass(
    rows: SequenceRows, chosen: Square, *, counted: Bool[np.ndarray, " query"] | None = None
) -> HeadScore:
    """Mean over queries of the total weight on chosen slots; in [0, 1].

    Args:
        rows: The attention rows.
        chosen: Target slots of each query.
        counted: Queries to average over; None means those that can see at least one target.
    """
    visible = rows.visibility()
    targets = visible & chosen
    kept = targets.any(-1) if counted is None else np.broadcast_to(counted, targets.shape[:2])
    n = kept.sum(-1)
    safe = np.where(n > 0, n, np.nan)  # a layer without a counted query gets NaN, not a warning
    # only the chosen cells are read: a stripe has T of the T * T cells, so this is far cheaper than
    # multiplying all weights by a mask. Cells outside the window of a layer have weight 0.
    query, slot = np.nonzero(chosen & np.expand_dims(kept.any(0), -1))
    total = rows.weights[..., query, slot].sum(-1, dtype=np.float64)
    # of a uniform row over n visible slots, k targets get k / n
    share = targets.sum(-1) / np.maximum(visible.sum(-1), 1)
    chance = np.where(kept, share, 0.0).sum(-1) / safe
    return HeadScore(total / safe[:, None], by_layer(chance, total.shape[1]), n)


def at_cells(
    rows: SequenceRows, *, query: Int[np.ndarray, " pair"], slot: Int[np.ndarray, " pair"]
) -> HeadScore:
    """Mean weight over (query, slot) pairs; pairs that the mask hides are left out.

    Every query must occur once only: `mean_mass` averages over queries.
    """
    chosen = np.zeros(rows.weights.shape[2:], bool)
    chosen[query, slot] = True
    return mean_mass(rows, chosen)


def offset_mask(rows: SequenceRows, offset: int) -> Square:
    """The slot `offset` places before each query: cells (q, q - offset)."""
    return np.eye(*rows.weights.shape[2:], k=-offset, dtype=bool)


def by_layer(values: Float64[np.ndarray, " layer"], n_heads: int) -> ByHead:
    """One value for each layer, repeated for all heads of the layer."""
    return np.repeat(values[:, None], n_heads, axis=1)


def scores_of(scores: Sequence[HeadScore]) -> Stacked:
    """Scores of several sequences in one array."""
    return np.stack([each.score for each in scores])


def chances_of(scores: Sequence[HeadScore]) -> Stacked:
    """Chance values of several sequences in one array."""
    return np.stack([each.chance for each in scores])


def require_length(rows: SequenceRows, *, at_least: int, question: str) -> None:
    """Check that a sequence has enough queries.

    Args:
        question: What is measured, for the error message.

    Raises:
        InputError: It has fewer than `at_least`.
    """
    if rows.n_queries < at_least:
        raise InputError(
            f"expected a sequence of at least {at_least} tokens for {question}, got "
            f"{rows.n_queries}; give a longer one"
        )


def half_length(rows: SequenceRows, *, start: int, repeated: bool) -> int:
    """Check the two halves of a sequence; gives the length of one.

    Args:
        rows: The sequence.
        start: Tokens before the first half, such as a beginning-of-sequence token.
        repeated: True if the second half must repeat the first ([R, R]); False for the control
            ([R, R']), whose halves must differ.

    Raises:
        InputError: The sequence is too short, of odd length, has the wrong kind of halves, or has a
            token twice in the first half, so that "the token after it" is more than one slot.
    """
    # the shortest sequence with a score has two tokens in each half
    require_length(rows, at_least=start + 4, question="two halves")
    body = rows.token[start : rows.n_queries]
    half, odd = divmod(len(body), 2)
    if odd:
        raise InputError(
            f"expected two halves of equal length after {start} leading tokens, got {len(body)} "
            "tokens; give an even number"
        )
    if len(np.unique(body[:half])) < half:
        raise InputError(
            "expected a first half without repeated tokens, got some; draw it without replacement"
        )
    if bool((body[:half] == body[half:]).all()) != repeated:
        wanted, found = ("equal", "unequal") if repeated else ("independent", "equal")
        raise InputError(
            f"expected {wanted} halves, got {found} ones; give the "
            f"{'repeated' if repeated else 'control'} sequences"
        )
    return half


@dataclass(frozen=True, slots=True)
class KeyShuffle:
    """A permutation of the visible keys of every row, drawn for every head.

    Rows keep their sharpness (entropy, largest weight) and lose what they point at, so this is the
    null of scores that depend on where a head looks.

    Attributes:
        source: The slot whose weight each slot receives; hidden slots keep their own.
        visible: The attention mask that it was drawn for.
    """

    source: Int64[np.ndarray, "layer head query slot"]
    visible: Bool[np.ndarray, "layer query slot"]

    def __call__(self, rows: SequenceRows) -> SequenceRows:
        """Shuffle the rows of one sequence.

        Raises:
            InputError: The rows have another shape or another mask.
        """
        if self.source.shape != rows.weights.shape or not np.array_equal(
            self.visible, rows.visibility()
        ):
            raise InputError(
                f"expected rows like those this shuffle was drawn for, {self.source.shape}, got "
                f"{rows.weights.shape}; draw one for each length and visibility"
            )
        return replace(rows, weights=np.take_along_axis(rows.weights, self.source, axis=-1))


def draw_shuffle(
    rows: SequenceRows, *, key: Sequence[int], keeps_first: bool = False
) -> KeyShuffle:
    """Draw a permutation of the visible keys of every row, independently for every head.

    Args:
        rows: Any sequence of the shape and mask wanted; its weights are not used.
        key: Seed sequence.
        keeps_first: Whether slot 0 keeps its weight, for scores that leave slot 0 out.
    """
    visible = rows.visibility()
    movable = visible.copy()
    movable[..., 0] &= not keeps_first
    rng = np.random.default_rng(list(key))
    return KeyShuffle(drawn_source(movable, rows.weights.shape[1], rng), visible)


def drawn_source(
    movable: Bool[np.ndarray, "layer query slot"], n_heads: int, rng: np.random.Generator
) -> Int64[np.ndarray, "layer head query slot"]:
    """For each slot the slot whose weight it gets: a random permutation of the movable slots."""
    # a stable sort puts the movable slots of a row first, in ascending order, then the fixed ones
    places = np.argsort(~movable, axis=-1, kind="stable")
    n_layers, n_queries, n_slots = movable.shape
    source = np.empty((n_layers, n_heads, n_queries, n_slots), np.int64)
    for layer, moved in enumerate(source):
        drawn = np.where(movable[layer], rng.random(moved.shape), np.inf)
        # infinite keys sort last and stably, so the k-th entry of `order` is a movable slot exactly
        # where that of `places` is, and every fixed slot meets itself
        order = np.argsort(drawn, axis=-1, kind="stable")
        np.put_along_axis(moved, np.broadcast_to(places[layer], order.shape), order, axis=-1)
    return source
