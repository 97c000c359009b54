"""What the checks look at: a few tiny forwards of one model, each run once, when first asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from tempo.capture import NOTHING, Capture
from tempo.decoding import Plan, Session, StepOutcome
from tempo.doctor.tolerances import Tolerances
from tempo.engine import decode
from tempo.guards import watched_positions
from tempo.model import LanguageModel, attention_as
from tempo.oracle import OracleRun, run_oracle
from tempo.policies import Policy, greedy
from tempo.positions import Offset, Place
from tempo.selection import Forced
from tempo.slots import SlotTable
from tempo.visibility import ISOLATED, ORDERED, VISIBLE, Queries, Relation, Sees

N_PROMPT = 12
HIDDEN_SLOT = N_PROMPT - 1
FRACTION = 0.25
GREEDY_STEPS = 4


@dataclass(frozen=True, slots=True)
class At(Place):
    """Members at given positions, wherever the base is."""

    position: tuple[float | int, ...]

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """The given ones."""
        return np.asarray(self.position[:width], np.float32)

    def next_base(self, base: int, width: int) -> int:
        """One past the largest."""
        return int(max(self.position)) + 1


@dataclass(frozen=True, slots=True)
class Slot(Relation):
    """One slot only."""

    slot: int

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True at that slot."""
        return np.tile(np.arange(len(table)) == self.slot, (len(queries), 1))


@dataclass(slots=True)
class Arm:
    """One plan and all that its steps left."""

    plan: Plan
    outcomes: list[StepOutcome] = field(default_factory=list)

    @property
    def table(self) -> SlotTable:
        """The finished slot table."""
        return self.outcomes[-1].decoding.table

    def members(self, step: int) -> Int[np.ndarray, " query"]:
        """Slots whose logits a step left: of the prompt, the last one."""
        slots = self.table.members(step)
        return slots[-1:] if step == 0 else slots

    def logits(self, step: int) -> Float32[np.ndarray, "query vocab"]:
        """Raw logits of a step."""
        return self.outcomes[step].logits.float().cpu().numpy()

    def weights(self, step: int) -> Float32[np.ndarray, "layer head query slot"]:
        """Captured rows of a step."""
        return self.outcomes[step].tensors["weights"]


@dataclass(frozen=True, slots=True)
class Plain:
    """What a forward of transformers alone gives, under eager attention.

    Attributes:
        logits: Of every sequence, in float32.
        attention: Of the first sequence.
    """

    logits: Float32[np.ndarray, "sequence slot vocab"]
    attention: Float32[np.ndarray, "layer head query slot"]


@dataclass(frozen=True, slots=True)
class Observed:
    """Arms that were decoded together, and the positions that reached the rotary modules."""

    arms: Mapping[str, Arm]
    positions: tuple[Float[np.ndarray, " row"], ...]


class Examination:
    """One model on the table.

    Attributes:
        settings: Attention setting of every module when the examination began.
        frequencies: Rotary frequencies then.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.settings = attention_settings(model)
        self.frequencies = rotary_frequencies(model)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Different tokens, none of them special."""
        tokenizer = self.model.tokenizer
        special: list[int] = [] if tokenizer is None else tokenizer.all_special_ids
        usable = np.setdiff1d(np.arange(self.model.vocab_size), special)
        return tuple(np.random.default_rng(0).choice(usable, 64, replace=False).tolist())

    @cached_property
    def prompt(self) -> tuple[int, ...]:
        """The prompt of every arm but one."""
        return self.tokens[:N_PROMPT]

    @cached_property
    def reach(self) -> int:
        """The largest position to go to: beyond every window if the model allows it."""
        widths = [window for window in self.model.windows if window]
        wanted = min(2 * max([*widths, 256]), self.model.max_positions - 1)
        while not self.frequencies_hold(wanted):
            wanted //= 2
        return wanted
