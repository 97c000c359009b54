"""Hides slots from one step, layer by layer, and says how its readout changes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool

from analysis.member.course import KnockedOut
from analysis.member.lens import divergence
from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.decode import advance
from tempo.engine.edits import check_touched
from tempo.engine.state import DecodeContext
from tempo.models.language_model import LanguageModel, attention_as
from tempo.policy.edits import KnockOut
from tempo.run.replay import SetFork

TOGETHER = 8
"""Copies of a sequence that run together, each with another edit: more are no faster, and each has
a cache of its own."""


def knocked_out(
    model: LanguageModel, fork: SetFork, slot: int, seen: Bool[np.ndarray, " layer"]
) -> KnockedOut | None:
    """What the readout of the next step loses where it cannot see one slot.

    Copies of the sequence run together, each with its own edit, beside one without: all are
    rounded alike.

    Args:
        fork: The sequence before that step.
        seen: Layers in which a query of the step may see the slot.

    Returns:
        None where no layer shows it.
    """
    layers = np.flatnonzero(seen).tolist()
    if not layers:
        return None
    every = tuple(range(model.n_layers))
    step = fork.step + 1
    edits = [
        KnockOut(layers=hidden, slots=(slot,), steps=(step,))
        for hidden in (every, *((layer,) for layer in layers))
    ]
    effects = [
        effect
        for start in range(0, len(edits), TOGETHER)
        for effect in _effects(model, fork, edits[start : start + TOGETHER])
    ]
    one_layer = np.full(model.n_layers, np.nan)
    one_layer[layers] = effects[1:]
    return KnockedOut(one_layer, effects[0])


def _effects(model: LanguageModel, fork: SetFork, edits: Sequence[KnockOut]) -> list[float]:
    """KL(readout || edited readout) for every edit, in nats."""
    copies = len(edits) + 1
    session = DecodeContext(model, edits=tuple(edits), edited=tuple(range(1, copies)))
    with torch.inference_mode(), attention_as(model.hf, PACKED_ATTENTION):
        after = advance(
            session,
            [fork.decoding] * copies,
            cache=fork.cache.take([0] * copies),
            step=fork.step + 1,
        )
    check_touched(session.edits, session.touched)
    readouts = np.stack([one.readout.log_probability for one in after])
    return divergence(readouts[:1], readouts[1:]).tolist()
