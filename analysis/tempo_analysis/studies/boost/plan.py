"""Targets of a bias: layers, groups of heads, and the control, which biases other slots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from tempo.errors import InputError
from tempo.policy.edits import CellMask, ScoreBias
from tempo.policy.slots import SlotTable
from tempo.vocabulary import SINK_SLOT, Head, parse_head

ALL, CONTROL = "all", "control"
BANDS = ("first third", "middle third", "last third")
READERS, OTHERS = "set readers", "other heads"
TARGETS = (ALL, *BANDS, READERS, OTHERS, CONTROL)
CHOSEN = frozenset({READERS, OTHERS})
"""Targets whose heads are chosen by their attention on the other half of the prompts."""
QUARTER = 4
"""One head in this many is a reader of sets."""

HeadMask = Bool[np.ndarray, "layer head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedBias(ScoreBias):
    """The control: the same bias, in the same rows, on an equal number of slots in no set.

    A row that sees n members of earlier sets is biased at the latest n slots of the prompt and of
    single tokens, without slot 0; at all of these if there are fewer than n.
    """

    def cells(self, table: SlotTable, queries: Int[np.ndarray, " query"]) -> CellMask:
        """Which cells of these query rows get the bias."""
        kept = np.zeros((len(queries), len(table)), bool)
        # By step: the number of members seen, so of matched slots, is the same for all its rows.
        for step in np.unique(table.step[queries]).tolist():
            rows = table.step[queries] == step
            kept[np.ix_(rows, matched_slots(table, step))] = True
        return kept & self.query_mask(table, queries)[:, None]


@dataclass(frozen=True, slots=True)
class BoostTarget:
    """Heads and slots that get a bias.

    Attributes:
        name: Of the target.
        about: Which heads and slots, in words.
        halves: The heads, once for each half of the prompts.
        control: Whether the bias acts on slots that are in no set.
    """

    name: str
    about: str
    halves: tuple[HeadMask, HeadMask]
    control: bool = False

    def edit(self, half: int, amount: float) -> ScoreBias:
        """The edit that applies the bias to the prompts of one half.

        Args:
            half: 0 or 1.
            amount: Nats added to the scores.
        """
        named = [Head(*place) for place in np.argwhere(self.halves[half]).tolist()]
        if self.control:
            # The control needs slots by count; no group of slots in the edits expresses that.
            return MatchedBias(heads=named, amount=amount)
        return ScoreBias(heads=named, groups=("earlier_sets",), amount=amount)

    @property
    def n_heads(self) -> int:
        """How many heads get the bias."""
        # The two halves have the same number of heads by construction.
        return int(self.halves[0].sum())


def member_slots(table: SlotTable, step: int) -> Int64[np.ndarray, " slot"]:
    """Members of sets of two or more that the rows of a step see."""
    # Strictly before: members of the step itself are siblings, which isolation hides.
    return np.flatnonzero((table.width >= 2) & (table.step < step))


def matched_slots(table: SlotTable, step: int) -> Int64[np.ndarray, " slot"]:
    """The latest slots in no set before a step, as many as members of sets, without slot 0."""
    # Without slot 0: a bias on the attention sink moves far more mass than one on other slots.
    single = (table.width < 2) & (table.step < step) & (np.arange(len(table)) != SINK_SLOT)
    n = len(member_slots(table, step))
    # n = 0 apart: a slice [-0:] would take every slot
    return np.flatnonzero(single)[-n:] if n else np.empty(0, np.int64)


def fixed_target(name: str, n_layers: int, n_heads: int) -> BoostTarget:
    """All layers, a band of layers, or the control."""
    heads = np.zeros((n_layers, n_heads), bool)
    if name in BANDS:
        # rounded edges: every layer is in exactly one third, also when 3 does not divide them
        edges = np.linspace(0, n_layers, len(BANDS) + 1).round().astype(int)
        place = BANDS.index(name)
        heads[edges[place] : edges[place + 1]] = True
        about = f"layers {edges[place]} to {edges[place + 1] - 1}, members of earlier sets"
    else:
        heads[:] = True
        about = "all heads, members of earlier sets"
    if name == CONTROL:
        about = (
            "all heads, as many slots in no set: the latest of the prompt and of single tokens, "
            "without slot 0"
        )
    return BoostTarget(name, about, (heads, heads), name == CONTROL)


def given_target(
    name: str, heads: Sequence[str | Head], n_layers: int, n_heads: int
) -> BoostTarget:
    """A group of heads that the caller named.

    Raises:
        InputError: The model does not have one of the heads.
    """
    chosen = np.zeros((n_layers, n_heads), bool)
    for head in as_heads(heads):
        if not (head.layer < n_layers and head.head < n_heads):
            raise InputError(
                f"expected heads from L0H0 to L{n_layers - 1}H{n_heads - 1} in group {name!r}, got "
                f"{head}; check the head"
            )
        chosen[head] = True
    return BoostTarget(name, "heads that were named, members of earlier sets", (chosen, chosen))


def as_heads(heads: Sequence[str | Head]) -> list[Head]:
    """Heads from names or pairs of numbers."""
    return [parse_head(one) if isinstance(one, str) else Head(*one) for one in heads]


def chosen_targets(
    share: tuple[Float64[np.ndarray, "layer head"], Float64[np.ndarray, "layer head"]], *, seed: int
) -> dict[str, BoostTarget]:
    """The quarter of heads that attend most to sets, and an equal number of other heads.

    The heads for one half of the prompts are chosen on the other half, so that no prompt chooses
    its own. The others are drawn from the same layers as far as these have heads left.

    Args:
        share: Mean share of a row on earlier sets, once for each half.
        seed: Of the draw of the others.
    """
    # 1 - half: the other half chooses. The half is in the seed, so the two draws are independent.
    found = [
        _readers_and_others(share[1 - half], np.random.default_rng((seed, half))) for half in (0, 1)
    ]
    n = int(found[0][0].sum())
    named = f"heads, chosen on the other half of the prompts ({n} of {share[0].size})"
    about = {
        READERS: f"the quarter of {named} that give earlier sets the largest share of their rows",
        OTHERS: f"as many {named} drawn from the rest, in the same layers where these have some",
    }
    return {
        name: BoostTarget(name, about[name], (found[0][place], found[1][place]))
        for place, name in enumerate((READERS, OTHERS))
    }


def _readers_and_others(
    share: Float64[np.ndarray, "layer head"], rng: np.random.Generator
) -> tuple[HeadMask, HeadMask]:
    """Readers, and an equal number of heads drawn from the rest."""
    n = max(share.size // QUARTER, 1)
    # heads without data come last; stable, so that ties are decided by layer and head
    order = np.argsort(-np.nan_to_num(share, nan=-1.0), axis=None, kind="stable")
    readers = np.zeros(share.shape, bool)
    readers.flat[order[:n]] = True
    drawn = np.zeros(share.shape, bool)
    for layer in range(len(share)):
        left = np.flatnonzero(~readers[layer])
        # From the same layer: depth alone changes the effect of a bias, so it has to be matched.
        picked = rng.permutation(left)[: int(readers[layer].sum())]
        drawn[layer, picked] = True
    # a layer with more readers than other heads could not be matched: fill up from any layer
    spare = np.flatnonzero(~(readers | drawn))
    drawn.flat[rng.permutation(spare)[: n - int(drawn.sum())]] = True
    return readers, drawn


def check_targets(
    targets: Sequence[str] | None, groups: Mapping[str, Sequence[str | Head]] | None
) -> tuple[str, ...]:
    """Check names of targets and groups before a model is loaded.

    Returns:
        The targets; all of them for None.

    Raises:
        InputError: A target is unknown or repeated, or a group has no heads, no name or the name
            of a target.
    """
    wanted = TARGETS if targets is None else tuple(targets)
    unknown = [name for name in wanted if name not in TARGETS]
    if unknown or len(set(wanted)) != len(wanted) or not (wanted or groups):
        got = f"{unknown[0]!r}" if unknown else "one of them twice" if wanted else "none"
        raise InputError(f"expected targets of {', '.join(TARGETS)}, got {got}; name each once")
    for name, heads in (groups or {}).items():
        if not name or name in TARGETS:
            raise InputError(
                f"expected a name for a group of heads that is none of {', '.join(TARGETS)}, got "
                f"{name!r}; rename it"
            )
        if not as_heads(heads):
            raise InputError(f"expected heads in group {name!r}, got none; name some as L3H5")
    return wanted
