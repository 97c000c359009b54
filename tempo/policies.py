"""A decoding policy is five small rules; a preset is one line."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tempo.errors import InputError
from tempo.positions import Place, Shared, Unique
from tempo.pruning import Never, Prune
from tempo.readout import Mixture, Read
from tempo.selection import Greedy, Select, Threshold
from tempo.visibility import ISOLATED, ORDERED, VISIBLE, Bias, Relation


@dataclass(frozen=True, slots=True)
class Policy:
    """How a step chooses, places, shows, reads and prunes a set.

    Attributes:
        select: Which tokens enter.
        place: At which position.
        see: Who sees whom.
        bias: Finite scores added to what is seen.
        read: The next distribution.
        prune: Which members die.
    """

    select: Select
    place: Place = field(default_factory=Shared)
    see: Relation = ISOLATED
    bias: tuple[Bias, ...] = ()
    read: Read = field(default_factory=Mixture)
    prune: Prune = field(default_factory=Never)


def isolated(threshold: float | int = 0.1, *, max_width: int = 8) -> Policy:
    """Members share a position and see the past and themselves."""
    return Policy(Threshold(threshold, max_width))


def visible(threshold: float | int = 0.1, *, max_width: int = 8) -> Policy:
    """Members share a position and see the past and each other."""
    return Policy(Threshold(threshold, max_width), see=VISIBLE)


def ordered(threshold: float | int = 0.1, *, max_width: int = 8) -> Policy:
    """Members share a position and see the past and higher-ranked members."""
    return Policy(Threshold(threshold, max_width), see=ORDERED)


def unique(threshold: float | int = 0.1, *, max_width: int = 8) -> Policy:
    """Isolated members at consecutive positions: nothing shared."""
    return Policy(Threshold(threshold, max_width), place=Unique())


def greedy() -> Policy:
    """One token a step, the plain way."""
    return Policy(Greedy())


PRESETS: dict[str, Callable[..., Policy]] = {
    "isolated": isolated,
    "visible": visible,
    "ordered": ordered,
    "unique": unique,
    "greedy": greedy,
}


def preset(name: str, *, threshold: float | int = 0.1, max_width: int = 8) -> Policy:
    """A preset by name.

    Raises:
        InputError: No such policy.
    """
    if name not in PRESETS:
        raise InputError(f"expected a policy of {', '.join(PRESETS)}, got {name!r}")
    return greedy() if name == "greedy" else PRESETS[name](threshold, max_width=max_width)
