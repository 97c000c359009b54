"""Checks of positions: sliding windows, fractional positions, translation, RoPE type."""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float32

from tempo.doctor.arms import N_PROMPT
from tempo.doctor.diagnosis import Check, check_verdict, not_applicable
from tempo.doctor.examination import MOVED, Examination, rotary_frequencies
from tempo.oracle import run_oracle

MEASURABLE = 600
"""The widest window to measure in eager attention, which needs a token for each position."""
SHIFT = 100

Width = float | int | None
"""Nearest distance that is not seen; None if all are, NaN if a farther one is."""


def sliding_windows(patient: Examination) -> Check:
    """The window of each layer is as declared, in the engine and in eager attention."""
    model, edge = patient.model, patient.reach - N_PROMPT
    # A window wider than the farthest query cannot be seen: it must look like none.
    wanted = [window if window and window <= edge else None for window in model.windows]
    engine, eager = _engine_widths(patient), _eager_widths(patient)
    layers = zip(model.layer_types, model.windows, engine, eager or engine, strict=True)
    detail = "; ".join(
        f"{kind}: declared {declared or 'none'}, engine {_text(width, edge)}, "
        + (f"eager {_text(plain, edge)}" if eager else "eager not measured")
        for kind, declared, width, plain in dict.fromkeys(layers)
    )
    healthy = engine == wanted and (eager is None or eager == wanted)
    return check_verdict("sliding windows", healthy, f"{detail} (in positions)", trap=4)


def _engine_widths(patient: Examination) -> list[Width]:
    """Window of each layer, from the row of the last member of the arm `jumping`."""
    jumping = patient.arms["jumping"]
    behind = jumping.table.position[-1] - jumping.table.position
    # A weight can underflow to 0 in one head; a slot is seen if any head of the layer weighs it.
    return [_width(row.any(0), behind) for row in jumping.weights(1)[:, :, -1] > 0]


def _eager_widths(patient: Examination) -> list[Width] | None:
    """Window of each layer in plain text; None if none is declared or it is too wide."""
    widest = max(filter(None, patient.model.windows), default=None)
    if widest is None or widest > min(MEASURABLE, patient.reach - N_PROMPT):
        return None
    # Two more than the window: distances `widest` and `widest + 1` must both be unseen.
    tokens = np.resize(patient.tokens, widest + 2)
    rows = patient.plain([tokens.tolist()]).attention[:, :, -1]
    behind = np.arange(widest + 2, dtype=np.float32)[::-1].copy()
    return [_width(row.any(0), behind) for row in rows > 0]


def _width(seen: Bool[np.ndarray, " slot"], behind: Float32[np.ndarray, " slot"]) -> Width:
    if seen.all():
        return None
    # A window is one cut: something seen beyond the nearest unseen distance is another pattern.
    nearest = float(behind[~seen].min())
    return math.nan if (behind[seen] > nearest).any() else nearest


def _text(width: Width, edge: int) -> str:
    return f"none up to {edge}" if width is None else f"{width:g}"


def fractional_positions(patient: Examination) -> Check:
    """RoPE gets the exact positions of the slot table, and fractions of a position matter."""
    wanted = patient.wanted_positions
    given = [each.reshape(-1).double().cpu().numpy() for each in patient.positions]
    # Families call RoPE once a forward or once a layer, and Gemma-3 once for each of two bases.
    calls = len(given) // len(wanted)
    exact = bool(given) and all(
        np.array_equal(each, wanted[number // calls]) for number, each in enumerate(given)
    )
    arms = patient.arms
    # Row 0 has offset 0 in both arms. The other offsets are 1 and 2 times FRACTION.
    change = float(np.abs(arms["fractional"].logits(1) - arms["isolated"].logits(1))[1:].max())
    detail = f"{len(given)} rotary calls got the exact positions" if exact else "RoPE got others"
    detail += f"; 0.25 to 0.5 of a position moves logits by {change:.2g} (more than {MOVED:g})"
    # In half precision the rotation of a quarter position can be lost in rounding.
    if patient.model.dtype != "float32":
        detail += ", not required in half precision"
        return check_verdict("fractional positions", exact, detail)
    return check_verdict("fractional positions", exact and change > MOVED, detail)


def translation(patient: Examination) -> Check:
    """If a shift of all positions changes nothing in transformers, it changes nothing here."""
    name, n, limit = "translation", len(patient.prompt), patient.tolerances.logits
    arm = patient.arms["visible"]
    farthest = int(arm.table.position.max()) + SHIFT
    if farthest >= patient.model.max_positions or not patient.frequencies_hold(farthest):
        return not_applicable(name, f"positions cannot be moved by {SHIFT} in this model")
    position = torch.stack([torch.arange(n), torch.arange(n) + SHIFT])
    # With no mask transformers would derive one from the positions (packed sequences).
    mask = torch.ones(2, n, dtype=torch.long)
    prompts = [patient.prompt, patient.prompt]
    plain = patient.plain(prompts, position_ids=position, attention_mask=mask).logits
    change = float(np.abs(plain[0] - plain[1]).max())
    detail = f"+{SHIFT} positions move logits by {change:.1e} in transformers"
    if change > limit:
        reason = "this model tells positions apart"
        return not_applicable(name, f"{detail} (more than {limit:.1e}): {reason}")
    moved = replace(arm.table, position=arm.table.position + np.float32(SHIFT))
    logits = run_oracle(patient.model, moved, arm.plan.policy).logits
    ours = float(np.abs(logits - patient.oracle.logits).max())
    detail += f", by {ours:.1e} with parallel sets (at most {limit:.1e})"
    if ours > limit and patient.switches_experts:
        return not_applicable(name, f"{detail}: rounding switches experts")
    return check_verdict(name, ours <= limit, detail)


def rope_type(patient: Examination) -> Check:
    """No forward of the checks has changed the rotary frequencies."""
    after = rotary_frequencies(patient.model)
    changed = [
        name for name, before in patient.frequencies.items() if not torch.equal(before, after[name])
    ]
    detail = f"{_types(patient)}: frequencies of {len(after)} tables are as before"
    if changed:
        detail = f"{_types(patient)}: {', '.join(changed)} changed during the examination"
    elif not patient.frequencies_hold(patient.model.max_positions - 1):
        detail += "; runs that go past the original length are refused"
    return check_verdict("rope type", bool(after) and not changed, detail, trap=14)


def _types(patient: Examination) -> str:
    return ", ".join(patient.model.rope_types)
