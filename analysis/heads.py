"""Where does each head look, and of what kind is it?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from analysis.averages import mean_over_prompts
from analysis.entropy import CHANCE as EVEN_ENTROPY
from analysis.entropy import SMALLEST_REST, PromptEntropy
from analysis.observation import GROUP, Observation, ObservedTrace, count_on, mass_on
from tempo.vocabulary import RECENT_WINDOW, SINK_SLOT, Head

PLACES = ("sink", "self", "siblings", "recent", "distant")
"""Disjoint parts of a row, seen from the query; together they are the whole row."""

MEASURES = (
    *PLACES,
    "earlier_sets",
    "local_without_sink",
    "distant_without_sink",
    "distance_without_sink",
    "max_weight",
    "normalised_entropy",
    "normalised_entropy_without_sink",
)
"""Columns of the head table. All are shares in [0, 1] but the distance, in positions."""

KINDS = ("sink", "long-range", "local", "diffuse", "balanced")
UNTYPED = -1

SINK_FROM = 0.5
EXCESS_FROM = 0.5
DIFFUSE_FROM = 0.9

RULE = f"""\
The first line that holds names the head; every number is the head's mean over prompts.
sink: at least {SINK_FROM:g} of the row is on slot 0.
long-range: without slot 0, the share more than {RECENT_WINDOW:g} positions back is at least \
{EXCESS_FROM:g} of the way from its chance value to 1.
local: without slot 0, the share on the query, its siblings and slots up to {RECENT_WINDOW:g} \
positions back is at least {EXCESS_FROM:g} of the way from its chance value to 1.
diffuse: normalised entropy without slot 0 is at least {DIFFUSE_FROM:g}.
balanced: none of these. A head without data has no kind. Even attention is diffuse."""


@dataclass(frozen=True, slots=True)
class PromptHeads:
    """Measures of every head on one prompt, averaged over its rows; NaN without data."""

    value: Float64[np.ndarray, "layer head measure"]
    chance: Float64[np.ndarray, "layer head measure"]


@dataclass(frozen=True, slots=True)
class HeadTable:
    """Mean measures of every head over prompts, beside their values under even attention.

    Rows are the queries of generated steps. Averaged per prompt first, then over prompts, NaN left
    out. A category is a description by `RULE`, not a test. Left out: prompt rows; where the sink is
    left out, rows with less than 1e-6 of their mass outside it.

    Attributes:
        value: One column for each of `MEASURES`.
        chance: The same under even attention over the slots each query may see.
        kind: Index into `KINDS`, -1 for a head without data.
        n: Prompts with data.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    value: Float64[np.ndarray, "layer head measure"]
    chance: Float64[np.ndarray, "layer head measure"]
    kind: Int64[np.ndarray, "layer head"]
    n: int

    def column(self, measure: str) -> Float64[np.ndarray, "layer head"]:
        """One measure of every head."""
        return self.value[..., MEASURES.index(measure)]

    def chance_column(self, measure: str) -> Float64[np.ndarray, "layer head"]:
        """Its value under even attention."""
        return self.chance[..., MEASURES.index(measure)]

    def mean_chance(self, measure: str) -> float:
        """Its mean over all heads; heads differ in it only through their layers' windows."""
        return float(mean_over_prompts(self.chance_column(measure).ravel()))

    def names(self) -> tuple[tuple[Head, ...], ...]:
        """Name of the head in each cell."""
        return tuple(tuple(Head(layer, head) for head in self.heads) for layer in self.layers)

    def kind_count(self) -> dict[str, int]:
        """Number of heads of each kind."""
        return {kind: int((self.kind == number).sum()) for number, kind in enumerate(KINDS)}


def prompt_heads(observed: ObservedTrace, entropy: PromptEntropy) -> PromptHeads:
    """Measures of one prompt; `entropy` is that of the same rows.

    Raises:
        LevelError: The trace was reduced to group masses.
    """
    steps = [_step_measures(step) for step in observed.steps]
    n_own = len(MEASURES) - 2
    value, chance = (
        [observed.average([step[side][number] for step in steps]) for number in range(n_own)]
        for side in (0, 1)
    )
    ends = [entropy.normalised, entropy.normalised_without_sink]
    free = [np.where(average.count.sum(0) > 0, EVEN_ENTROPY, np.nan) for average in ends]
    return PromptHeads(
        value=np.stack([average.by_head() for average in value + ends], -1),
        chance=np.stack([*(average.by_head() for average in chance), *free], -1),
    )


