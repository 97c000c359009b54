"""What each head attends to, its kind, and a test of whether the head number has an effect."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from tempo.errors import InputError
from tempo.vocabulary import RECENT_WINDOW, SINK_SLOT, Head
from tempo_analysis.parallel.entropy import CHANCE as EVEN_ENTROPY
from tempo_analysis.parallel.entropy import SMALLEST_REST, PromptEntropy
from tempo_analysis.parallel.observation import GROUP, Observation, ObservedTrace, count_on, mass_on
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.intervals import SEED

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
# No index of KINDS; a head without data is not "balanced".
UNTYPED = -1

SINK_FROM = 0.5
# Relative to chance: in a short text most slots are within 8 positions, so even attention alone
# would make every head "local".
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
    # The last two, the entropies, come from `PromptEntropy` of the same rows.
    n_own = len(MEASURES) - 2
    value, chance = (
        [observed.average([step[side][number] for step in steps]) for number in range(n_own)]
        for side in (0, 1)
    )
    ends = [entropy.normalised, entropy.normalised_without_sink]
    # NaN where no row has an entropy: a chance value stands beside a value only.
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
    # The first measure, sink mass, exists for every row, so any value there means data.
    n = int((~np.isnan(values[..., 0])).any((1, 2)).sum())
    return HeadTable(layers, heads, value, chance, kind_of(value, chance), n)


def kind_of(
    value: Float64[np.ndarray, "layer head measure"],
    chance: Float64[np.ndarray, "layer head measure"],
) -> Int64[np.ndarray, "layer head"]:
    """The kind of each head by `RULE`, as an index into `KINDS`; -1 without data."""

    def excess(measure: str) -> Float64[np.ndarray, "layer head"]:
        share, even = (side[..., MEASURES.index(measure)] for side in (value, chance))
        # Where every visible slot is of the kind, even attention has share 1 and there is nothing
        # to exceed.
        room = np.where(even < 1, 1 - even, np.nan)
        return (share - even) / room

    sink = value[..., MEASURES.index("sink")]
    diffuse = value[..., MEASURES.index("normalised_entropy_without_sink")] >= DIFFUSE_FROM
    holds = [
        sink >= SINK_FROM,
        excess("distant_without_sink") >= EXCESS_FROM,
        excess("local_without_sink") >= EXCESS_FROM,
        diffuse,
        # Always true, so that argmax (the first true line) finds "balanced" last.
        np.ones_like(diffuse),
    ]
    return np.where(np.isnan(sink), UNTYPED, np.argmax(holds, axis=0))


MeasureColumns = list[Float64[np.ndarray, "layer head query"]]


def _step_measures(rows: Observation) -> tuple[MeasureColumns, MeasureColumns]:
    """The measures of one step except the entropies, and their values under even attention."""
    weights = rows.rows()
    places, distance = _places(rows)
    mass = mass_on(weights, places)
    # Even attention as a row, for measures that are no sum over a part, such as distance.
    even = rows.visible / np.maximum(rows.visible.sum(-1, keepdims=True), 1)
    spread = np.broadcast_to(even[:, None], weights.shape)
    # Chance is visible slots of the part over visible slots, row by row, as both differ by row.
    count = count_on(rows.visible, places)[:, None] / rows.count.sum(-1)[:, None, :, None]
    even_mass = np.broadcast_to(count, mass.shape)
    own_sets = rows.mass[..., GROUP["earlier_sets"]]
    even_sets = rows.count[..., GROUP["earlier_sets"]] / rows.count.sum(-1)
    even_own_sets = np.broadcast_to(even_sets[:, None], own_sets.shape)
    # Part 0 is the sink. The same rows are kept for chance, or value and chance would be means over
    # different rows.
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
) -> MeasureColumns:
    _, own, siblings, recent, distant = (mass[..., part] for part in range(len(PLACES)))
    rest = own + siblings + recent + distant
    rest = np.where(kept & (rest > 0), rest, np.nan)
    # The sink has distance 0 here: it is left out of numerator and denominator alike, because mass
    # on slot 0 would make every sink head "long-range".
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
    # By step, not by position: siblings share the query's position or, with offsets, nearly.
    is_sibling = (rows.table.step == rows.step)[None, :] & ~is_self
    earlier = ~is_sink & ~is_self & ~is_sibling
    recent = earlier & (distance <= RECENT_WINDOW)
    places = [is_sink, is_self, is_sibling, recent, earlier & ~recent]
    # Slot 0 gets no distance, so that its mass adds nothing to the mean distance.
    return np.stack(places, -1), np.where(is_sink, 0.0, distance)


PERMUTATIONS = 9999
LEVEL = 0.05

# Permutations in memory at once.
_BATCH = 500
# Permutations that give the same share differ by rounding; they must count as equal.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class IndexEffect:
    """How much of the variance of heads within layers their number explains.

    Attributes:
        share: Sum of squares between the means of the numbers over the sum of squares within
            layers, in [0, 1]; 1 where all layers have the same heads in the same order.
        chance: Its expected value under any order of heads: 1 / number of layers, exactly.
        detectable: The smallest share that would have p < 0.05 here.
        p: Share of the permutations of heads within layers, these heads as they are among them,
            that explain as much.
        index_mean: Mean over layers of each head number, less the mean of its layer.
        n_layers: Layers used: those in which every head has a value.
    """

    share: float
    chance: float
    detectable: float
    p: float
    index_mean: Float64[np.ndarray, "head column"]
    n_layers: int


def index_effect(
    values: Float[np.ndarray, "layer head column"],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
) -> IndexEffect:
    """Test one quantity of every head; several columns (as one for each kind) count together.

    Raises:
        InputError: Fewer than two layers have all values, or no head differs from another.
    """
    # Whole layers only: a head number with fewer layers would have a noisier mean and bias the sum
    # of squares between numbers.
    kept = values[~np.isnan(values).any((1, 2))].astype(np.float64)
    if len(kept) < 2 or kept.shape[1] < 2:
        raise InputError(
            "expected at least two layers in which two heads or more have a value, got "
            f"{len(kept)} layers of {values.shape[1]} heads; give more layers or heads"
        )
    # Within layers: differences between layers say nothing about head numbers.
    centred = kept - kept.mean(1, keepdims=True)
    total = float((centred**2).sum())
    if total <= _ROUNDING * float((kept**2).sum()):
        raise InputError("expected heads that differ within a layer, got equal ones; nothing to do")
    share = float(_between(centred[None])[0]) / total
    drawn = _permuted(centred, permutations, seed) / total
    return IndexEffect(
        share=share,
        # Under permutation the mean of a number over L layers has 1 / L of the variance.
        chance=1 / len(kept),
        detectable=float(np.quantile(drawn, 1 - LEVEL)),
        # The observed order counts as one permutation, so p is never 0 (Phipson and Smyth 2010).
        p=float((1 + np.sum(drawn >= share - _ROUNDING)) / (1 + permutations)),
        index_mean=centred.mean(0),
        n_layers=len(kept),
    )


def index_shares(
    prompts: Sequence[Float[np.ndarray, "layer head"]],
) -> Float64[np.ndarray, " prompt"]:
    """The share of each prompt by itself; NaN where a prompt has no layer with all values."""
    found = np.full(len(prompts), np.nan)
    for number, values in enumerate(prompts):
        kept = values[~np.isnan(values).any(-1)].astype(np.float64)
        centred = (kept - kept.mean(-1, keepdims=True))[None, ..., None] if len(kept) else None
        if centred is not None and (centred**2).sum() > 0:
            found[number] = _between(centred)[0] / (centred**2).sum()
    return found


def kind_columns(kind: Int[np.ndarray, "layer head"]) -> Float64[np.ndarray, "layer head kind"]:
    """One indicator column for each of `KINDS`: 1 for heads of that kind; NaN without a kind."""
    columns = (kind[..., None] == np.arange(len(KINDS))).astype(np.float64)
    # NaN, not zeros: otherwise a head without data would count as one of no kind.
    columns[kind == UNTYPED] = np.nan
    return columns


def kinds_by_index(kind: Int[np.ndarray, "layer head"]) -> Int64[np.ndarray, "head kind"]:
    """For each head number, the layers in which its head is of each kind."""
    return (kind[..., None] == np.arange(len(KINDS))).sum(0)


def _between(
    centred: Float64[np.ndarray, "sample layer head column"],
) -> Float64[np.ndarray, " sample"]:
    """Sum of squares between the means of the head numbers."""
    # Each number's mean stands for as many cells as there are layers.
    return centred.shape[1] * (centred.mean(1) ** 2).sum((1, 2))


def _permuted(
    centred: Float64[np.ndarray, "layer head column"], permutations: int, seed: int
) -> Float64[np.ndarray, " permutation"]:
    """`_between` for random permutations of the heads within each layer."""
    rng = np.random.default_rng(seed)
    layers = np.arange(len(centred))[:, None]
    found = []
    for start in range(0, permutations, _BATCH):
        n = min(_BATCH, permutations - start)
        # Sorting random numbers permutes the heads of each layer independently, all at once.
        order = rng.random((n, *centred.shape[:2])).argsort(-1)
        found.append(_between(centred[layers, order]))
    return np.concatenate(found)
