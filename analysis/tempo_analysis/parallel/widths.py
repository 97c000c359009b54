"""Width of sets, and whether the text ends in a loop."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from tempo.errors import InputError
from tempo.policy.selection import DROP_REASONS
from tempo.policy.slots import SlotTable
from tempo.trace.trace import Trace
from tempo.vocabulary import PROMPT_STEP
from tempo_analysis.stats.averages import aligned_steps
from tempo_analysis.stats.intervals import SEED, Curve, Interval, curve, estimate_with_interval

GRAM = 3
NO_WIDTH = 1.0
"""Mean width where nothing is parallel."""


@dataclass(frozen=True, slots=True)
class PromptWidths:
    """Sets of one prompt.

    Attributes:
        width: Slots written by each step.
        mean_width: Mean of them; NaN where nothing was generated.
        parallel_share: Share of steps with width >= 2; NaN where nothing was generated.
        repetition: Share of the trigrams of the top path that occurred before in it; NaN where the
            path is shorter than three tokens.
        dropped: Tokens left out of the sets, by reason.
        stopped: Why decoding ended.
    """

    width: Int64[np.ndarray, " step"]
    mean_width: float
    parallel_share: float
    repetition: float
    dropped: Mapping[str, int]
    stopped: str


@dataclass(frozen=True, slots=True)
class Widths:
    """Sets of one arm; a description, not a test.

    Attributes:
        width_by_step: Mean width over the prompts that reached the step.
        parallel_share_by_step: Share of those prompts whose set there has width >= 2.
        n_sets: Sets of all prompts together.
        n_parallel_sets: Those of width >= 2.
        dropped: Tokens left out of the sets, by reason, over all prompts.
        stopped: Number of prompts that ended for each reason.
    """

    width_by_step: Curve
    parallel_share_by_step: Curve
    n_sets: int
    n_parallel_sets: int
    dropped: Mapping[str, int]
    stopped: Mapping[str, int]


def prompt_widths(trace: Trace) -> PromptWidths:
    """Describe the sets of one prompt."""
    # [1:] leaves the prompt out; minlength keeps the slice valid for an empty table.
    width = np.bincount(trace.slots.step, minlength=1)[1:].astype(np.int64)
    reasons = [
        token.reason for step in range(1, trace.n_steps + 1) for token in trace.dropped(step)
    ]
    return PromptWidths(
        width=width,
        mean_width=float(width.mean()) if len(width) else float("nan"),
        parallel_share=float((width >= 2).mean()) if len(width) else float("nan"),
        repetition=repetition(top_path(trace.slots)),
        dropped={reason: reasons.count(reason) for reason in DROP_REASONS},
        stopped=trace.header.stopped,
    )


def widths(prompts: Sequence[PromptWidths], *, seed: int = SEED) -> Widths:
    """Combine prompts."""
    table = aligned_steps([prompt.width.astype(np.float64) for prompt in prompts])
    x = np.arange(1, table.shape[1] + 1)
    # NaN >= 2 is False, which would count prompts that ended earlier as sets of width 1.
    parallel = np.where(np.isnan(table), np.nan, table >= 2)
    return Widths(
        width_by_step=curve(x, table, seed=seed),
        parallel_share_by_step=curve(x, parallel, seed=seed),
        n_sets=sum(len(prompt.width) for prompt in prompts),
        n_parallel_sets=sum(int((prompt.width >= 2).sum()) for prompt in prompts),
        dropped=dict(sum((Counter(prompt.dropped) for prompt in prompts), Counter())),
        stopped=dict(Counter(prompt.stopped for prompt in prompts)),
    )


def top_path(table: SlotTable) -> Int64[np.ndarray, " step"]:
    """Token of the top-ranked member of every set, without the prompt."""
    return table.token[(table.rank == 0) & (table.step != PROMPT_STEP)]


def repetition(path: Int64[np.ndarray, " step"]) -> float:
    """Share of trigrams that occurred before in the path; NaN with fewer than three tokens."""
    grams = [tuple(path[start : start + GRAM].tolist()) for start in range(len(path) - GRAM + 1)]
    # Each different trigram is new once, all others occurred before.
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


LONGEST_PERIOD = 4
SMALLEST_REPEATS = 3
"""A loop is an n-gram, n = 1 to 4, that fills the end of the path at least three times in a row."""

TAIL = 32
REPEATED_SHARE = 0.5
"""A path is repetitive where this share of the trigrams of its last 32 tokens are not new there."""

NEVER = 0
"""In place of a step or a period where there is none."""


@dataclass(frozen=True, slots=True)
class PromptCollapse:
    """How the path of one prompt ends: the top-ranked member of each set, the prompt left out.

    A path is collapsed if it ends in a loop or its tail is repetitive; the text before the tail,
    and loops that the text leaves again, do not count. An end-of-sequence token that ended the run
    is left out.

    Attributes:
        loop_step: Step of the first token of the loop; 0 where the path ends in none.
        period: Length of the n-gram that repeats, the shortest there is; 0 without a loop.
        repeated_share: Share of the trigrams of the tail that occurred before in it; NaN where the
            path is shorter than three tokens.
        repeated_step: Step of the first token of the first trigram of a repetitive tail that is not
            new there; 0 where the tail is not repetitive.
    """

    loop_step: int
    period: int
    repeated_share: float
    repeated_step: int

    @property
    def is_collapsed(self) -> bool:
        """Whether the path ends in a loop or its tail is repetitive."""
        return self.loop_step != NEVER or self.repeated_step != NEVER

    @property
    def step(self) -> int:
        """Step at which the repetition starts, the earlier where both are found; 0 if none."""
        found = [step for step in (self.loop_step, self.repeated_step) if step != NEVER]
        return min(found, default=NEVER)


@dataclass(frozen=True, slots=True)
class Collapse:
    """Which prompts of an arm collapsed, and where.

    Attributes:
        is_collapsed: For each prompt.
        step: Step at which its repetition starts; 0 where there is none.
        period: Period of its loop; 0 where the path ends in none.
        rate: Share of prompts that collapsed.
    """

    is_collapsed: Bool[np.ndarray, " prompt"]
    step: Int64[np.ndarray, " prompt"]
    period: Int64[np.ndarray, " prompt"]
    rate: Interval


def prompt_collapse(trace: Trace) -> PromptCollapse:
    """Find a loop or repetition at the end of the top path of one trace, at any level."""
    path = top_path(trace.slots)
    # The end-of-sequence token would break any loop that it ends.
    return path_collapse(path[:-1] if trace.header.stopped == "eos" else path)


def path_collapse(path: Int64[np.ndarray, " step"]) -> PromptCollapse:
    """Find a loop or repetition at the end of a path of tokens whose first token is step 1."""
    # The shortest period first: a loop of one token is also one of two, three and four.
    starts = ((period, _loop_start(path, period)) for period in range(1, LONGEST_PERIOD + 1))
    found = [
        (start, period)
        for period, start in starts
        # From `start` on the path has that period; three full periods make it a loop.
        if len(path) - start >= SMALLEST_REPEATS * period
    ]
    # NEVER - 1, because 1 is added below: an index of the path, from 0, becomes a step, from 1.
    start, period = found[0] if found else (NEVER - 1, NEVER)
    tail = path[-TAIL:]
    share = repetition(tail)
    # NaN (a short path) compares as False.
    is_repetitive = share >= REPEATED_SHARE
    first = len(path) - len(tail) + _first_repeated(tail) if is_repetitive else NEVER - 1
    return PromptCollapse(start + 1, period, share, first + 1)


def collapse(prompts: Sequence[PromptCollapse], *, seed: int = SEED) -> Collapse:
    """Combine the prompts of one arm."""
    collapsed = np.array([prompt.is_collapsed for prompt in prompts], bool)
    return Collapse(
        is_collapsed=collapsed,
        step=np.array([prompt.step for prompt in prompts], np.int64),
        period=np.array([prompt.period for prompt in prompts], np.int64),
        rate=estimate_with_interval(collapsed.astype(np.float64), seed=seed),
    )


def without_collapsed(
    values: Float[np.ndarray, "prompt *cell"], *arms: Collapse
) -> Float64[np.ndarray, "prompt *cell"]:
    """The values with NaN, which is "no data", for every prompt that collapsed in any of the arms.

    The intervals of `stats.intervals` leave these prompts out and count them. A comparison of
    arms names all of them here, so that every arm keeps the same prompts.

    Raises:
        InputError: An arm has another number of prompts.
    """
    kept = np.array(values, np.float64)
    for arm in arms:
        if len(arm.is_collapsed) != len(kept):
            raise InputError(
                f"expected one value for each of {len(arm.is_collapsed)} prompts, got "
                f"{len(kept)}; give the prompts of the arm in its order"
            )
        # In every arm alike: dropping a prompt from one arm only would unpair the arms.
        kept[arm.is_collapsed] = np.nan
    return kept


def _loop_start(path: Int64[np.ndarray, " step"], period: int) -> int:
    """First index from which every token equals the one a period later."""
    differs = np.flatnonzero(path[:-period] != path[period:])
    # One after the last place where the path differs from itself a period later.
    return int(differs[-1]) + 1 if differs.size else 0


def _first_repeated(tail: Int64[np.ndarray, " step"]) -> int:
    """Index of the first trigram that occurred before."""
    grams = [tuple(tail[start : start + GRAM].tolist()) for start in range(len(tail) - GRAM + 1)]
    return next(start for start, gram in enumerate(grams) if gram in grams[:start])
