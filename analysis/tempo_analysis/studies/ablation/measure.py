"""`tempo.ablate`: effects of removing heads, values and edges at a token, each with a control."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tempo.causal.eager_rows import check_sequences
from tempo.causal.forward import Forwarded, forward, forward_each
from tempo.causal.silence import mean_inputs
from tempo.engine.edits import heads_in
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model
from tempo.models.projections import output_projections
from tempo.policy.edits import Edit, HeadNames, ReplaceHeadOutput
from tempo.prompts.suites import load_suite
from tempo.run.recorder import facts_of_model
from tempo.run.request import PromptInput, check_different, prompts_from
from tempo.trace.run import Prompt
from tempo.vocabulary import Head, OnProgress, silent
from tempo_analysis.report.predictions import PredictionTable, PromptTokens, prediction_table
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE
from tempo_analysis.studies.ablation.findings import Ablation
from tempo_analysis.studies.ablation.passes import Pass
from tempo_analysis.studies.ablation.plan import (
    CONTROL,
    CONTROL_DRAW,
    DEFAULT,
    DONOR_DRAW,
    SWEEPS,
    TOKEN_DRAW,
    AblationPlan,
    AblationTarget,
    Donors,
    PassSpec,
    control_target,
    has_control,
    parse_conditions,
    redundancy_passes,
)
from tempo_analysis.studies.ablation.redundancy import (
    PromptRedundancy,
    PromptSweep,
    prompt_redundancy,
    prompt_sweep,
)
from tempo_analysis.studies.ablation.result import (
    AblationFacts,
    PromptNumbers,
    ablation_numbers,
    prompt_numbers,
)


@dataclass(frozen=True, slots=True)
class AblationPrompt:
    """One prompt with its token ids, and the index of its t."""

    prompt: Prompt
    ids: tuple[int, ...]
    at: int


def encode_prompts(
    model: LanguageModel,
    given: PromptInput | Sequence[PromptInput],
    *,
    reach: int,
    at: str | int,
    seed: int,
) -> tuple[list[AblationPrompt], list[str]]:
    """Encode prompts and choose the token t of each.

    Args:
        model: Its tokenizer encodes texts.
        given: Texts, token ids or `Prompt`s.
        reach: Number of tokens that t must have before it.
        at: "last", "random", or the index of a token.
        seed: Of the draw for "random".

    Returns:
        The prompts, and the ids of those that are too short and are left out.

    Raises:
        InputError: No prompt has such a token, or its ids are not the model's.
    """
    prompts, own_ids = prompts_from(given)
    texts: list[AblationPrompt] = []
    longest = 0
    left_out: list[str] = []
    for number, prompt in enumerate(prompts):
        ids = own_ids.get(prompt.id) or tuple(model.encode(prompt.text))
        longest = max(longest, len(ids))
        # Keyed by the number of the prompt: leaving out a prompt changes no other draw.
        place = _place(len(ids), at, reach=reach, seed=(seed, TOKEN_DRAW, number))
        if place is None:
            left_out.append(prompt.id)
        else:
            texts.append(AblationPrompt(prompt, ids, place))
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
    """Index of t in one prompt; None if no token has `reach` tokens before it."""
    if isinstance(at, str) and at not in ("last", "random"):
        raise InputError(f"expected last, random or the number of a token for t, got {at!r}")
    # t has index reach at least, so that t - reach is token 0 or later.
    if n_tokens <= reach:
        return None
    if at == "last":
        return n_tokens - 1
    if at == "random":
        return int(np.random.default_rng(seed).integers(reach, n_tokens))
    place = int(at)
    return place if reach <= place < n_tokens else None


ROWS_AT_ONCE = 512
"""Query rows of one packed forward pass, limited because their logits are in memory together."""


def run_passes(
    model: LanguageModel,
    ids: Sequence[int],
    pass_specs: Mapping[str, PassSpec],
    *,
    target: AblationTarget,
    linears: Mapping[int, nn.Linear],
    seed: tuple[int, ...],
) -> dict[str, Pass]:
    """Run every named pass of one prompt; passes with equal conditions run once.

    Args:
        model: The model.
        ids: Tokens of the prompt.
        pass_specs: Conditions of each pass, by its name.
        target: Where the conditions act.
        linears: The output projection of every layer.
        seed: Of the draw of the place of the controls.
    """
    # Without repeats: `head` may be a condition, A of the redundancy test and A of the sweep.
    different = list(dict.fromkeys(pass_specs.values()))
    edits = [_edits(one, target, n_heads=model.n_heads, seed=seed) for one in different]
    found: dict[PassSpec, Pass] = {}
    for start, end in _chunks(len(different), len(ids)):
        forwarded = forward_each(model, ids, edits[start:end])
        passes = _passes(forwarded, target.at, linears=linears)
        found |= dict(zip(different[start:end], passes, strict=True))
    return {name: found[one] for name, one in pass_specs.items()}


def _edits(
    wanted: PassSpec, target: AblationTarget, *, n_heads: int, seed: tuple[int, ...]
) -> list[Edit]:
    edits: list[Edit] = []
    for part in wanted:
        place = target
        if part.in_control:
            # One seed for all conditions of a prompt, so that those of one scope share a place.
            place = control_target(part.condition, target, n_heads=n_heads, seed=seed)
        assert place is not None, "controls are planned only if there is a place for them"
        edits += part.condition.edits(place)
    return edits


def _chunks(n_passes: int, n_tokens: int) -> Iterator[tuple[int, int]]:
    # max: a prompt longer than the limit still runs, one pass at a time.
    size = max(1, ROWS_AT_ONCE // n_tokens)
    for start in range(0, n_passes, size):
        yield start, min(start + size, n_passes)


@torch.inference_mode()
def _passes(
    forwarded: Sequence[Forwarded], at: int, *, linears: Mapping[int, nn.Linear]
) -> list[Pass]:
    # [layer, pass, head, channel]: heads at t, before the output projection
    inputs = np.stack([one.head_outputs[:, at] for one in forwarded], axis=1)
    outputs = np.stack(
        [
            # heads are concatenated in order, as the model does before this projection
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
            attention=one.attention[:, :, at].copy(),  # a view would keep every row alive
        )
        for output, one in zip(outputs, forwarded, strict=True)
    ]


MEANS_FROM = "standard"
"""Bundled suite over whose tokens the mean head outputs are taken."""


class DonorSource:
    """Gives the replacement outputs of heads for each prompt."""

    def __init__(
        self,
        model: LanguageModel,
        plan: AblationPlan,
        texts: Sequence[AblationPrompt],
        *,
        given: str | Sequence[int] | None,
        seed: int,
    ) -> None:
        self.model, self.texts, self.seed = model, texts, seed
        hows = {one.how for one in plan.conditions if one.kind == "head"}
        self.resamples = "resample" in hows
        self.n_mean_tokens = 0
        self.means = self._means() if "mean" in hows else None
        # The given text is run once; a drawn donor is run for each prompt, to bound memory.
        self.given = None
        if given is not None and self.resamples:
            self.given = forward(model, given, keep=["head_outputs"]).head_outputs
        # choose every donor once now: a prompt without one is refused before any pass runs
        for number in range(len(texts) if self.resamples else 0):
            self._donor(number)

    def for_prompt(self, number: int) -> Donors:
        """Replacement outputs for one prompt, by its place among the prompts."""
        if not self.resamples:
            return Donors(self.means)
        donor = self._donor(number)
        if donor is None:
            return Donors(self.means, self.given)
        found = forward(self.model, donor.ids, keep=["head_outputs"])
        return Donors(self.means, found.head_outputs)

    def _donor(self, number: int) -> AblationPrompt | None:
        """The prompt whose heads replace those of another; None if the caller gave a text.

        Raises:
            InputError: The given text, or every other prompt, is too short.
        """
        at, own = self.texts[number].at, self.texts[number].ids
        if self.given is not None:
            if self.given.shape[1] <= at:
                raise InputError(
                    f"expected a donor of more than {at} tokens, got {self.given.shape[1]}; give a "
                    "longer one"
                )
            return None
        # Longer than at, because the donor is read at the same position; never the same tokens,
        # which would make the resample change nothing.
        others = [text for text in self.texts if len(text.ids) > at and text.ids != own]
        if not others:
            raise InputError(
                f"expected another prompt of more than {at} tokens as the donor of "
                f"{self.texts[number].prompt.id!r}, got none; give more prompts, or --donor TEXT"
            )
        # Keyed like every draw: `_donor` gives the same prompt each time it is called.
        draw = np.random.default_rng((self.seed, DONOR_DRAW, number))
        return others[int(draw.integers(len(others)))]

    def _means(self) -> np.ndarray:
        texts = [self.model.encode(prompt.text) for prompt in load_suite(MEANS_FROM)]
        # sorted by length, so that the texts of one batch need little padding
        sequences = [np.asarray(ids, np.int64) for ids in sorted(texts, key=len)]
        self.n_mean_tokens = sum(map(len, sequences))
        return mean_inputs(self.model, sequences)


LARGEST_SWEEP = 20


@dataclass(slots=True)
class _Collected:
    """Numbers of the prompts that have been measured so far."""

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
    """Remove heads, values and edges at one token t of each prompt, and measure what changes.

    Every condition is compared with its control: the same in as many other heads of the same
    layers, or in as many other layers, drawn for each prompt.

    Args:
        model: As `tempo.load_model` takes it.
        prompts: Texts, token ids or `Prompt`s.
        heads: Names such as `L16H0`.
        conditions: As `tempo_analysis.studies.ablation.plan.parse_condition` reads them.
        at: The token t: "last", "random" (uniform among tokens with enough tokens before them), or
            its index from 0.
        redundancy: Whether to test if removing the heads has already removed the contribution of
            the value of the token before t.
        sweep: Run the same test for values from 1 to this many tokens before t; 0 for none.
        donor: Text whose head outputs are used for `head:resample`; a random other prompt if None.
        seed: Of every draw and interval.
        on_progress: Called after each prompt with the number of prompts done.

    Returns:
        An `Ablation`: every condition and its control, with intervals over prompts.

    Raises:
        InputError: A head, condition, token or donor cannot be used; nothing was run.
        ModelError: The model cannot be loaded, or a layer has no plain output projection.

    Example:
        >>> prompts = tempo.load_suite("demo")
        >>> tempo.ablate(model, prompts, heads=["L16H0"], conditions=["head", "value:1"])
    """
    loaded = load_model(model)
    plan = _plan(loaded, heads, conditions, redundancy=redundancy, sweep=sweep)
    texts, left_out = encode_prompts(loaded, prompts, reach=plan.reach, at=at, seed=seed)
    # Before any pass: a family without plain projections is refused while nothing has run.
    linears = output_projections(loaded, range(loaded.n_layers))
    if donor is not None and not any(one.how == "resample" for one in plan.conditions):
        raise InputError(
            "expected a donor with head:resample only, got one without; leave it out or ask for "
            "head:resample"
        )
    donors = DonorSource(loaded, plan, texts, given=donor, seed=seed)
    found = _Collected()
    for number, text in enumerate(texts):
        target = AblationTarget(
            plan.heads, plan.layers, loaded.windows, text.at, donors.for_prompt(number)
        )
        passes = run_passes(
            loaded,
            text.ids,
            plan.pass_specs(text.at),
            target=target,
            linears=linears,
            # Drawn for each prompt: one draw for all could be an important head by chance.
            seed=(seed, CONTROL_DRAW, number),
        )
        _measure(found, passes, text, plan, model=loaded)
        on_progress(f"prompt {number + 1} of {len(texts)}")
    facts = _facts(loaded, plan, texts, at=str(at), seed=seed)
    notes = _notes(plan, texts, left_out, donors)
    numbers = ablation_numbers(
        replace(facts, notes=notes, prompts={**facts.prompts, "left_out": left_out}),
        prompts=found.numbers,
        redundancy_prompts=found.redundancy,
        sweep_prompts=found.sweeps,
    )
    return Ablation(numbers, tuple(found.predictions))


def _facts(
    model: LanguageModel, plan: AblationPlan, texts: Sequence[AblationPrompt], *, at: str, seed: int
) -> AblationFacts:
    return AblationFacts(
        model=facts_of_model(model),
        heads=plan.heads,
        layers=plan.layers,
        conditions=plan.describe(),
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
) -> AblationPlan:
    if isinstance(heads, str) or not heads:
        raise InputError(
            f"expected a list of heads such as ['L16H0'], got {heads or 'none'!r}; name some"
        )
    if not 0 <= sweep <= LARGEST_SWEEP:
        raise InputError(f"expected a sweep of 0 to {LARGEST_SWEEP} offsets, got {sweep}")
    # Read by an edit that is never made, so that heads are checked as those of edits are.
    by_layer = heads_in(ReplaceHeadOutput(heads=heads), model)
    named = tuple(Head(layer, head) for layer, own in by_layer.items() for head in own)
    wanted = parse_conditions(conditions)
    # at=0 as a stand-in: whether a control exists does not depend on t.
    target = AblationTarget(named, tuple(by_layer), model.windows, at=0)
    size = {"n_heads": model.n_heads}
    controlled = tuple(one for one in wanted if has_control(one, target, **size))
    (head,) = parse_conditions(["head"])
    return AblationPlan(
        named,
        wanted,
        controlled,
        other_heads=has_control(head, target, **size),
        redundancy=redundancy,
        sweep=sweep,
    )


def _measure(
    found: _Collected,
    passes: dict[str, Pass],
    text: AblationPrompt,
    plan: AblationPlan,
    *,
    model: LanguageModel,
) -> None:
    """Measure the passes of one prompt and keep the numbers; the passes themselves are dropped."""
    # Passes of the redundancy test and the sweep are compared among themselves, below.
    compared = ["base", *(each.changed for each in plan.comparisons())]
    kept = {name: passes[name] for name in compared}
    found.numbers.append(prompt_numbers(kept, plan.comparisons()))
    # Predictions are read at the last token, which need not be t.
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
        # Offsets that reach before the first token of this prompt have no pass.
        if f"B {whose} {offset}" in outputs:
            yield offset, outputs[f"B {whose} {offset}"], outputs[f"AB {whose} {offset}"]


def _notes(
    plan: AblationPlan,
    texts: Sequence[AblationPrompt],
    left_out: Sequence[str],
    donors: DonorSource,
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
