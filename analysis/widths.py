"""How wide are the sets of an arm, and does its text collapse into repetition?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from analysis.averages import aligned_steps
from analysis.statistics import SEED, Curve, curve
from tempo.policy.selection import DROP_REASONS
from tempo.policy.slots import SlotTable
from tempo.trace.trace import Trace
from tempo.vocabulary import PROMPT_STEP

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
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")
