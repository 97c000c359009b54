"""The attention row of t by offset, and how a condition changes it.

Offset o is token t - o. The last bin holds all tokens further back, so that the bins of one prompt
sum to its row. A prompt that is too short for an offset has no data there; means of different
offsets are then over different prompts and need not sum to 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from tempo.errors import InputError
from tempo.vocabulary import Head
from tempo_analysis.stats.averages import mean_over_prompts
from tempo_analysis.stats.bands import Spread, deviation, sparse_spread
from tempo_analysis.stats.intervals import SEED, Interval, estimate_with_interval
from tempo_analysis.studies.ablation.passes import Comparison

N_OFFSETS = 20
"""The last offset with a bin of its own; the published figures use 20."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptOffsets:
    """The attention rows of t in one prompt under one condition, by offset.

    Attributes:
        share: Attention to offsets 0 to the last, then to the rest; NaN without a token there.
        even: The same of a row that gives equal attention to every token.
    """

    share: Float32[np.ndarray, "layer head bin"]
    even: Float64[np.ndarray, " bin"]


@dataclass(frozen=True, slots=True, eq=False)
class OffsetDistribution:
    """The row of one head under one condition, over all prompts.

    Attributes:
        head: The head.
        condition: Name of the condition.
        mean: Over the prompts with data at each bin.
        sd: Standard deviation over the same prompts.
        n: Prompts with data at each bin.
    """

    head: Head
    condition: str
    mean: Float64[np.ndarray, " bin"]
    sd: Float64[np.ndarray, " bin"]
    n: Int64[np.ndarray, " bin"]


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """A condition minus its reference in the row of one head, paired by prompt.

    Attributes:
        head: The head.
        comparison: The passes that are compared.
        share: By bin, with simultaneous limits over all bins of this head.
        row: Sum over the bins: 0 if both rows sum to 1, below 0 by the mass that an edge removed
            after the softmax has lost.
    """

    head: Head
    comparison: Comparison
    share: Spread
    row: Interval


@dataclass(frozen=True, slots=True, eq=False)
class HeadChange:
    """The distance between two rows of one head.

    Attributes:
        head: The head.
        comparison: The passes that are compared.
        variation: Half the sum of absolute differences over all tokens: 0 for equal rows, 1 for
            rows with no token in common. This is the total variation if both rows sum to 1.
    """

    head: Head
    comparison: Comparison
    variation: Interval


@dataclass(frozen=True, slots=True, eq=False)
class OffsetFindings:
    """Attention rows of t, over all prompts.

    Attributes:
        n_offsets: The last offset with a bin of its own; one more bin holds the rest.
        even: Chance: the mean of even rows, at each bin over the prompts with data.
        distributions: Of the heads that are shown, under every condition.
        differences: Of the same heads, for every comparison.
        changes: For every comparison its most changed heads, largest first, then the named heads.
    """

    n_offsets: int
    even: Float64[np.ndarray, " bin"]
    distributions: tuple[OffsetDistribution, ...]
    differences: tuple[Difference, ...]
    changes: tuple[HeadChange, ...]

    def shown(self) -> tuple[Head, ...]:
        """Heads that have distributions, without repeats."""
        return tuple(dict.fromkeys(one.head for one in self.distributions))


def prompt_offsets(
    attention: Float[np.ndarray, "layer head slot"], *, t: int, n_offsets: int = N_OFFSETS
) -> PromptOffsets:
    """Sort the rows of t into bins by offset.

    Args:
        attention: Rows of t over the slots of the prompt.
        t: Index of the token.
        n_offsets: The last offset with a bin of its own.

    Raises:
        InputError: t is not in the prompt, or a row has weight on tokens after t.
    """
    # Weight behind t means that the row is not of t, which no later number would reveal.
    if not 0 <= t < attention.shape[-1] or attention[..., t + 1 :].any():
        raise InputError(
            f"expected rows of token t = {t} over {attention.shape[-1]} tokens, with nothing "
            "behind t, got others; pass the row of t"
        )
    backwards = attention[..., t::-1]  # tokens t, t-1, ..., 0: index is now the offset
    even = np.full(t + 1, 1 / (t + 1))
    # float32 halves the memory: shares of all prompts and conditions are kept until the end.
    return PromptOffsets(_folded(backwards, n_offsets).astype(np.float32), _folded(even, n_offsets))


def variation(
    reference: Float[np.ndarray, "layer head slot"], changed: Float[np.ndarray, "layer head slot"]
) -> Float32[np.ndarray, "layer head"]:
    """Half the sum over all tokens of the absolute difference of two rows."""
    # Over all tokens, not bins: changes within the last bin would cancel.
    away = np.abs(changed.astype(np.float64) - reference)
    return (away.sum(-1) / 2).astype(np.float32)


