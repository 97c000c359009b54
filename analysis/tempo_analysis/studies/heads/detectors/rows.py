"""The attention rows of one plain causal sequence, and what every detector needs of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64

from tempo.errors import InputError

Square = Bool[np.ndarray, "query slot"]
ByHead = Float64[np.ndarray, "layer head"]
Stacked = Float64[np.ndarray, "sequence layer head"]


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Every row of one sequence under every head; query i is slot i.

    Attributes:
        token: Token ids, one for each slot.
        weights: The rows; each sums to 1, or to less with a learned sink; 0 where unseen.
        visible: What each query may see, [layer query slot], where layers have windows; None is
            plain causal.
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
        """Length of the query axis."""
        return self.weights.shape[2]

    def sight(self) -> Bool[np.ndarray, "layer query slot"]:
        """What each query may see in each layer; causal where no visibility was given."""
        if self.visible is not None:
            return self.visible
        causal = np.tri(*self.weights.shape[2:], dtype=bool)
        return np.broadcast_to(causal, (self.weights.shape[0], *causal.shape))

    def relabelled(self, *, key: Sequence[int]) -> "SequenceRows":
        """The same rows under the same token ids in another order, drawn by `key`.

        The first token stays: many heads park their attention there, and a label moved onto it, or
        off it, would measure that and nothing else.
        """
        rng = np.random.default_rng(list(key))
        order = np.concatenate([[0], 1 + rng.permutation(len(self.token) - 1)])
        return replace(self, token=self.token[order])


@dataclass(frozen=True, slots=True)
class HeadScore:
    """One number for each head from one sequence.

    Attributes:
        score: The number; NaN without data.
        chance: Its value if every row were spread evenly over its visible slots.
        n_queries: Rows behind it, in each layer.
    """

    score: ByHead
    chance: ByHead
    n_queries: Int64[np.ndarray, " layer"]

    def over_chance(self) -> "HeadScore":
        """Score as a multiple of chance, so even rows have 1; NaN where chance is 0."""
        chance = np.where(self.chance > 0, self.chance, np.nan)
        even = np.where(np.isnan(chance), np.nan, 1.0)
        return HeadScore(self.score / chance, even, self.n_queries)

    def less(self, other: "HeadScore") -> "HeadScore":
        """Difference of two scores, and of their chance values."""
        n_queries = np.minimum(self.n_queries, other.n_queries)
        return HeadScore(self.score - other.score, self.chance - other.chance, n_queries)


def mean_mass(
    rows: SequenceRows, chosen: Square, *, counted: Bool[np.ndarray, " query"] | None = None
) -> HeadScore:
    """Mean over queries of the mass on the chosen slots.

    Args:
        rows: The rows.
        chosen: The slots that count, for each query.
        counted: The queries averaged over; None means those that may see a chosen slot.
    """
    sight = rows.sight()
    targets = sight & chosen
    kept = targets.any(-1) if counted is None else np.broadcast_to(counted, targets.shape[:2])
    n = kept.sum(-1)
    safe = np.where(n > 0, n, np.nan)
    query, slot = np.nonzero(chosen & np.expand_dims(kept.any(0), -1))
    total = rows.weights[..., query, slot].sum(-1, dtype=np.float64)
    share = targets.sum(-1) / np.maximum(sight.sum(-1), 1)
    chance = np.where(kept, share, 0.0).sum(-1) / safe
    return HeadScore(total / safe[:, None], by_layer(chance, total.shape[1]), n)


def at_cells(
    rows: SequenceRows, *, query: Int[np.ndarray, " pair"], slot: Int[np.ndarray, " pair"]
) -> HeadScore:
    """Mean weight over pairs of a query and a slot; a pair out of sight is left out."""
    chosen = np.zeros(rows.weights.shape[2:], bool)
    chosen[query, slot] = True
    return mean_mass(rows, chosen)


def offset_mask(rows: SequenceRows, offset: int) -> Square:
    """The slot this many places behind each query."""
    return np.eye(*rows.weights.shape[2:], k=-offset, dtype=bool)


def by_layer(values: Float64[np.ndarray, " layer"], n_heads: int) -> ByHead:
    """One value for each layer, repeated for its heads."""
    return np.repeat(values[:, None], n_heads, axis=1)


def scores_of(scores: Sequence[HeadScore]) -> Stacked:
    """Scores of several sequences, stacked first so that they are averaged last."""
    return np.stack([each.score for each in scores])


def chances_of(scores: Sequence[HeadScore]) -> Stacked:
    """Chance values of several sequences."""
    return np.stack([each.chance for each in scores])


def require_length(rows: SequenceRows, *, at_least: int, question: str) -> None:
    """Refuse a sequence that is too short for a question.

    Raises:
        InputError: It has fewer queries.
    """
    if rows.n_queries < at_least:
        raise InputError(
            f"expected a sequence of at least {at_least} tokens for {question}, got "
            f"{rows.n_queries}; give a longer one"
        )


def half_length(rows: SequenceRows, *, start: int, repeated: bool) -> int:
    """Length of a half, once the halves are what they should be.

    Args:
        rows: The sequence.
        start: Tokens before the first half, such as a beginning-of-sequence token.
        repeated: Whether the second half must repeat the first, or must not (the control).

    Raises:
        InputError: Too short, of odd length, or with halves of the other kind; or a token stands
            twice in the first half, so that "the token after it" is not one slot.
    """
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
    """Where the weight of every slot comes from, for every row of every head.

    Attributes:
        source: The slot whose weight each slot gets; unseen slots keep their own.
        sight: The visibility it was drawn for.
    """

    source: Int64[np.ndarray, "layer head query slot"]
    sight: Bool[np.ndarray, "layer query slot"]

    def __call__(self, rows: SequenceRows) -> SequenceRows:
        """Shuffle the rows of one sequence.

        Raises:
            InputError: The rows have another shape or another visibility.
        """
        if self.source.shape != rows.weights.shape or not np.array_equal(self.sight, rows.sight()):
            raise InputError(
                f"expected rows like those this shuffle was drawn for, {self.source.shape}, got "
                f"{rows.weights.shape}; draw one for each length and visibility"
            )
        return replace(rows, weights=np.take_along_axis(rows.weights, self.source, axis=-1))


def draw_shuffle(
    rows: SequenceRows, *, key: Sequence[int], keeps_first: bool = False
) -> KeyShuffle:
    """Draw an order of the visible keys of every row, independently for every head.

    Args:
        rows: Any sequence of the battery: its shape and visibility are used, not its weights.
        key: What the drawing is keyed by.
        keeps_first: Whether slot 0 keeps its weight, for scores that leave slot 0 out.
    """
    sight = rows.sight()
    movable = sight.copy()
    movable[..., 0] &= not keeps_first
    rng = np.random.default_rng(list(key))
    return KeyShuffle(drawn_source(movable, rows.weights.shape[1], rng), sight)


def drawn_source(
    movable: Bool[np.ndarray, "layer query slot"], n_heads: int, rng: np.random.Generator
) -> Int64[np.ndarray, "layer head query slot"]:
    """A random order of the movable slots of every row; each other slot keeps its own weight."""
    places = np.argsort(~movable, axis=-1, kind="stable")
    n_layers, n_queries, n_slots = movable.shape
    source = np.empty((n_layers, n_heads, n_queries, n_slots), np.int64)
    for layer, moved in enumerate(source):
        drawn = np.where(movable[layer], rng.random(moved.shape), np.inf)
        order = np.argsort(drawn, axis=-1, kind="stable")
        np.put_along_axis(moved, np.broadcast_to(places[layer], order.shape), order, axis=-1)
    return source
