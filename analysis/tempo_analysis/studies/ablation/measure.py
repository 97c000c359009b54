"""`tempo.ablate`: what heads, values and edges at a token do, each beside its control."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tempo.causal.forward import Forwarded, check_sequences, forward, forward_each
from tempo.causal.silence import mean_inputs
from tempo.engine.edits import heads_in
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model
from tempo.models.projections import output_projections
from tempo.policy.edits import Edit, HeadNames, ReplaceHeadOutput
from tempo.prompts.suites import load_suite
from tempo.run.recorder import model_facts
from tempo.run.request import PromptInput, check_different, prompts_from
from tempo.trace.run import Prompt
from tempo.vocabulary import Head, OnProgress, silent
from tempo_analysis.report.predictions import PredictionTable, PromptTokens, prediction_table
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE
from tempo_analysis.studies.ablation.passes import Pass
from tempo_analysis.studies.ablation.plan import (
    CONTROL,
    CONTROL_DRAW,
    DEFAULT,
    DONOR_DRAW,
    PLACE_DRAW,
    SWEEPS,
    Donors,
    Plan,
    Recipe,
    Target,
    has_control,
    other_place,
    parse_conditions,
    redundancy_passes,
)
from tempo_analysis.studies.ablation.redundancy import (
    PromptRedundancy,
    PromptSweep,
    prompt_redundancy,
    prompt_sweep,
)
from tempo_analysis.studies.ablation.report import Ablation
from tempo_analysis.studies.ablation.result import (
    AblationFacts,
    PromptNumbers,
    ablation_findings,
    prompt_numbers,
)


@dataclass(frozen=True, slots=True)
class Text:
    """One prompt, encoded, and its t."""

    prompt: Prompt
    ids: tuple[int, ...]
    at: int


def texts_of(
    model: LanguageModel,
    given: PromptInput | Sequence[PromptInput],
    *,
    reach: int,
    at: str | int,
    seed: int,
) -> tuple[list[Text], list[str]]:
    """Prompts with their t, and the ids of those that are too short for what is asked.

    Args:
        reach: Tokens that t must have before it.
        at: "last", "random", or the number of a token.

    Raises:
        InputError: No prompt has such a token, or its ids are not the model's.
    """
    prompts, own_ids = prompts_from(given)
    texts: list[Text] = []
    longest = 0
    left_out: list[str] = []
    for number, prompt in enumerate(prompts):
        ids = own_ids.get(prompt.id) or tuple(model.encode(prompt.text))
        longest = max(longest, len(ids))
        place = _place(len(ids), at, reach=reach, seed=(seed, PLACE_DRAW, number))
        if place is None:
            left_out.append(prompt.id)
        else:
            texts.append(Text(prompt, ids, place))
    check_different((text.prompt.id, text.ids) for text in texts)
    if not texts:
        raise InputError(
            f"expected a prompt with a token t ({at}) and {reach} before it, as the conditions "
            f"ask, got prompts of at most {longest} tokens; give longer ones, another t, or "
            "conditions that reach less far"
        )
    check_sequences(model, [np.asarray(text.ids, np.int64) for text in texts])
    return texts, left_out


def _place(n_tokens: int, at: str | int, *, reach: int, seed: tuple[int, ...]) -> int | None:
    """The token t of one prompt; None where it has none with enough before it."""
    if isinstance(at, str) and at not in ("last", "random"):
        raise InputError(f"expected last, random or the number of a token for t, got {at!r}")
    if n_tokens <= reach:
        return None
    if at == "last":
        return n_tokens - 1
    if at == "random":
        return int(np.random.default_rng(seed).integers(reach, n_tokens))
    place = int(at)
    return place if reach <= place < n_tokens else None


ROWS_AT_ONCE = 512
"""Rows of one packed forward; their logits are held at once."""


def run_passes(
    model: LanguageModel,
    ids: Sequence[int],
    recipes: Mapping[str, Recipe],
    *,
    target: Target,
    linears: Mapping[int, nn.Linear],
    seed: tuple[int, ...],
) -> dict[str, Pass]:
    """One pass for each name; equal recipes are run once.

    Args:
        linears: The output projection of every layer.
        seed: Of the draw of the controls' places.
    """
    different = list(dict.fromkeys(recipes.values()))
    edits = [_edits(one, target, n_heads=model.n_heads, seed=seed) for one in different]
    found: dict[Recipe, Pass] = {}
    for start, end in _chunks(len(different), len(ids)):
        forwarded = forward_each(model, ids, edits[start:end])
        passes = _passes(forwarded, target.at, linears=linears)
        found |= dict(zip(different[start:end], passes, strict=True))
    return {name: found[one] for name, one in recipes.items()}


def _edits(wanted: Recipe, target: Target, *, n_heads: int, seed: tuple[int, ...]) -> list[Edit]:
    edits: list[Edit] = []
    for part in wanted:
        place = target
        if part.in_control:
            place = other_place(part.condition, target, n_heads=n_heads, seed=seed)
        assert place is not None, "a control is asked for where there is one only"
        edits += part.condition.edits(place)
    return edits


def _chunks(n_passes: int, n_tokens: int) -> Iterator[tuple[int, int]]:
    size = max(1, ROWS_AT_ONCE // n_tokens)
    for start in range(0, n_passes, size):
        yield start, min(start + size, n_passes)


@torch.inference_mode()
def _passes(
    forwarded: Sequence[Forwarded], at: int, *, linears: Mapping[int, nn.Linear]
) -> list[Pass]:
    inputs = np.stack([one.head_outputs[:, at] for one in forwarded], axis=1)
    outputs = np.stack(
        [
            linear(torch.from_numpy(inputs[layer]).flatten(1).to(linear.weight)).float().cpu()
            for layer, linear in sorted(linears.items())
        ],
        axis=1,
    )
    return [
        Pass(
            at=at,
            attention_output=output,
            logits=one.logits,
            attention=one.attention[:, :, at].copy(),
        )
        for output, one in zip(outputs, forwarded, strict=True)
    ]


MEANS_FROM = "standard"
"""The suite over whose tokens heads are averaged."""


class DonorSource:
    """What stands in for heads that are not held at zero."""

    def __init__(
        self,
        model: LanguageModel,
        plan: Plan,
        texts: Sequence[Text],
        *,
        given: str | Sequence[int] | None,
        seed: int,
    ) -> None:
        self.model, self.texts, self.seed = model, texts, seed
        hows = {one.how for one in plan.conditions if one.kind == "head"}
        self.resamples = "resample" in hows
        self.n_mean_tokens = 0
        self.means = self._means() if "mean" in hows else None
        self.given = None
        if given is not None and self.resamples:
            self.given = forward(model, given).head_outputs
        for number in range(len(texts) if self.resamples else 0):
            self._donor(number)

    def of(self, number: int) -> Donors:
        """For one of the prompts."""
        if not self.resamples:
            return Donors(self.means)
        donor = self._donor(number)
        if donor is None:
            return Donors(self.means, self.given)
        return Donors(self.means, forward(self.model, donor.ids).head_outputs)

    def _donor(self, number: int) -> Text | None:
        """The prompt that stands in for one; None where a text was given."""
        at, own = self.texts[number].at, self.texts[number].ids
        if self.given is not None:
            if self.given.shape[1] <= at:
                raise InputError(
                    f"expected a donor of more than {at} tokens, got {self.given.shape[1]}; give a "
                    "longer one"
                )
            return None
        others = [text for text in self.texts if len(text.ids) > at and text.ids != own]
        if not others:
            raise InputError(
                f"expected another prompt of more than {at} tokens as the donor of "
                f"{self.texts[number].prompt.id!r}, got none; give more prompts, or --donor TEXT"
            )
        draw = np.random.default_rng((self.seed, DONOR_DRAW, number))
        return others[int(draw.integers(len(others)))]

    def _means(self) -> np.ndarray:
        texts = [self.model.encode(prompt.text) for prompt in load_suite(MEANS_FROM)]
        sequences = [np.asarray(ids, np.int64) for ids in sorted(texts, key=len)]
        self.n_mean_tokens = sum(map(len, sequences))
        return mean_inputs(self.model, sequences)


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
    on_progress: OnProgress = silent,
) -> Ablation:
    """Take heads, values and edges out at one token t of each prompt, and say what that changed.

    Every condition stands beside its control: the same in as many other heads of the same layers,
    or in as many other layers, drawn for each prompt.

    Args:
        prompts: Texts, token ids or `Prompt`s.
        heads: Names such as `L16H0`.
        conditions: As `tempo_analysis.studies.ablation.plan.parse_condition` reads them.
        at: t: "last", "random" (even, among tokens with enough before them), or its number from 0.
        redundancy: Whether to ask if the heads have already removed what the value of the token
            before t gives.
        sweep: Ask the same of the values 1 to so many tokens back; 0 is none.
        donor: Text whose heads stand in under `head:resample`; another prompt, drawn, where None.
        seed: Of every draw and interval.
        on_progress: Called with how many prompts are done, of how many.

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
        on_progress(f"prompt {number + 1} of {len(texts)}")
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
    by_layer = heads_in(ReplaceHeadOutput(heads=heads), model)
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
