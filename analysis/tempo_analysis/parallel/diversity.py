"""Diversity of the decoded text, effective branches of each step, and cost of decoding.

Everything is counted on token ids, so no tokenizer is needed and only texts of one model compare.
The counts depend on length: cut all texts to one (`common_length`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import xlogy

from tempo.errors import InputError
from tempo.trace.trace import Trace
from tempo_analysis.parallel.widths import repetition, top_path
from tempo_analysis.stats.intervals import SEED, Curve, Interval, curve, estimate_with_interval

GRAMS = (1, 2, 3)
BLEU_ORDER = 4
SMOOTHING = 0.1
"""Matches counted for an order of n-grams without any (Chen and Cherry 2014, method 1)."""

Path = Int64[np.ndarray, " _"]
"""Token ids of a text, of any length."""


@dataclass(frozen=True, slots=True)
class PromptDiversity:
    """The first steps of one prompt.

    Attributes:
        distinct: Share of different n-grams among those of the top path, n = 1, 2, 3; NaN where it
            is shorter than n.
        effective_branches: exp(H(w)) of each set, w its members' shares in the readout; NaN where
            they are all 0.
        repetition: Share of trigrams that occurred before in the top path.
        slots_per_token: Slots written for each token of text.
        forwards_per_token: Forward passes after the prompt for each token of text.
    """

    distinct: Float64[np.ndarray, " gram"]
    effective_branches: Float64[np.ndarray, " step"]
    repetition: float
    slots_per_token: float
    forwards_per_token: float


@dataclass(frozen=True, slots=True)
class Diversity:
    """Text and cost of one arm over the same number of steps of every prompt; means over prompts.

    The text is the top path: the top-ranked member of each set. `effective_branches` lies between
    1 and the width of the set; `length` is the number of steps.
    """

    length: int
    distinct_1: Interval
    distinct_2: Interval
    distinct_3: Interval
    repetition: Interval
    effective_branches: Curve
    slots_per_token: Interval
    forwards_per_token: Interval


def common_length(traces: Sequence[Trace]) -> int:
    """The largest number of steps that every trace has, over all prompts and arms compared."""
    return min((trace.n_steps for trace in traces), default=0)


def prompt_diversity(trace: Trace, *, length: int, n_tokens: int | None = None) -> PromptDiversity:
    """Describe the first `length` steps of one trace, at any level.

    Args:
        n_tokens: Tokens of text that these steps yield, for the cost; None counts the top path,
            one token for each step.

    Raises:
        InputError: The trace has fewer steps, or there is no step or token to count.
    """
    if not 1 <= length <= trace.n_steps:
        raise InputError(
            f"expected a length from 1 to the {trace.n_steps} steps of prompt "
            f"{trace.header.prompt_id!r}, got {length}; cut all traces to their common length"
        )
    if n_tokens is not None and n_tokens < 1:
        raise InputError(f"expected at least 1 token of text, got {n_tokens}")
    # The cut makes arms comparable: distinct-n falls and repetition rises with length alone.
    path = top_path(trace.slots)[:length]
    n_text = length if n_tokens is None else n_tokens
    # n_slots(0) is the prompt, which every arm pays for.
    n_slots = trace.n_slots(length) - trace.n_slots(0)
    weights = (trace.slots.weight[trace.members(step)] for step in range(1, length + 1))
    return PromptDiversity(
        distinct=np.array([distinct([path], n) for n in GRAMS]),
        effective_branches=np.array([effective_branches(weight) for weight in weights]),
        repetition=repetition(path),
        slots_per_token=n_slots / n_text,
        # One forward pass feeds a whole set, whatever its width.
        forwards_per_token=length / n_text,
    )


def diversity(prompts: Sequence[PromptDiversity], *, seed: int = SEED) -> Diversity:
    """Combine the prompts of one arm.

    Raises:
        InputError: Prompts were cut to different lengths, or there is none.
    """
    lengths = sorted({len(prompt.effective_branches) for prompt in prompts})
    if len(lengths) != 1:
        raise InputError(
            f"expected prompts cut to one length, got lengths {lengths}; cut all to the shortest"
        )
    branches = np.stack([prompt.effective_branches for prompt in prompts])
    distinct_1, distinct_2, distinct_3 = (
        estimate_with_interval(values, seed=seed)
        for values in np.stack([prompt.distinct for prompt in prompts]).T
    )
    repeated, slots, forwards = (
        estimate_with_interval(np.array(values, np.float64), seed=seed)
        for values in zip(
            *((one.repetition, one.slots_per_token, one.forwards_per_token) for one in prompts),
            strict=True,
        )
    )
    return Diversity(
        length=lengths[0],
        distinct_1=distinct_1,
        distinct_2=distinct_2,
        distinct_3=distinct_3,
        repetition=repeated,
        effective_branches=curve(np.arange(1, lengths[0] + 1), branches, seed=seed),
        slots_per_token=slots,
        forwards_per_token=forwards,
    )


def distinct(paths: Sequence[Path], n: int) -> float:
    """Different n-grams over all n-grams of the paths together; NaN without any.

    Li et al. 2016, distinct-n; no n-gram spans two paths.
    """
    # Counted path by path, so that no n-gram spans two of them.
    counts = sum((_grams(path, n) for path in paths), Counter[tuple[int, ...]]())
    return len(counts) / counts.total() if counts else float("nan")


def self_bleu(paths: Sequence[Path]) -> float:
    """Mean BLEU-4 of each path against all others as references (Zhu et al. 2018), in [0, 1].

    1 where every path is there twice, 0 where no two share a token; lower is more diverse.

    Raises:
        InputError: Fewer than two paths, or one shorter than four tokens.
    """
    if len(paths) < 2:
        raise InputError(f"expected at least 2 paths to compare, got {len(paths)}")
    scores = [bleu(path, [*paths[:i], *paths[i + 1 :]]) for i, path in enumerate(paths)]
    return float(np.mean(scores))


def bleu(path: Path, references: Sequence[Path]) -> float:
    """BLEU-4 of one path (Papineni et al. 2002): brevity penalty times geometric mean of precision.

    A match counts at most as often as in the reference that has the n-gram most often; the penalty
    takes the reference nearest in length, the shorter of two. An order without any match counts
    0.1 matches (`SMOOTHING`), but a path that shares no token with any reference has exactly 0.

    Raises:
        InputError: The path is shorter than four tokens, or there is no reference.
    """
    if len(path) < BLEU_ORDER or not references:
        raise InputError(
            f"expected a path of at least {BLEU_ORDER} tokens and a reference, got {len(path)} "
            f"tokens and {len(references)} references; compare longer paths"
        )
    matches = np.array([_matches(path, references, n) for n in range(1, BLEU_ORDER + 1)], float)
    # Smoothing would give a positive score to texts that share nothing at all.
    if matches[0] == 0:
        return 0.0
    # A path of L tokens has L - n + 1 n-grams, for n = 1 to 4.
    totals = len(path) - np.arange(BLEU_ORDER)
    precision = np.where(matches > 0, matches, SMOOTHING) / totals
    # The second key breaks ties towards the shorter reference, as Papineni et al. do.
    nearest = min((len(each) for each in references), key=lambda n: (abs(n - len(path)), n))
    penalty = min(0.0, 1 - nearest / len(path))
    # The geometric mean by logarithms; smoothing keeps log 0 out.
    return float(np.exp(penalty + np.log(precision).mean()))


def effective_branches(weight: np.ndarray) -> float:
    """exp(H) of shares that need not sum to 1, from 1 to their number; NaN where all are 0."""
    total = float(weight.sum(dtype=np.float64))
    if total <= 0:
        return float("nan")
    # Rescaled: members' shares in the readout do not sum to 1, as most tokens are left out.
    share = weight.astype(np.float64) / total
    return float(np.exp(-xlogy(share, share).sum()))


def _grams(path: Path, n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(path[start : start + n].tolist()) for start in range(len(path) - n + 1))


def _matches(path: Path, references: Sequence[Path], n: int) -> int:
    """N-grams of the path found in a reference, each clipped to its largest count in one."""
    largest = Counter[tuple[int, ...]]()
    for reference in references:
        # `|` of counters takes the larger count, `&` the smaller: clipping by the best reference.
        largest |= _grams(reference, n)
    return (_grams(path, n) & largest).total()
