"""The plan, the state and the step outcomes of sequences that are decoded."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from tempo.engine.capture import NOTHING, Capture, Tensors
from tempo.engine.next_distribution import Distribution
from tempo.engine.value_norms import Projections, projections
from tempo.models.language_model import LanguageModel
from tempo.policy.edits import Edit
from tempo.policy.next_set import Nodes
from tempo.policy.presets import Policy
from tempo.policy.slots import SlotTable
from tempo.vocabulary import TOP_READOUT


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """One prompt under one arm, before it is decoded.

    Attributes:
        eos: "stop" ends at an end-of-sequence token that ranks first; "ignore" never selects one.
        capture_from_step: First step whose attention rows are captured.
    """

    prompt_id: str
    arm: str
    token_ids: tuple[int, ...]
    policy: Policy
    steps: int
    eos: str = "stop"
    capture_from_step: int = 0


@dataclass(frozen=True, slots=True)
class Decoding:
    """One sequence in the middle of being decoded.

    Attributes:
        table: Slots written so far.
        base: Position base of the next set.
        readout: The distribution that chooses the next set.
        cached_slots: Slots in the cache; a slot's index here is its column in the cache.
        nodes: Prediction of each unpruned member of the last set; None where no rule needs it.
        stopped: Why decoding ended: steps, eos, forced or context; empty before.
    """

    plan: SequencePlan
    table: SlotTable
    base: int
    readout: Distribution
    cached_slots: Int64[np.ndarray, " cached"]
    nodes: Nodes | None = None
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The outcome of one step of one sequence.

    Attributes:
        number: Place of the sequence among the plans.
        logits: Raw logits of the step's rows, pruned ones included; of the prompt, those of its
            last slot only.
        tensors: Everything for the trace.
        facts: Scaling, window, soft cap and sinks of the captured layers.
    """

    number: int
    step: int
    decoding: Decoding
    logits: Float[Tensor, "query vocab"]
    tensors: Tensors
    facts: dict[str, object]


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """Settings and state that are the same in every step.

    Attributes:
        readout_size: Tokens of each readout to keep; all where None.
        on_step: Called for every (step, sequence) as soon as the step is complete.
        edits: What is changed in every forward.
        edited: For each edit the index of the sequence it is made in; if empty, every edit is
            made in all of them.
        applied_edits: Indices of the edits that have applied to something.
        projections: Output projections of the captured layers, where values are captured.
    """

    model: LanguageModel
    capture: Capture = NOTHING
    readout_size: int | None = TOP_READOUT
    on_step: Callable[[StepOutcome], None] = lambda _: None
    edits: tuple[Edit, ...] = ()
    edited: tuple[int, ...] = ()
    applied_edits: set[int] = field(default_factory=set)
    projections: Projections = field(init=False)

    def __post_init__(self) -> None:
        # The dataclass is frozen, and `projections` is computed once from two other fields.
        object.__setattr__(self, "projections", projections(self.model, self.capture))

    def within(self) -> list[int | None]:
        """For each edit the number of the sequence it is made in; None is all."""
        return list(self.edited) or [None] * len(self.edits)
