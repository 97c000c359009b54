"""Short decodings that the checks read; each arm isolates one property of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int

from tempo.engine.state import SequencePlan, StepOutcome
from tempo.policy.positions import Offset, Place
from tempo.policy.presets import Policy, greedy
from tempo.policy.selection import Forced
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import ISOLATED, ORDERED, VISIBLE, Queries, Relation, Sees

# Short, so that all arms decode in seconds on a CPU. 64 tokens are enough for the widest arm,
# `jumping`, whose members are all different.
N_PROMPT = 12
N_TOKENS = 64
HIDDEN_SLOT = N_PROMPT - 1
"""The slot that the arm `hidden` does not see: the last of the prompt."""
# A power of two: every position with this offset is exact in float32.
FRACTION = 0.25
GREEDY_STEPS = 4


@dataclass(frozen=True, slots=True)
class At(Place):
    """Members at fixed positions; the base position is ignored."""

    position: tuple[float | int, ...]

    def positions(self, base: int, width: int) -> Float32[np.ndarray, " member"]:
        """The first `width` positions."""
        return np.asarray(self.position[:width], np.float32)

    def next_base(self, base: int, width: int) -> int:
        """One past the largest position."""
        return int(max(self.position)) + 1


@dataclass(frozen=True, slots=True)
class Slot(Relation):
    """Every query sees one slot and no other."""

    slot: int

    def sees(self, table: SlotTable, queries: Queries) -> Sees:
        """True at that slot."""
        return np.tile(np.arange(len(table)) == self.slot, (len(queries), 1))


@dataclass(slots=True)
class Arm:
    """One sequence plan and the outcomes of its steps."""

    plan: SequencePlan
    outcomes: list[StepOutcome] = field(default_factory=list)

    @property
    def table(self) -> SlotTable:
        """The finished slot table."""
        return self.outcomes[-1].decoding.table

    def members(self, step: int) -> Int[np.ndarray, " query"]:
        """Slots with recorded logits in a step; for the prompt only its last slot."""
        slots = self.table.members(step)
        return slots[-1:] if step == 0 else slots

    def logits(self, step: int) -> Float32[np.ndarray, "query vocab"]:
        """Raw logits of a step."""
        return self.outcomes[step].logits.float().cpu().numpy()

    def weights(self, step: int) -> Float32[np.ndarray, "layer head query slot"]:
        """Captured rows of a step."""
        return self.outcomes[step].tensors["weights"]


def plans(
    tokens: Sequence[int], *, windows: Sequence[int | None], reach: int
) -> dict[str, SequencePlan]:
    """Every arm, by name.

    Args:
        tokens: N_TOKENS different tokens.
        windows: Sliding windows of the model's layers.
        reach: The largest position to use.
    """
    prompt, others = tuple(tokens[:N_PROMPT]), tuple(tokens[N_PROMPT:])
    # Forced tokens: what a random or untrained model would choose must not decide what is checked.
    a, b, c, d, e, f, stranger = others[:7]
    jumps = jumping_positions(windows, reach)
    isolated = Policy(Forced(((a, b, c), (d,))))
    policies = {
        "greedy": greedy(),
        "visible": Policy(Forced(((a, b, c), (d, e), (f,))), see=VISIBLE),
        "isolated": isolated,
        # Differs from `isolated` in the last prompt token only, so any change in a member's logits
        # shows that it reads the prompt (transformers drops it where positions repeat without a
        # mask).
        "another prompt": isolated,
        "ordered": Policy(Forced(((a, b, c),)), see=ORDERED),
        "another last member": Policy(Forced(((a, b, stranger),)), see=ORDERED),
        "fractional": Policy(Forced(((a, b, c), (d,))), Offset(FRACTION)),
        "hidden": Policy(Forced(((a, b, c), (d,))), see=ISOLATED & ~Slot(HIDDEN_SLOT)),
        "jumping": Policy(Forced((others[: len(jumps)],)), At(jumps), ORDERED),
    }
    prompts = dict.fromkeys(policies, prompt) | {"another prompt": (*prompt[:-1], stranger)}
    return {
        # An end-of-sequence token must not shorten the greedy arm: every check expects its steps.
        name: SequencePlan(name, name, prompts[name], policy, GREEDY_STEPS, "ignore")
        for name, policy in policies.items()
    }


def jumping_positions(windows: Sequence[int | None], reach: int) -> tuple[float, ...]:
    """Positions whose distances to the last one are just inside and outside every window."""
    # Powers of two also find a window that the configuration does not declare. The half position
    # separates a window measured in positions from one measured in slots.
    distances = {0.0} | {2.0**power for power in range(20)}
    for window in {window for window in windows if window}:
        distances |= {window - 1.0, window - 0.5, float(window), window + 1.0}
    near = sorted(distance for distance in distances if distance <= reach - N_PROMPT)
    return tuple(reach - distance for distance in reversed(near))
