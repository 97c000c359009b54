"""The decoding policy, a combination of rules, and the presets by name."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tempo.errors import InputError
from tempo.policy.biases import Bias, LogPosterior
from tempo.policy.positions import Depth, Place, Shared, Unique
from tempo.policy.pruning import KEEPS, Keep, Kill, Never, Prune
from tempo.policy.readout import Mixture, PerNode, Read
from tempo.policy.selection import Greedy, Select, Tau, Threshold
from tempo.policy.visibility import ISOLATED, ORDERED, TREE, VISIBLE, Relation


@dataclass(frozen=True, slots=True)
class Policy:
    """How a step selects, places, connects, reads and prunes a set, and what pruning does.

    Attributes:
        select: Which tokens enter the set.
        place: At which positions.
        see: Which slots each query sees.
        bias: Finite scores added to visible slots.
        read: How the rows of the set become the next distribution.
        prune: Which members are pruned.
        keep: What pruning does; see `tempo.policy.pruning.Keep`.
    """

    select: Select
    place: Place = field(default_factory=Shared)
    see: Relation = ISOLATED
    bias: tuple[Bias, ...] = ()
    read: Read = field(default_factory=Mixture)
    prune: Prune = field(default_factory=Never)
    keep: Keep = "mask"

    def __post_init__(self) -> None:
        if self.keep not in KEEPS:
            raise InputError(f"expected keep of {', '.join(KEEPS)}, got {self.keep!r}")
        if self.branches and not isinstance(self.prune, Never | Kill):
            raise InputError(
                "expected a rule that prunes sets with a policy whose members share their "
                f"children, got {type(self.prune).__name__} in a tree; leave out prune"
            )

    @property
    def branches(self) -> bool:
        """Whether members have children of their own."""
        return self.read.children != "merged"

    @property
    def needs_rows(self) -> bool:
        """Whether the next step needs the distribution of each member, not only the readout."""
        return self.branches or any(bias.needs_evidence for bias in self.bias)


def isolated(threshold: Tau = 0.1, *, max_width: int = 8) -> Policy:
    """Members share a position and see the past and themselves."""
    return Policy(Threshold(threshold, max_width))


def visible(threshold: Tau = 0.1, *, max_width: int = 8) -> Policy:
    """Members share a position and see the past and each other."""
    return Policy(Threshold(threshold, max_width), see=VISIBLE)


def ordered(threshold: Tau = 0.1, *, max_width: int = 8) -> Policy:
    """Members share a position and see the past and higher-ranked members."""
    return Policy(Threshold(threshold, max_width), see=ORDERED)


def unique(threshold: Tau = 0.1, *, max_width: int = 8) -> Policy:
    """Isolated members at consecutive positions: nothing shared."""
    return Policy(Threshold(threshold, max_width), place=Unique())


def tree(threshold: Tau = 0.1, *, max_width: int = 8) -> Policy:
    """A tree: every node sees its ancestors and has children by conditional probability."""
    return Policy(Threshold(threshold, max_width), Depth(), TREE, read=PerNode(max_width))


def posterior(threshold: Tau = 0.1, *, max_width: int = 8) -> Policy:
    """Isolated, and later queries weigh each set by what was fed since: Bayes' rule as a bias."""
    return Policy(Threshold(threshold, max_width), bias=(LogPosterior(),))


def greedy() -> Policy:
    """One token at each step, as ordinary greedy decoding."""
    return Policy(Greedy())


PRESETS: dict[str, Callable[..., Policy]] = {
    "isolated": isolated,
    "visible": visible,
    "ordered": ordered,
    "unique": unique,
    "tree": tree,
    "posterior": posterior,
    "greedy": greedy,
}


def preset(
    name: str, *, threshold: Tau = 0.1, max_width: int = 8, select: Select | None = None
) -> Policy:
    """A preset by name; greedy ignores all other arguments.

    Args:
        select: Which tokens enter, instead of a threshold; of a tree, at each node.

    Raises:
        InputError: No such policy.
    """
    if name not in PRESETS:
        raise InputError(f"expected a policy of {', '.join(PRESETS)}, got {name!r}")
    # Options apply to all arms of a comparison, but the null stays greedy.
    if name == "greedy":
        return greedy()
    policy = PRESETS[name](threshold, max_width=max_width)
    return policy if select is None else replace(policy, select=select)