def head_table(
    prompts: Sequence[PromptHeads], *, layers: tuple[int, ...], heads: tuple[int, ...]
) -> HeadTable:
    """Combine prompts and name the kind of each head."""
    values = np.stack([prompt.value for prompt in prompts])
    value = mean_over_prompts(values)
    chance = mean_over_prompts(np.stack([prompt.chance for prompt in prompts]))
    n = int((~np.isnan(values[..., 0])).any((1, 2)).sum())
    return HeadTable(layers, heads, value, chance, kind_of(value, chance), n)


def kind_of(
    value: Float64[np.ndarray, "layer head measure"],
    chance: Float64[np.ndarray, "layer head measure"],
) -> Int64[np.ndarray, "layer head"]:
    """The kind of each head by `RULE`, as an index into `KINDS`; -1 without data."""

    def excess(measure: str) -> Float64[np.ndarray, "layer head"]:
        share, even = (side[..., MEASURES.index(measure)] for side in (value, chance))
        room = np.where(even < 1, 1 - even, np.nan)
        return (share - even) / room

    sink = value[..., MEASURES.index("sink")]
    diffuse = value[..., MEASURES.index("normalised_entropy_without_sink")] >= DIFFUSE_FROM
    holds = [
        sink >= SINK_FROM,
        excess("distant_without_sink") >= EXCESS_FROM,
        excess("local_without_sink") >= EXCESS_FROM,
        diffuse,
        np.ones_like(diffuse),
    ]
    return np.where(np.isnan(sink), UNTYPED, np.argmax(holds, axis=0))


Columns = list[Float64[np.ndarray, "layer head query"]]


def _step_measures(rows: Observation) -> tuple[Columns, Columns]:
    """The measures of one step but the entropies, and their values under even attention."""
    weights = rows.rows()
    places, distance = _places(rows)
    mass = mass_on(weights, places)
    even = rows.visible / np.maximum(rows.visible.sum(-1, keepdims=True), 1)
    spread = np.broadcast_to(even[:, None], weights.shape)
    count = count_on(rows.visible, places)[:, None] / rows.count.sum(-1)[:, None, :, None]
    even_mass = np.broadcast_to(count, mass.shape)
    own_sets = rows.mass[..., GROUP["earlier_sets"]]
    even_sets = rows.count[..., GROUP["earlier_sets"]] / rows.count.sum(-1)
    even_own_sets = np.broadcast_to(even_sets[:, None], own_sets.shape)
    kept = mass[..., 1:].sum(-1) >= SMALLEST_REST
    return (
        _columns(mass, own_sets, weights, distance, kept=kept),
        _columns(even_mass, even_own_sets, spread, distance, kept=kept),
    )


def _columns(
    mass: Float64[np.ndarray, "layer head query part"],
    earlier_sets: Float64[np.ndarray, "layer head query"],
    weights: np.ndarray,
    distance: Float64[np.ndarray, "query slot"],
    *,
    kept: Bool[np.ndarray, "layer head query"],
) -> Columns:
    _, own, siblings, recent, distant = (mass[..., part] for part in range(len(PLACES)))
    rest = own + siblings + recent + distant
    rest = np.where(kept & (rest > 0), rest, np.nan)
    travelled = np.einsum("lhqs,qs->lhq", weights, distance, dtype=np.float64)
    return [
        *(mass[..., part] for part in range(len(PLACES))),
        earlier_sets,
        (own + siblings + recent) / rest,
        distant / rest,
        travelled / rest,
        weights.max(-1).astype(np.float64),
    ]


def _places(
    rows: Observation,
) -> tuple[Bool[np.ndarray, "query slot part"], Float64[np.ndarray, "query slot"]]:
    """Which slots are in each of `PLACES`, and how many positions behind the query (sink 0)."""
    slots = np.arange(len(rows.table))
    position = rows.table.position.astype(np.float64)
    distance = position[rows.queries, None] - position[None, :]
    is_sink = np.broadcast_to(slots == SINK_SLOT, distance.shape)
    is_self = slots[None, :] == rows.queries[:, None]
    is_sibling = (rows.table.step == rows.step)[None, :] & ~is_self
    earlier = ~is_sink & ~is_self & ~is_sibling
    recent = earlier & (distance <= RECENT_WINDOW)
    places = [is_sink, is_self, is_sibling, recent, earlier & ~recent]
    return np.stack(places, -1), np.where(is_sink, 0.0, distance)
