"""One member of a parallel set, followed through the layers.

One member of one run is one case: there is no interval, and nothing is claimed beyond it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo_analysis.studies.follow.trajectory import Control, Course


@dataclass(frozen=True, slots=True)
class MemberNumbers:
    """A member, its siblings, the member alone, and a prompt slot beside them.

    Attributes:
        model: What identifies the model, as in a trace.
        lattice: The run in one line.
        step: The step that wrote the set.
        width: Members of the set.
        later: The steps after it; the first is the next step.
        n_queries: Queries of each.
        chosen: Why this member.
        siblings: In rank order; empty where they were not asked for.
        alone: The same slot table without the member's siblings, run again; None where there is no
            such twin.
        no_alone: Why there is none.
        chance: 1 / visible slots, mean over the queries that may see the member.
        odds_law: What it would get if the odds that it and its siblings have alone stayed; exact in
            layer 0 without a bias. NaN where there is no twin alone.
        own_change: Norm of its state less that alone, over the latter, by depth; NaN likewise.
        next_token: The token the run went on with: the top member of the next set.
        control: None where the prompt holds no slot to compare with.
        no_control: Why there is none.
        no_values: Why norms of values are missing; empty where they are there.
        lens_error: Largest difference of a logit to the lens of the last state.
        replay_error: Largest difference of a recorded log-probability to that of the replay.
    """

    model: Mapping[str, Any]
    prompt_id: str
    prompt: str
    arm: str
    lattice: str
    policy: Mapping[str, Any] = field(repr=False)
    step: int
    width: int
    later: tuple[int, ...]
    n_queries: tuple[int, ...]
    chosen: str
    member: Course
    siblings: tuple[Course, ...]
    alone: Course | None
    no_alone: str
    chance: Float64[np.ndarray, "later layer"]
    odds_law: Float64[np.ndarray, "later layer head"]
    own_change: Float64[np.ndarray, " depth"]
    next_token: int
    next_text: str
    control: Control | None
    no_control: str
    no_values: str
    lens_error: float
    replay_error: float

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.member.norm) - 1