def offset_findings(
    rows: Sequence[Mapping[str, PromptOffsets]],
    variations: Sequence[Mapping[Comparison, Float32[np.ndarray, "layer head"]]],
    *,
    heads: Sequence[Head],
    n_changed: int = 4,
    seed: int = SEED,
) -> OffsetFindings:
    """Summarise the named heads, and those that each comparison changes most.

    Args:
        rows: For every prompt, its rows by condition.
        variations: For every prompt, the distance of its rows by comparison.
        heads: Heads that are always shown.
        n_changed: How many of the most changed heads to add for each comparison.
        seed: Of the intervals.

    Raises:
        InputError: The prompts have different numbers of bins.
    """
    # Bins of different numbers have a different last bin and cannot be averaged.
    widths = {len(one.even) for prompt in rows for one in prompt.values()}
    if len(widths) != 1:
        raise InputError(
            f"expected rows folded at one offset, got {len(rows)} prompts with bins "
            f"{sorted(widths)}; fold all at the same"
        )
    moved = {each: np.stack([one[each] for one in variations]) for each in variations[0]}
    changes = [_changes(each, values, heads, n_changed, seed) for each, values in moved.items()]
    # A dict keeps the order: named heads first.
    shown = dict.fromkeys([*heads, *(one.head for group in changes for one in group)])
    shares = {name: np.stack([one[name].share for one in rows]) for name in rows[0]}
    some = next(iter(rows[0]))  # any condition: chance depends on the length of a prompt only
    return OffsetFindings(
        n_offsets=widths.pop() - 2,  # less offset 0 and the rest
        even=mean_over_prompts(np.stack([one[some].even for one in rows])),
        distributions=tuple(
            _distribution(head, name, values) for head in shown for name, values in shares.items()
        ),
        differences=tuple(
            _difference(head, each, shares, seed) for head in shown for each in moved
        ),
        changes=tuple(one for group in changes for one in group),
    )


def _folded(backwards: np.ndarray, n_offsets: int) -> np.ndarray:
    """Bins of rows that begin at t and go backwards; NaN for bins without a token."""
    n_tokens = backwards.shape[-1]
    # + 2: offset 0 and the bin of the rest. NaN, not 0: no token is there to attend to.
    bins = np.full((*backwards.shape[:-1], n_offsets + 2), np.nan)
    near = min(n_tokens, n_offsets + 1)
    bins[..., :near] = backwards[..., :near]
    if n_tokens > near:  # else the rest stays NaN: no token is so far back
        bins[..., -1] = backwards[..., near:].sum(-1, dtype=np.float64)
    return bins


def _changes(
    comparison: Comparison,
    values: Float32[np.ndarray, "prompt layer head"],
    heads: Sequence[Head],
    n_changed: int,
    seed: int,
) -> list[HeadChange]:
    mean = values.mean(0, dtype=np.float64)
    # flat indices over layer and head, largest first; stable, so that ties keep the order of heads
    order = np.argsort(-mean, axis=None, kind="stable")[:n_changed].tolist()
    places = [divmod(place, mean.shape[1]) for place in order]
    # A head that did not move at all is not among the most changed, however few heads moved.
    most = [Head(*place) for place in places if mean[place] > 0]
    return [
        HeadChange(
            head,
            comparison,
            estimate_with_interval(values[:, head.layer, head.head].astype(np.float64), seed=seed),
        )
        for head in dict.fromkeys([*most, *heads])
    ]


def _distribution(
    head: Head, condition: str, shares: Float32[np.ndarray, "prompt layer head bin"]
) -> OffsetDistribution:
    own = shares[:, head.layer, head.head].astype(np.float64)
    n = (~np.isnan(own)).sum(0)
    return OffsetDistribution(head, condition, mean_over_prompts(own), deviation(own), n)


def _difference(
    head: Head,
    comparison: Comparison,
    shares: Mapping[str, Float32[np.ndarray, "prompt layer head bin"]],
    seed: int,
) -> Difference:
    changed, reference = (
        shares[name][:, head.layer, head.head].astype(np.float64)
        for name in (comparison.changed, comparison.reference)
    )
    away = changed - reference
    # nansum: bins without a token are NaN in both rows of a prompt and hold no mass.
    row = estimate_with_interval(np.nansum(away, -1), seed=seed)
    # sparse_spread: at far offsets few prompts have data, and fewer still have any spread.
    return Difference(head, comparison, sparse_spread(np.arange(away.shape[1]), away), row)
