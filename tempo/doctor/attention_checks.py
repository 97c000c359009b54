"""Checks of captured attention rows: causality, row sums, zeros, soft cap, sinks, capture."""

from typing import cast

import numpy as np

from tempo.doctor.arms import HIDDEN_SLOT, Arm
from tempo.doctor.diagnosis import Check, check_verdict, not_applicable
from tempo.doctor.examination import MOVED, Examination, raw_scores
from tempo.engine.guards import ROW_SUM, row_excess, unpacked
from tempo.trace.schema import visible_name


def causality(patient: Examination) -> Check:
    """A later token changes no earlier slot, in the prompt and among ordered members."""
    arms, allowed = patient.arms, patient.tolerances
    one, other = arms["ordered"].logits(1), arms["another last member"].logits(1)
    rows = [arms[name].weights(0)[:, :, :-1] for name in ("isolated", "another prompt")]
    members = float(np.abs(one[:-1] - other[:-1]).max())
    prompt = float(np.abs(rows[0] - rows[1]).max())
    own = float(np.abs(one[-1] - other[-1]).max())
    detail = (
        f"another last token moves earlier logits by {members:.1e} (at most {allowed.logits:.1e}), "
        f"earlier rows by {prompt:.1e} (at most {allowed.attention:.1e}), its own by {own:.1e}"
    )
    # The changed token must move its own logits: otherwise an ignored input would pass too.
    healthy = members <= allowed.logits and own > MOVED and prompt <= allowed.attention
    return check_verdict("causality", healthy, detail, trap=5)


def row_sums(patient: Examination) -> Check:
    """Every row sums to 1; the weight of a learned sink is counted in."""
    excesses = [row_excess(outcome.tensors, patient.sinks) for outcome in patient.outcomes]
    excess = max(float(np.abs(each).max()) for each in excesses)
    with_sink = " with the learned sink" if patient.knows_sinks else ""
    detail = f"rows{with_sink} sum to 1 within {excess:.1e} (at most {ROW_SUM:.0e} in any dtype)"
    return check_verdict("row sums", excess <= ROW_SUM, detail, trap=12)


def zeros(patient: Examination) -> Check:
    """Rows are exactly 0 where the trace records a slot as invisible."""
    leaks = [_leak(arm, step) for arm in patient.arms.values() for step in range(len(arm.outcomes))]
    hidden, most = sum(count for count, _ in leaks), max(weight for _, weight in leaks)
    detail = f"largest weight on {hidden} unseen slots: {most:g} (exactly 0)"
    return check_verdict("zeros", most == 0 and hidden > 0, detail)


def _leak(arm: Arm, step: int) -> tuple[int, float]:
    """Number of invisible slots in a step, over all layers, and the largest weight on them."""
    weights, outcome = arm.weights(step), arm.outcomes[step]
    unseen = [
        ~unpacked(outcome.tensors[visible_name(window)], weights.shape[-1])
        for window in cast("tuple[int | None, ...]", outcome.facts["window"])
    ]
    most = [rows[:, mask].max(initial=0) for rows, mask in zip(weights, unseen, strict=True)]
    return int(sum(mask.sum() for mask in unseen)), float(max(most))


def soft_cap(patient: Examination) -> Check:
    """The engine soft-caps scores as the configuration declares."""
    declared = getattr(patient.model.config, "attn_logit_softcapping", None)
    used = set(patient.facts["softcap"])
    if declared is None and used == {None}:
        return not_applicable("soft cap", "none declared, none used", trap=16)
    steps = patient.arms["greedy"].outcomes
    highest = max(float(np.abs(raw_scores(outcome)).max()) for outcome in steps)
    # Scores are rebuilt as log weight + logsumexp in float32, which may round just above the cap.
    below = declared is not None and highest <= declared * (1 + 1e-5)
    detail = f"largest score {highest:.4g}; cap declared {declared}, used {_listed(used)}"
    return check_verdict("soft cap", below and used == {declared}, detail, trap=16)


def attention_sinks(patient: Examination) -> Check:
    """The engine knows the learned sink of every layer that has one, and rows give it weight."""
    # Found by parameter name, independently of what the engine was passed.
    names = [name for name, _ in patient.model.hf.named_parameters() if name.endswith("sinks")]
    learned = np.isfinite(patient.sinks).all((1, 2))
    known = int(learned.sum())
    if not names and not known:
        return not_applicable("attention sinks", "no learned sinks", trap=6)
    sums = [outcome.tensors["weights"].sum(-1)[learned].ravel() for outcome in patient.outcomes]
    # The sink column is dropped after the softmax, so its share is what the row lacks to 1.
    share = 1 - float(np.concatenate(sums).mean()) if known else 0.0
    detail = f"known in {known} layers, learned in {len(names)}; their mean share is {share:.2g}"
    return check_verdict("attention sinks", known == len(names) and share > 0, detail, trap=6)


def capture(patient: Examination) -> Check:
    """Logits are bit-equal with capture on and off."""
    pairs = [
        (on.logits(step), patient.uncaptured[name].logits(step))
        for name, on in patient.arms.items()
        for step in range(len(on.outcomes))
    ]
    # Bytes, not values: -0.0 equals 0.0 and NaN differs from itself under ==.
    equal = sum(on.tobytes() == off.tobytes() for on, off in pairs)
    detail = f"logits of {equal} of {len(pairs)} steps are bit-equal with capture on and off"
    return check_verdict("capture", equal == len(pairs), detail)


def edit(patient: Examination) -> Check:
    """Hiding one slot from the members of a set changes their logits."""
    hidden, shown = patient.arms["hidden"], patient.arms["isolated"]
    change = float(np.abs(hidden.logits(1) - shown.logits(1)).max())
    detail = f"hiding slot {HIDDEN_SLOT} moves logits by {change:.2g} (more than {MOVED:g})"
    return check_verdict("edit", change > MOVED, detail)


def _listed(values: set[float | None]) -> str:
    return ", ".join(map(str, sorted(values, key=str)))
