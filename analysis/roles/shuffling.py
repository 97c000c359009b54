"""The null of a positional role: the same rows, with the visible keys of each row in random order.

A head that looks one token back does so on random tokens too, so random text is no null for it.
Shuffled keys are: the row keeps its weights, hence its sharpness, and loses their places. The
expected weight on any slot is then the mean of the row. One drawing serves every sequence of a
battery, because a head whose rows are the same in all sequences must meet a null that is, too: with
a new drawing for each sequence the mean of the null would be smoother than that of the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64

from analysis.roles.rows import SequenceRows
from tempo.errors import InputError


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
