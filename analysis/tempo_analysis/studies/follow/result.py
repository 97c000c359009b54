"""One member of a parallel set, followed through the layers.

One member of one run is a single case, so there are no intervals and no claims about other members.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo_analysis.studies.follow.trajectory import Control, Course


@dataclass(frozen=True, slots=True)
class MemberNumbers:
    """The measures of a member, of its siblings, of the member alone and of a prompt slot.

    Attributes:
        model: Identity of the model, as in a trace.
        lattice: The run in one line.
        step: The step that wrote the set.
        width: Members of the set.
        later: The steps after it; the first is the next step.
        n_queries: Queries of each.
        chosen: Why this member was chosen.
        siblings: In rank order; empty if not requested.
        alone: The same slot table without the member's siblings, run again; None where there is no
            such twin.
        no_alone: Why there is none.
        chance: 1 / visible slots, mean over the queries that may see the member.
        odds_law: Weight predicted if it and its siblings keep the odds that they have alone; exact
            in layer 0 without a bias. NaN if there is no twin alone.
        own_change: Norm of (its state minus its state alone) / norm of its state alone, by depth;
            NaN if there is no twin alone.
        next_token: The token the run went on with: the top member of the next set.
        control: None where the prompt holds no slot to compare with.
        no_control: Why there is none.
        no_values: Why norms of values are missing; empty if they are not.
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
        # There is one more depth than layers: depth 0 is the embedding.
        return len(self.member.norm) - 1
