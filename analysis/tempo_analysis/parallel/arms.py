"""Which arms of a run are parallel, which is the null, and how it inherits the labels of sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from tempo.errors import InputError
from tempo.policy.slots import SlotTable
from tempo.trace.run import Run
from tempo.vocabulary import PROMPT_STEP

Labels = Bool[np.ndarray, " step"]
"""For each step from 0, whether its slot is labelled as a parallel set."""


def inherited_labels(arm: SlotTable, greedy: SlotTable) -> Labels:
    """For each step that both runs have (from 0): was the arm's set of width >= 2?

    Raises:
        InputError: The greedy run holds a set of width >= 2, so it is no null.
    """
    if (greedy.width >= 2).any():
        raise InputError("expected the null run to have one slot in each step, got wider sets")
    n_steps = min(arm.n_steps, greedy.n_steps)
    # The width when the set was written, pruned members included; cut at n_steps + 1, because entry
    # 0 is the prompt.
    labels = np.bincount(arm.step, minlength=n_steps + 1)[: n_steps + 1] >= 2
    # The prompt has many slots in one step, but is no parallel set.
    labels[PROMPT_STEP] = False
    return labels


BEFORE_AXES = ("relation",)
"""Allowed differences in runs that recorded no axes; their only replay is `visible@isolated`."""


@dataclass(frozen=True, slots=True)
class Arms:
    """The role of each arm.

    Attributes:
        free: Arms that chose their own tokens, in the order of the run.
        greedy: The free arm of width 1 that serves as the null; None where the run has none.
        replays: Twin to the arm whose sets were forced on it.
        axes: Twin to what may differ from that arm, as in `tempo.trace.compare.AXES`.
        alone: The arm of which every member of every set was decoded without its siblings too;
            None where the run holds no such twins.
    """

    free: tuple[str, ...]
    greedy: str | None
    replays: Mapping[str, str]
    axes: Mapping[str, tuple[str, ...]]
    alone: str | None

    @property
    def parallel(self) -> tuple[str, ...]:
        """Free arms other than the null."""
        return tuple(arm for arm in self.free if arm != self.greedy)


def arms_of(run: Run) -> Arms:
    """Read the parts from the settings and policies of a run."""
    replays = dict(run.settings.get("replays", {}))
    axes = run.settings.get("axes", {})
    alone = run.settings.get("alone_of")
    # Replays and members alone were fed sets that another arm chose: no free runs.
    fed = {*replays, f"alone@{alone}"}
    free = tuple(arm for arm in run.arms if arm not in fed)
    greedy = [arm for arm in free if _is_greedy(arm, run.policies.get(arm, {}))]
    return Arms(
        free=free,
        greedy=greedy[0] if greedy else None,
        replays=replays,
        axes={twin: tuple(axes.get(twin, BEFORE_AXES)) for twin in replays},
        alone=alone,
    )


def pair_name(source: str, replay: str) -> str:
    """`isolated|visible` for an arm `visible@isolated` that replayed `isolated`."""
    return f"{source}|{replay.partition('@')[0]}"


def _is_greedy(arm: str, policy: Mapping[str, Any]) -> bool:
    select = policy.get("select")
    # Runs from before policies were recorded identify it by the name of the arm alone.
    return arm == "greedy" if not isinstance(select, Mapping) else select.get("rule") == "Greedy"
