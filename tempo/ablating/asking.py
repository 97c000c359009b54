"""`tempo.ablate`: what heads, values and edges at a token do, each beside its control."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.ablation.measured import PromptNumbers, prompt_numbers
from analysis.ablation.passes import Pass
from analysis.ablation.redundancy import PromptRedundancy, prompt_redundancy
from analysis.ablation.result import AblationFacts, ablation_findings
from analysis.ablation.sweep import PromptSweep, prompt_sweep
from analysis.ablation_report import Ablation
from tempo.ablating.conditions import CONTROL_DRAW, DEFAULT, Target, parse_conditions
from tempo.ablating.donors import MEANS_FROM, DonorSource
from tempo.ablating.plan import CONTROL, SWEEPS, Plan, redundancy_passes
from tempo.ablating.running import has_control, run_passes
from tempo.ablating.texts import Text, texts_of
from tempo.engine.edits import heads_in
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model
from tempo.models.projections import output_projections
from tempo.policy.edits import HeadNames, HeadOutput
from tempo.run.recorder import model_facts
from tempo.run.request import PromptInput
from tempo.vocabulary import Head
from tempo_analysis.report.predictions import PredictionTable, PromptTokens, prediction_table
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE

LARGEST_SWEEP = 20


@dataclass(slots=True)
class _Found:
    """What the prompts have left so far."""

    numbers: list[PromptNumbers] = field(default_factory=list)
    predictions: list[PredictionTable] = field(default_factory=list)
    redundancy: dict[str, list[PromptRedundancy]] = field(default_factory=dict)
    sweeps: dict[str, list[PromptSweep]] = field(default_factory=dict)


def ablate(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput],
    *,
    heads: HeadNames,
    conditions: Sequence[str] = DEFAULT,
    at: str | int = "last",
    redundancy: bool = True,
    sweep: int = 4,
    donor: str | Sequence[int] | None = None,
    seed: int = 0,
    on_prompt: Callable[[int, int], None] | None = None,
) -> Ablation:
    """Take heads, values and edges out at one token t of each prompt, and say what that changed.

    Every condition stands beside its control: the same in as many other heads of the same layers,
    or in as many other layers, drawn for each prompt.

    Args:
        prompts: Texts, token ids or `Prompt`s.
        heads: Names such as `L16H0`.
        conditions: As `tempo.ablating.conditions.parse_condition` reads them.
        at: t: "last", "random" (even, among tokens with enough before them), or its number from 0.
        redundancy: Whether to ask if the heads have already removed what the value of the token
            before t gives.
        sweep: Ask the same of the values 1 to so many tokens back; 0 is none.
        donor: Text whose heads stand in under `head:resample`; another prompt, drawn, where None.
        seed: Of every draw and interval.
        on_prompt: Told how many prompts are done, of how many.

    Raises:
        InputError: A head, condition, token or donor cannot be used; nothing was run.
        ModelError: The model cannot be loaded, or a layer has no plain output projection.
    """
    loaded = load_model(model)
    plan = _plan(loaded, heads, conditions, redundancy=redundancy, sweep=sweep)
    texts, left_out = texts_of(loaded, prompts, reach=plan.reach, at=at, seed=seed)
    linears = output_projections(loaded, range(loaded.n_layers))
    if donor is not None and not any(one.how == "resample" for one in plan.conditions):
        raise InputError(
            "expected a donor with head:resample only, got one without; leave it out or ask for "
            "head:resample"
        )
    donors = DonorSource(loaded, plan, texts, given=donor, seed=seed)
    found = _Found()
    for number, text in enumerate(texts):
        target = Target(plan.heads, plan.layers, loaded.windows, text.at, donors.of(number))
        passes = run_passes(
            loaded,
            text.ids,
            plan.recipes(text.at),
            target=target,
            linears=linears,
            seed=(seed, CONTROL_DRAW, number),
        )
        _measure(found, passes, text, plan, model=loaded)
        if on_prompt is not None:
            on_prompt(number + 1, len(texts))
    facts = _facts(loaded, plan, texts, at=str(at), seed=seed)
    notes = _notes(plan, texts, left_out, donors)
    findings = ablation_findings(
        replace(facts, notes=notes, prompts={**facts.prompts, "left_out": left_out}),
        prompts=found.numbers,
        redundancy_prompts=found.redundancy,
        sweep_prompts=found.sweeps,
    )
    return Ablation(findings, tuple(found.predictions))


def _facts(
    model: LanguageModel, plan: Plan, texts: Sequence[Text], *, at: str, seed: int
) -> AblationFacts:
    return AblationFacts(
        model=model_facts(model),
        heads=plan.heads,
        layers=plan.layers,
        conditions=plan.says(),
        controls=plan.controls(),
        prompts={
            "ids": [text.prompt.id for text in texts],
            "at": [text.at for text in texts],
            "drawn": at,
        },
        seed=seed,
        own=("head", "listed heads"),
        other=(f"{CONTROL}head",),
    )


def _plan(
    model: LanguageModel,
    heads: HeadNames,
    conditions: Sequence[str],
    *,
    redundancy: bool,
    sweep: int,
) -> Plan:
    if isinstance(heads, str) or not heads:
        raise InputError(
            f"expected a list of heads such as ['L16H0'], got {heads or 'none'!r}; name some"
        )
    if not 0 <= sweep <= LARGEST_SWEEP:
        raise InputError(f"expected a sweep of 0 to {LARGEST_SWEEP} offsets, got {sweep}")
    by_layer = heads_in(HeadOutput(heads=heads), model)
    named = tuple(Head(layer, head) for layer, own in by_layer.items() for head in own)
    wanted = parse_conditions(conditions)
    target = Target(named, tuple(by_layer), model.windows, at=0)
    size = {"n_heads": model.n_heads}
    controlled = tuple(one for one in wanted if has_control(one, target, **size))
    (head,) = parse_conditions(["head"])
    return Plan(
        named,
        wanted,
        controlled,
        other_heads=has_control(head, target, **size),
        redundancy=redundancy,
        sweep=sweep,
    )


def _measure(
    found: _Found, passes: dict[str, Pass], text: Text, plan: Plan, *, model: LanguageModel
) -> None:
    """Keep of one prompt's passes what its tables and the whole need."""
    compared = ["base", *(each.changed for each in plan.comparisons())]
    kept = {name: passes[name] for name in compared}
    found.numbers.append(prompt_numbers(kept, plan.comparisons()))
    last = {one.name: passes[one.name].logits[-1] for one in plan.conditions}
    tokens = tuple(model.token_text(token) for token in text.ids)
    named = PromptTokens(text.prompt.id, text.prompt.category, tokens, text.at)
    found.predictions.append(
        prediction_table(named, passes["base"].logits[-1], last, text_of=model.token_text)
    )
    outputs = {name: one.attention_output for name, one in passes.items()}
    for name in plan.redundancy_names():
        own = prompt_redundancy(redundancy_passes(outputs, name))
        found.redundancy.setdefault(name, []).append(own)
    for whose in SWEEPS if plan.sweep else ():
        own = prompt_sweep(
            outputs["base"],
            outputs["A"],
            at=_at_offsets(outputs, whose, plan.sweep),
            n_offsets=plan.sweep,
        )
        found.sweeps.setdefault(whose, []).append(own)


