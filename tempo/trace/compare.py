"""The differences between two traces, and the check that a twin changed one rule only."""

from collections.abc import Collection, Mapping

import numpy as np

from tempo.errors import TwinError
from tempo.policy.slots import SlotTable
from tempo.trace.trace import Trace

AXES = ("model", "tokens", "positions", "relation", "bias", "weights", "deaths", "edits")
"""Everything in which a twin can differ from its reference."""
_WEIGHT_RTOL = 1e-5
"""Rounding of weights in a replay, which computes them from logs of recorded probabilities."""


def changed_axes(reference: Trace, twin: Trace) -> frozenset[str]:
    """The axes in which two traces differ, as recorded: what reached the model.

    Where the tokens differ, positions are compared set by set as far as both are the same for all
    members, and the relation and the bias cannot be compared.
    """
    ours, theirs = reference.slots, twin.slots
    differs = {
        "model": _identity(reference) != _identity(twin),
        "tokens": not np.array_equal(ours.token, theirs.token)
        or not np.array_equal(ours.step, theirs.step),
        "weights": ours.weight.shape != theirs.weight.shape
        or not np.allclose(ours.weight, theirs.weight, rtol=_WEIGHT_RTOL, atol=0),
        "deaths": not np.array_equal(ours.died_at_step, theirs.died_at_step),
        # Recorded by the SHA-256 of their arrays, so equal records are equal edits.
        "edits": reference.header.run.get("edits") != twin.header.run.get("edits"),
    }
    if differs["tokens"]:
        differs["deaths"] = bool((~ours.alive).any() or (~theirs.alive).any())
        differs["positions"] = _bases(ours) != _bases(theirs)
    else:
        steps = [step for step in range(reference.n_steps + 1) if _has_rows(reference, twin, step)]
        differs["positions"] = not np.array_equal(ours.position, theirs.position)
        differs["relation"] = any(
            not np.array_equal(reference.visible(step), twin.visible(step)) for step in steps
        )
        differs["bias"] = any(_bias_differs(reference, twin, step) for step in steps)
    return frozenset(axis for axis in AXES if differs.get(axis))


def check_axes(reference: Trace, twin: Trace, allowed: Collection[str]) -> frozenset[str]:
    """The axes in which a twin differs.

    Raises:
        TwinError: It differs in one that was not to change.
    """
    found = changed_axes(reference, twin)
    if found - set(allowed):
        raise TwinError(
            f"expected {twin.header.arm!r} to differ from {reference.header.arm!r} on prompt "
            f"{reference.header.prompt_id!r} in {_listed(allowed) or 'nothing'} only, got "
            f"{_listed(found)}; replay the reference again, changing one thing"
        )
    return found


def check_same_model(trace: Trace, facts: Mapping[str, object]) -> None:
    """Refuse to replay a trace on another model than made it.

    Args:
        facts: `fingerprint` and `dtype` of the model at hand.

    Raises:
        TwinError: The weights or the dtype differ.
    """
    # Not the name: a model can be renamed, or changed under the same name.
    for name in ("fingerprint", "dtype"):
        made_with, here = trace.header.model[name], facts[name]
        if made_with != here:
            raise TwinError(
                f"expected the model that made the trace ({name} {str(made_with)[:12]}), got one "
                f"with {name} {str(here)[:12]}; load {trace.header.model['name']} as it was"
            )


def _identity(trace: Trace) -> tuple[object, ...]:
    model = trace.header.model
    return (model["fingerprint"], model["dtype"], trace.layers, trace.heads)


def _bases(slots: SlotTable) -> list[float]:
    """The lowest position of every set."""
    steps = range(slots.n_steps + 1)
    # Sets of different width cannot be compared member by member; their bases can.
    return [float(slots.position[slots.members(step)].min()) for step in steps]


def _has_rows(reference: Trace, twin: Trace, step: int) -> bool:
    return reference.has_rows(step) and twin.has_rows(step)


def _bias_differs(reference: Trace, twin: Trace, step: int) -> bool:
    added = [trace.bias(step) for trace in (reference, twin)]
    # No bias and a bias of 0 are the same to the model.
    ours, theirs = (np.zeros(1, np.float32) if one is None else one for one in added)
    return bool((ours != theirs).any())


def _listed(axes: Collection[str]) -> str:
    return ", ".join(axis for axis in AXES if axis in axes)
