"""Placement rules: the logical positions of a set, which RoPE sees."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from tempo.errors import InputError
from tempo.policy.slots import SlotTable

MIN_DELTA_ULPS = 16
"""Smallest offset, in float32 steps (ulps) at the largest position: rounding moves two positions
by at most half a step each, so it changes such an offset by at most a sixteenth."""


class Place(ABC):
    """A placement rule: the positions of a set, and the base of the next set.

    The base of the first set is the length of the prompt.
    """

    @abstractmethod
    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """Position of each member, by rank."""

    @abstractmethod
    def next_base(self, base: int, width: int) -> int:
        """Base of the set after this one."""

    def of_set(
        self, table: SlotTable, base: int, parent: Int[np.ndarray, " member"]
    ) -> Float32[np.ndarray, " member"]:
        """Position of each member of the next set, from its parents' slots."""
        return self.positions(base, len(parent))

    def check(self, largest_position: float | int, dtype: str) -> None:  # noqa: B027 - most places have nothing to refuse
        """Refuse offsets that this dtype cannot represent at this position."""


@dataclass(frozen=True, slots=True)
class Shared(Place):
    """All members at the base; the next set one further."""

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """The base, for all members."""
        # float32 for every rule: RoPE takes float positions, and offsets need them.
        return np.full(width, base, np.float32)

    def next_base(self, base: int, width: int) -> int:
        """One further."""
        return base + 1


@dataclass(frozen=True, slots=True)
class Offset(Place):
    """Rank r at base + r * delta; the next set starts one past the base."""

    delta: float | int

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """Base plus a step of delta for each rank."""
        # Computed in float64 and rounded once.
        return (base + np.arange(width) * self.delta).astype(np.float32)

    def next_base(self, base: int, width: int) -> int:
        """One further."""
        return base + 1

    def check(self, largest_position: float | int, dtype: str) -> None:
        """Refuse a delta that float32 rounds away, and any fraction in half precision."""
        if not self.delta > 0:
            raise InputError(
                f"expected a position offset above 0, got {self.delta:g}; for example offset:0.01"
            )
        finest = MIN_DELTA_ULPS * float(np.spacing(np.float32(largest_position)))
        if not finest <= self.delta < np.inf:
            raise InputError(
                f"expected a position offset of at least {finest:.2g} ({MIN_DELTA_ULPS} float32 "
                "steps at position "
                f"{largest_position:g}), got {self.delta:g}; use a larger --positions offset"
            )
        if dtype != "float32" and self.delta != round(self.delta):
            raise InputError(
                f"expected a whole position offset in {dtype}, which cannot tell fractions "
                f"apart, got {self.delta:g}; "
                "use --dtype float32"
            )


@dataclass(frozen=True, slots=True)
class Unique(Place):
    """Rank r at base + r; the next set after the last member. Positions are never shared."""

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """Consecutive positions."""
        # Ranks in order: with ordered visibility this is the plain causal text of the members.
        return np.arange(base, base + width, dtype=np.float32)

    def next_base(self, base: int, width: int) -> int:
        """One past the last member."""
        return base + width


@dataclass(frozen=True, slots=True)
class Depth(Place):
    """One past the parent: the depth in the tree."""

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """The base, if the position of every parent is one before it."""
        return Shared().positions(base, width)

    def of_set(
        self, table: SlotTable, base: int, parent: Int[np.ndarray, " member"]
    ) -> Float32[np.ndarray, " member"]:
        """One past each parent."""
        return table.position[parent] + np.float32(1)

    def next_base(self, base: int, width: int) -> int:
        """One further."""
        return base + 1


@dataclass(frozen=True, slots=True)
class Swapped(Place):
    """The positions of another rule, the lowest rank first."""

    place: Place

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """The other rule's positions, reversed."""
        # A copy, as torch refuses arrays with negative strides.
        return self.place.positions(base, width)[::-1].copy()

    def next_base(self, base: int, width: int) -> int:
        """As the other rule."""
        return self.place.next_base(base, width)

    def check(self, largest_position: float | int, dtype: str) -> None:
        """As the other rule."""
        self.place.check(largest_position, dtype)


@dataclass(frozen=True, slots=True)
class Given(Place):
    """Given positions: `sets[k - 1]` holds those of the members fed at step k."""

    sets: tuple[tuple[float | int, ...], ...]

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """Not defined without the step; `of_set` has it."""
        raise AssertionError("given positions depend on the step; ask of_set")

    def of_set(
        self, table: SlotTable, base: int, parent: Int[np.ndarray, " member"]
    ) -> Float32[np.ndarray, " member"]:
        """The positions given for this step."""
        # The table does not have the set yet: `n_steps` is the index of the next one.
        given = self.sets[table.n_steps] if table.n_steps < len(self.sets) else ()
        if len(given) != len(parent):
            raise InputError(
                f"expected a position for each of {len(parent)} members of step "
                f"{table.n_steps + 1}, got {len(given)}; give as many positions as tokens"
            )
        return np.asarray(given, np.float32)

    def next_base(self, base: int, width: int) -> int:
        """One further; `of_set` does not use it."""
        return base + 1


def parse_place(text: str) -> Place:
    """Read ``shared``, ``unique``, ``depth`` or ``offset:0.01``, each also as ``swapped-...``.

    Raises:
        InputError: None of these.
    """
    if text.startswith("swapped-"):
        return Swapped(parse_place(text.removeprefix("swapped-")))
    name, _, delta = text.partition(":")
    if name == "offset":
        try:
            return Offset(float(delta))
        except ValueError:
            raise InputError(
                f"expected offset:NUMBER, got {text!r}; for example offset:0.01"
            ) from None
    places = {"shared": Shared(), "unique": Unique(), "depth": Depth()}
    if text not in places:
        raise InputError(f"expected positions shared, unique, depth or offset:NUMBER, got {text!r}")
    return places[text]
