"""Edits (interventions) as data: what is changed in a model, in which heads, rows and slots.

An edit names query heads. With grouped-query attention several of them read one KV head: a key or a
value is edited in the copy that the named heads read; the other heads of the group keep theirs.
Rows are named by their query slots, columns by slots or by their group relative to the row
(`tempo.vocabulary.GROUPS`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from tempo.errors import InputError
from tempo.policy.slots import SlotTable, group_of
from tempo.vocabulary import GROUPS, Head, HeadName, head_of

HeadNames = Sequence[HeadName]
_LARGEST = 1e6
"""Largest bias or scale; far below it a float32 row already has all its weight on one slot."""
CellMask = Bool[np.ndarray, "query slot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The heads and query rows of an edit.

    Attributes:
        heads: Names such as `L3H5`, in addition to the heads of `layers`.
        layers: Layers of which all heads are edited.
        steps: Steps, 0 for the prompt; all if None.
        queries: Query slots; all if None.
        query_positions: Positions of query slots; all if None.
    """

    heads: HeadNames = ()
    layers: Sequence[int] = ()
    steps: Sequence[int] | None = None
    queries: Sequence[int] | None = None
    query_positions: Sequence[float] | None = None

    def query_mask(
        self, table: SlotTable, queries: Int[np.ndarray, " query"]
    ) -> Bool[np.ndarray, " query"]:
        """Which of the query rows are edited."""
        kept = _among(table.step[queries], self.steps) & _among(queries, self.queries)
        return kept & _at(table.position[queries], self.query_positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns(Rows):
    """The heads, query rows and columns (key slots) of an edit.

    Attributes:
        slots: Key slots; all if None.
        slot_positions: Positions of key slots; all if None. Members of a set share a position.
        groups: Groups of slots relative to the row, of `tempo.vocabulary.GROUPS`; all if None.
    """

    slots: Sequence[int] | None = None
    slot_positions: Sequence[float] | None = None
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        unknown = (
            [self.groups]
            # A string is a sequence of letters: "self" must be reported as itself, not as s, e, l,
            # f.
            if isinstance(self.groups, str)
            else sorted(set(self.groups or ()) - set(GROUPS))
        )
        if unknown:
            raise InputError(
                f"expected a list of groups of {', '.join(GROUPS)}, got {', '.join(unknown)}; "
                "choose some"
            )

    def cells(self, table: SlotTable, queries: Int[np.ndarray, " query"]) -> CellMask:
        """Which cells of the query rows are edited, over every slot of the table."""
        kept = np.repeat(self.query_mask(table, queries)[:, None], len(table), axis=1)
        kept &= _among(np.arange(len(table)), self.slots)
        kept &= _at(table.position, self.slot_positions)
        if self.groups is not None:
            numbers = [GROUPS.index(name) for name in self.groups]
            kept &= np.isin(group_of(table, queries), numbers)
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceHeadOutput(Rows):
    """Replace the outputs of heads at the input of the output projection.

    Only there are heads separate: the output of the projection is already a sum over all of them.

    Attributes:
        how: "zero"; "mean" puts `values` there; "resample" puts the rows of another forward there.
        values: For "mean" [layer, head, channel], for "resample" [layer, query, head, channel], as
            `Forwarded.head_outputs` of a donor has it.
    """

    how: str = "zero"
    values: Float32[np.ndarray, "..."] | None = None

    def __post_init__(self) -> None:
        axes = {"zero": None, "mean": 3, "resample": 4}
        if self.how not in axes:
            raise InputError(f"expected zero, mean or resample, got {self.how!r}; choose one")
        found = None if self.values is None else self.values.ndim
        if found != axes[self.how]:
            donor = {"mean": "means of each head", "resample": "a donor's head outputs"}
            needs = donor.get(self.how, "no values")
            raise InputError(
                f"expected {needs} with {self.how}, got "
                f"{'none' if found is None else f'{found} axes'}; see ReplaceHeadOutput.values"
            )
        if self.values is not None and not np.isfinite(self.values).all():
            raise InputError(
                "expected finite values to stand in for a head, got NaN or infinity; check the "
                "donor"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueZero(Columns):
    """Zero the values of slots for the chosen rows; attention weights are unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBias(Columns):
    """Add to scores, after scaling and soft cap.

    Attributes:
        amount: In nats; odds of the cells against the rest are multiplied by its exponential.
    """

    amount: float

    def __post_init__(self) -> None:
        # A dataclass with slots is a new class, which super() without arguments does not find
        # (CPython issue 90562).
        super(ScoreBias, self).__post_init__()
        _finite(self.amount, "amount")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreScale(Columns):
    """Multiply scores, after scaling and soft cap.

    Attributes:
        factor: 1 changes nothing, 0 makes all scores of the cells equal.
    """

    factor: float

    def __post_init__(self) -> None:
        super(ScoreScale, self).__post_init__()
        _finite(self.factor, "factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockOut(Columns):
    """Remove attention edges.

    Attributes:
        softmax: "before": the weight goes to the other slots and the row sums to 1. "after": the
            row is not renormalised and sums to less than 1.
    """

    softmax: str = "before"

    def __post_init__(self) -> None:
        super(KnockOut, self).__post_init__()
        if self.softmax not in ("before", "after"):
            raise InputError(f"expected before or after the softmax, got {self.softmax!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOffset:
    """Add a vector to token embeddings at the input of the first layer, after any scaling.

    Attributes:
        vector: In units of the residual stream.
        steps: Steps, 0 for the prompt; all if None.
        slots: Slots whose embedding is changed; all if None.
        positions: Positions of these slots; all if None.
        parallel_only: Only members of sets of two or more.
    """

    vector: Float32[np.ndarray, " channel"]
    steps: Sequence[int] | None = None
    slots: Sequence[int] | None = None
    positions: Sequence[float] | None = None
    parallel_only: bool = True

    def __post_init__(self) -> None:
        shape = getattr(self.vector, "shape", None)
        if shape is None or len(shape) != 1 or not np.isfinite(self.vector).all():
            got = type(self.vector).__name__ if shape is None else f"one of shape {shape}"
            wrong = " with NaN or infinity" if shape is not None and len(shape) == 1 else ""
            raise InputError(
                "expected a numpy array of one finite number for each channel of the stream, got "
                f"{got}{wrong}; give another vector"
            )

    def moved(
        self, table: SlotTable, queries: Int[np.ndarray, " query"]
    ) -> Bool[np.ndarray, " query"]:
        """Which of the query rows have their embedding changed."""
        kept = _among(table.step[queries], self.steps) & _among(queries, self.slots)
        kept &= _at(table.position[queries], self.positions)
        if self.parallel_only:
            kept &= table.width[queries] > 1
        return kept


HeadEdit = ReplaceHeadOutput | ValueZero | ScoreBias | ScoreScale | KnockOut
Edit = HeadEdit | EmbeddingOffset


def zero_heads(*heads: HeadName, **where: Any) -> ReplaceHeadOutput:
    """What heads give to the output projection becomes zero.

    Args:
        *heads: Labels such as `"L16H0"`, or pairs of numbers.
        **where: Fields of `Rows`: `layers` for all their heads, `steps`, `queries`,
            `query_positions`. Everywhere where none is given.

    Raises:
        InputError: A label of no known form.

    Example:
        >>> tempo.generate(model, text, edits=[tempo.edits.zero_heads("L16H0")])
    """
    return ReplaceHeadOutput(heads=_checked(heads), **where)


def mean_heads(
    *heads: HeadName, values: Float32[np.ndarray, "layer head channel"], **where: Any
) -> ReplaceHeadOutput:
    """What heads give to the output projection becomes a mean.

    Args:
        *heads: As in `zero_heads`.
        values: The mean of every head of the model, such as of `Forwarded.head_outputs` over the
            queries of some texts.
        **where: Fields of `Rows`.

    Raises:
        InputError: A label of no known form, or values of another shape.

    Example:
        >>> values = tempo.forward(model, text).head_outputs.mean(1)
        >>> tempo.edits.mean_heads("L16H0", values=values)
    """
    return ReplaceHeadOutput(heads=_checked(heads), how="mean", values=values, **where)


def resample_heads(
    *heads: HeadName, values: Float32[np.ndarray, "layer query head channel"], **where: Any
) -> ReplaceHeadOutput:
    """What heads give to the output projection becomes what they gave in another text.

    Args:
        *heads: As in `zero_heads`.
        values: `Forwarded.head_outputs` of the other text; query i is put in the place of query i.
        **where: Fields of `Rows`.

    Raises:
        InputError: A label of no known form, or values of another shape.

    Example:
        >>> donor = tempo.forward(model, "A dog sat on the")
        >>> tempo.edits.resample_heads("L16H0", values=donor.head_outputs)
    """
    return ReplaceHeadOutput(heads=_checked(heads), how="resample", values=values, **where)


def knock_out(*heads: HeadName, softmax: str = "before", **where: Any) -> KnockOut:
    """Heads no longer see some slots.

    Args:
        *heads: As in `zero_heads`.
        softmax: "before": the rest of the row is renormalised to sum to 1. "after": it is not, and
            the row sums to less than 1.
        **where: Fields of `Columns`: those of `Rows`, and `slots`, `slot_positions`, `groups`.

    Raises:
        InputError: A label of no known form, an unknown group, or another word for `softmax`.

    Example:
        >>> tempo.edits.knock_out("L3H5", slots=[2])
    """
    return KnockOut(heads=_checked(heads), softmax=softmax, **where)


def block_siblings(*heads: HeadName, **where: Any) -> KnockOut:
    """Members of a set no longer see their siblings in these heads or layers.

    Args:
        *heads: As in `zero_heads`.
        **where: Fields of `Rows`.

    Raises:
        InputError: A label of no known form.

    Example:
        >>> tempo.edits.block_siblings(layers=[3, 4])
    """
    return knock_out(*heads, groups=("siblings",), **where)


def boost(*heads: HeadName, amount: float, **where: Any) -> ScoreBias:
    """Add to the scores of some slots before the softmax.

    Args:
        *heads: As in `zero_heads`.
        amount: In nats; below 0 it takes away. See `ScoreBias`.
        **where: Fields of `Columns`.

    Raises:
        InputError: A label of no known form, an unknown group, or an amount that is not finite.

    Example:
        >>> tempo.edits.boost(layers=[3], groups=["earlier_sets"], amount=1.0)
    """
    return ScoreBias(heads=_checked(heads), amount=amount, **where)


def _checked(heads: HeadNames) -> HeadNames:
    """The heads unchanged, after a check that each label can be read."""
    for name in heads:
        head_of(name)
    return heads


def heads_of(edit: Edit, *, n_layers: int, n_heads: int) -> dict[int, list[int]]:
    """The heads that an edit names, by layer.

    Raises:
        InputError: A head or layer is not the model's, or none is named.
    """
    if isinstance(edit, EmbeddingOffset):
        return {}
    named = [head_of(one) for one in edit.heads]
    named += [Head(layer, head) for layer in edit.layers for head in range(n_heads)]
    if not named:
        raise InputError(f"expected heads or layers in {type(edit).__name__}, got none; name some")
    for layer, head in named:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise InputError(
                f"expected heads from L0H0 to L{n_layers - 1}H{n_heads - 1}, got L{layer}H{head}; "
                "check the head"
            )
    found: dict[int, list[int]] = {}
    # A head named twice, or also by its layer, is edited once.
    for layer, head in sorted(set(named)):
        found.setdefault(layer, []).append(head)
    return found


def is_nothing(edit: Edit) -> bool:
    """Whether an edit leaves every number as it is."""
    match edit:
        case ScoreBias():
            return edit.amount == 0
        case ScoreScale():
            return edit.factor == 1
        case EmbeddingOffset():
            return not edit.vector.any()
        case _:
            return False


def _among(
    numbers: Int[np.ndarray, " row"], wanted: Sequence[int] | None
) -> Bool[np.ndarray, " row"]:
    return np.ones(len(numbers), bool) if wanted is None else np.isin(numbers, list(wanted))


def _at(
    positions: Float32[np.ndarray, " row"], wanted: Sequence[float] | None
) -> Bool[np.ndarray, " row"]:
    if wanted is None:
        return np.ones(len(positions), bool)
    # Positions are float32: 0.1 as a Python float would equal none of them.
    return np.isin(positions, np.asarray(list(wanted), np.float32))


def _finite(value: Any, what: str) -> None:
    if not isinstance(value, int | float | np.number) or not abs(value) <= _LARGEST:
        raise InputError(
            f"expected a finite {what}, of at most {_LARGEST:g}, got {value!r}; KnockOut takes an "
            "edge out altogether"
        )
