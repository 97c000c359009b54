"""One member of a parallel set, followed through the layers, as one document.

One member of one run is one case: there is no interval, and nothing is claimed beyond it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from tempo_analysis.parallel.results import plain
from tempo_analysis.report.findings import Findings
from tempo_analysis.report.numbers import number
from tempo_analysis.studies.follow.trajectory import Control, Course, correlation, quoted
from tempo_analysis.studies.follow.verdict import (
    attention_sentences,
    correlation_sentence,
    knock_out_sentences,
    lens_sentences,
    state_sentences,
)

KIND = "tempo-follow"
FORMAT = 1
"""Of the document."""
AXES = {
    "attention": "later step, layer, head",
    "chance": "later step, layer",
    "odds_law": "later step, layer, head",
    "norm, own_change, lens": "depth: 0 is the embedding, d the stream after d layers",
    "value_norm": "layer, head",
    "one_layer_nats": "layer",
}
"""Of the arrays in the document."""


@dataclass(frozen=True, slots=True, repr=False)
class Followed(Findings):
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

    def sentences(self) -> list[str]:
        """What the numbers say, generated from them."""
        member, alone, siblings = self.member, self.alone, self.siblings
        which = (
            f"Slot {member.slot}, {quoted(member.text)}, is member {member.rank + 1} of the "
            f"{self.width} of set {self.step} (probability {number(member.probability)}); "
            f"{self.chosen}."
        )
        missing = {
            "There is no twin in which it is alone": self.no_alone,
            "There is no prompt slot beside it": self.no_control,
            "There are no norms of values": self.no_values,
        }
        return [
            which,
            *attention_sentences(
                member,
                alone,
                chance=self.chance[0],
                odds_law=self.odds_law[0],
                n_queries=self.n_queries[0],
            ),
            *state_sentences(member, self.own_change),
            *lens_sentences(member.lens, self.next_text),
            *knock_out_sentences(member, siblings, alone, self.control),
            correlation_sentence(member, self.control),
            *(f"{what}: {why}." for what, why in missing.items() if why),
        ]

    def document(self) -> dict[str, Any]:
        """The content of `follow.json`: plain JSON values, `None` where there is no data."""
        named = {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}
        correlations = {
            "member": correlation(self.member),
            "siblings": [correlation(each) for each in self.siblings],
            "alone": None if self.alone is None else correlation(self.alone),
            "control": None if self.control is None else correlation(self.control),
        }
        return {
            "kind": KIND,
            "format": FORMAT,
            "axes": AXES,
            **named,
            "settles_at": self.member.lens.settles_at,
            "rank_correlations": plain(correlations),
            "n_layers": self.n_layers,
            "sentences": self.sentences(),
        }

    def json(self) -> str:
        """The document as text."""
        return json.dumps(self.document(), allow_nan=False, indent=1) + "\n"