def _at_offsets(
    outputs: dict[str, Any], whose: str, sweep: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for offset in range(1, sweep + 1):
        if f"B {whose} {offset}" in outputs:
            yield offset, outputs[f"B {whose} {offset}"], outputs[f"AB {whose} {offset}"]


def _notes(
    plan: Plan, texts: Sequence[Text], left_out: Sequence[str], donors: DonorSource
) -> tuple[str, ...]:
    found: list[str] = []
    if len(texts) < SMALLEST_SAMPLE:
        found.append(
            f"fewer than {SMALLEST_SAMPLE} prompts: estimates without intervals or verdicts"
        )
    if left_out:
        found.append(
            f"{len(left_out)} prompts are left out, as their t has fewer than {plan.reach} tokens "
            "before it"
        )
    if all(text.at == len(text.ids) - 1 for text in texts):
        found.append("t is the last token of every prompt, so there is no KL after t")
    uncontrolled = [one.name for one in plan.conditions if one not in plan.controlled]
    if uncontrolled:
        found.append(f"no other place, so no control: {', '.join(uncontrolled)}")
    if donors.n_mean_tokens:
        found.append(
            f"means of heads are over {donors.n_mean_tokens} tokens of the suite {MEANS_FROM}, "
            "first tokens included"
        )
    return tuple(found)
