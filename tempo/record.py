"""One step of the slot table, of the choice and of the readout, as tensors for the trace."""

from collections.abc import Sequence

import numpy as np

from tempo.capture import Tensors
from tempo.policy.pruning import DECISIONS, Decision
from tempo.policy.selection import DROP_REASONS, Dropped
from tempo.policy.slots import COLUMNS, SlotTable
from tempo.reading import Distribution

NO_MARGINS = (float("nan"), float("nan"))


def step_tensors(
    table: SlotTable,
    step: int,
    readout: Distribution,
    *,
    dropped: Sequence[Dropped] = (),
    margins: tuple[float, float] = NO_MARGINS,
    decisions: Sequence[Decision] = (),
) -> Tensors:
    """Everything of a step but its attention.

    Args:
        readout: The distribution after the step.
        margins: Of the choice of this step's set: top-2 log-probability gap, gap to tau.
        decisions: What the prune rule decided once the step had run.
    """
    members = table.members(step)
    slots = {f"slots/{name}": getattr(table, name)[members] for name in COLUMNS}
    return (
        slots
        | {
            "readout/token": readout.token,
            "readout/log_probability": readout.top_log_probability,
            "readout/tail_mass": np.float64(readout.tail_mass).reshape(1),
            "readout/entropy_nats": np.float64(readout.entropy_nats).reshape(1),
            "margins": np.asarray(margins, np.float64),
            "dropped/token": np.asarray([item.token for item in dropped], np.int64),
            "dropped/probability": np.asarray([item.probability for item in dropped], np.float32),
            "dropped/reason": np.asarray(
                [DROP_REASONS.index(item.reason) for item in dropped], np.int8
            ),
        }
        | _judged(decisions)
    )


def _judged(decisions: Sequence[Decision]) -> Tensors:
    if not decisions:
        return {}
    return {
        "judged/slot": np.asarray([item.slot for item in decisions], np.int32),
        "judged/value": np.asarray([item.value for item in decisions], np.float32),
        "judged/reason": np.asarray([DECISIONS.index(item.reason) for item in decisions], np.int8),
    }
