"""Checks of the engine against transformers and the oracle, and of known traps."""

import numpy as np
import torch
from jaxtyping import Float32

from tempo.doctor.arms import GREEDY_STEPS, N_PROMPT
from tempo.doctor.diagnosis import Check, check_verdict, not_applicable
from tempo.doctor.examination import MOVED, Examination, attention_settings
from tempo.errors import ModelError
from tempo.oracle import run_oracle
from tempo.policy.presets import greedy

_GREEDY = range(GREEDY_STEPS + 1)


def decoding(patient: Examination) -> Check:
    """The engine decodes all arms without an error."""
    arms, steps = patient.arms, len(patient.outcomes)
    return check_verdict("decoding", True, f"{len(arms)} short runs, {steps} steps")


def guards(patient: Examination) -> Check:
    """The guards at the first step of a run accept this model."""
    try:
        patient.pass_the_guards()
    except ModelError as refusal:
        return check_verdict("guards", False, " ".join(str(refusal).split()), trap=19)
    return check_verdict("guards", True, "no run is refused at its first step", trap=19)


def eager_logits(patient: Examination) -> Check:
    """A greedy run gives the logits of one plain eager forward over the same tokens."""
    arm, plain = patient.arms["greedy"], patient.eager.logits[0]
    gap = max(_largest(arm.logits(step) - plain[arm.members(step)]) for step in _GREEDY)
    return _agreement(patient, "eager logits", "eager", gap=gap, limit=patient.tolerances.logits)


def eager_attention(patient: Examination) -> Check:
    """A greedy run gives the attention rows of one plain eager forward over the same tokens."""
    plain, limit = patient.eager.attention, patient.tolerances.attention
    # Eager code either drops the sink column after the softmax (rows below 1) or renormalises.
    sinkless = patient.knows_sinks and bool((np.abs(plain.sum(-1) - 1) < 1e-3).all())
    table, gap = patient.arms["greedy"].table, 0.0
    for step in _GREEDY:
        rows = patient.arms["greedy"].weights(step)
        total = rows.sum(-1, keepdims=True) if sinkless else np.float32(1)
        # The row of a step ends at the last slot written; later columns of eager are 0 by
        # causality.
        eager = plain[:, :, table.members(step)][..., : rows.shape[-1]]
        gap = max(gap, _largest(rows / total - eager))
    reference = "eager, which leaves the learned sink out of its rows" if sinkless else "eager"
    return _agreement(patient, "eager attention", reference, gap=gap, limit=limit, trap=1)


def oracle(patient: Examination) -> Check:
    """A run with parallel sets gives the logits of the oracle over its slot table."""
    arm, logits = patient.arms["visible"], patient.oracle.logits
    steps = range(len(arm.outcomes))
    gap = max(_largest(arm.logits(step) - logits[arm.members(step)]) for step in steps)
    return _agreement(patient, "oracle", "the oracle", gap=gap, limit=patient.tolerances.logits)


def _largest(difference: Float32[np.ndarray, "..."]) -> float:
    return float(np.abs(difference).max())


def _agreement(
    patient: Examination,
    name: str,
    reference: str,
    *,
    gap: float,
    limit: float,
    trap: int | None = None,
) -> Check:
    detail = f"at most {gap:.1e} from {reference} ({limit:.1e} allowed in {patient.model.dtype})"
    if gap > limit and patient.switches_experts:
        # A small rounding error can route a token to another expert: no tolerance separates that
        # from a fault.
        advice = "rounding switches experts; load the model in float32 to tell"
        return not_applicable(name, f"{detail}: {advice}", trap=trap)
    return check_verdict(name, gap <= limit, detail, trap=trap)


def mask_dtype(patient: Examination) -> Check:
    """The float masks of the oracle are causal; a boolean mask under eager attention is not."""
    prompts = [patient.prompt, (*patient.prompt[:-1], patient.tokens[N_PROMPT])]
    n = len(patient.prompt)
    # Eager attention adds the mask to the scores: True becomes +1 and False 0, so nothing is
    # hidden.
    boolean = torch.ones(n, n, dtype=torch.bool).tril().expand(2, 1, n, n)
    leaky = patient.plain(prompts, attention_mask=boolean).logits[:, :-1]
    table, limit = patient.arms["greedy"].table, patient.tolerances.logits
    gap = _largest(run_oracle(patient.model, table, greedy()).logits - patient.eager.logits[0])
    detail = (
        f"in transformers a boolean 4D mask lets a later token move earlier logits by "
        f"{_largest(leaky[0] - leaky[1]):.2g}; the oracle's masks give plain causal logits "
        f"within {gap:.1e} (at most {limit:.1e})"
    )
    return check_verdict("mask dtype", gap <= limit, detail, trap=2)


def packed_sequences(patient: Examination) -> Check:
    """A member that shares its position still reads the prompt, as it would alone."""
    arm, limit = patient.arms["isolated"], patient.tolerances.logits
    members = arm.table.token[arm.table.members(1)].tolist()
    paths = patient.plain([[*patient.prompt, member] for member in members]).logits[:, -1]
    gap = _largest(arm.logits(1) - paths)
    kept = _largest((arm.logits(1) - patient.arms["another prompt"].logits(1))[1])
    detail = (
        "another prompt moves the second sibling by "
        f"{_reach_of_the_prompt(patient, members[:2]):.2g} in transformers without a mask, by "
        f"{kept:.2g} in the engine, where members are {gap:.1e} from their paths "
        f"(at most {limit:.1e})"
    )
    if gap > limit and kept > MOVED and patient.switches_experts:
        return not_applicable("packed sequences", f"{detail}: rounding switches experts", trap=3)
    return check_verdict("packed sequences", gap <= limit and kept > MOVED, detail, trap=3)


def _reach_of_the_prompt(patient: Examination, members: list[int]) -> float:
    """Effect of the prompt on the second of two siblings in transformers without a mask."""
    prompts = [patient.arms[name].plan.token_ids for name in ("isolated", "another prompt")]
    # A repeated position looks like the start of a new packed sequence: the sibling loses the
    # prompt.
    position = torch.tensor([[*range(N_PROMPT), N_PROMPT, N_PROMPT]] * 2)
    tokens = [[*prompt, *members] for prompt in prompts]
    logits = patient.plain(tokens, position_ids=position).logits[:, -1]
    return _largest(logits[0] - logits[1])


def attention_setting(patient: Examination) -> Check:
    """The attention setting of every module is restored, also after a run that failed."""
    # Restoring belongs in a `finally`: only a run that fails can show that it is there.
    patient.interrupt()
    after = attention_settings(patient.model)
    lost = [
        f"{name or 'model'} ({before}, now {after[name]})"
        for name, before in patient.settings.items()
        if after[name] != before
    ]
    set_again = ", ".join(sorted({str(value) for value in patient.settings.values()}))
    detail = f"{set_again} is set again in {len(after)} parts, after a run and after a broken one"
    if lost:
        detail = f"{len(lost)} of {len(after)} parts did not get theirs back, first {lost[0]}"
    return check_verdict("attention setting", not lost, detail, trap=15)
