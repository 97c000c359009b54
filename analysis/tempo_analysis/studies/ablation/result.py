"""The numbers of an ablation, and their document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float32

from tempo.errors import InputError
from tempo.vocabulary import Head
from tempo_analysis.report.document import Document, plain
from tempo_analysis.studies.ablation.effects import Effect, PromptEffect, effects, prompt_effect
from tempo_analysis.studies.ablation.offsets import (
    N_OFFSETS,
    OffsetFindings,
    PromptOffsets,
    offset_findings,
    prompt_offsets,
    variation,
)
from tempo_analysis.studies.ablation.passes import Comparison, Pass
from tempo_analysis.studies.ablation.redundancy import (
    PromptRedundancy,
    PromptSweep,
    Redundancy,
    Sweep,
    redundancy,
    sweep,
)
from tempo_analysis.studies.ablation.verdict import (
    SCALE,
    effect_sentences,
    redundancy_sentences,
    sweep_sentences,
)


@dataclass(frozen=True, slots=True, eq=False)
class PromptNumbers:
    """One prompt, without its passes.

    Attributes:
        effects: By comparison.
        offsets: By condition.
        variations: Distance between the rows of t, by comparison.
    """

    effects: Mapping[Comparison, PromptEffect]
    offsets: Mapping[str, PromptOffsets]
    variations: Mapping[Comparison, Float32[np.ndarray, "layer head"]]


def prompt_numbers(
    passes: Mapping[str, Pass],
    comparisons: Sequence[Comparison],
    *,
    n_offsets: int = N_OFFSETS,
) -> PromptNumbers:
    """Measure one prompt.

    Args:
        passes: By the name of their condition.
        comparisons: The pairs of passes to compare.

    Raises:
        InputError: A comparison names no pass, or passes are of different prompts or tokens.
    """
    missing = {name for each in comparisons for name in (each.reference, each.changed)}
    # All missing passes at once, so that one run of the caller can add them.
    missing -= set(passes)
    if missing or not comparisons:
        raise InputError(
            f"expected comparisons of the passes {', '.join(passes)}, got "
            f"{', '.join(map(str, comparisons)) or 'none'}; run "
            f"{', '.join(sorted(missing)) or 'some'} too"
        )
    pairs = {each: (passes[each.reference], passes[each.changed]) for each in comparisons}
    return PromptNumbers(
        effects={each: prompt_effect(*pair) for each, pair in pairs.items()},
        offsets={
            name: prompt_offsets(one.attention, t=one.at, n_offsets=n_offsets)
            for name, one in passes.items()
        },
        variations={
            each: variation(one.attention, other.attention) for each, (one, other) in pairs.items()
        },
    )


KIND = "tempo-ablation"
FORMAT = 1

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationFacts:
    """A description of the experiment, in plain values.

    Attributes:
        model: Identity of the model, as in a trace; it must have `name`.
        heads: Those that the conditions name; shown in every figure of heads.
        layers: Where the ablation acts.
        conditions: What each pass does, in words, by its name.
        controls: Name of the control, by condition.
        prompts: Their ids, the index of t in each, and how t was chosen.
        seed: Of the draws and of every interval.
        own: Redundancy tests in which A silences the listed heads, and sweeps in which B takes out
            the values of just those.
        other: Redundancy tests in which A silences other heads.
        notes: Further remarks for the reader.
    """

    model: Mapping[str, Any]
    heads: tuple[Head, ...]
    layers: tuple[int, ...]
    conditions: Mapping[str, str]
    controls: Mapping[str, str]
    prompts: Mapping[str, Any]
    seed: int
    own: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class AblationNumbers:
    """One ablation experiment on one model.

    Attributes:
        n_prompts: Prompts behind the effects and the offsets.
        effects: Every comparison, controls among them.
        offsets: The rows of t.
        redundancy: By the name of A.
        sweeps: By the name of A and B.
    """

    facts: AblationFacts
    n_prompts: int
    effects: tuple[Effect, ...]
    offsets: OffsetFindings
    redundancy: Mapping[str, Redundancy]
    sweeps: Mapping[str, Sweep]

    def sentences(self) -> list[str]:
        """The results and their limits, in sentences."""
        told = effect_sentences(self.effects, self.facts.layers)
        for name, found in self.redundancy.items():
            told += redundancy_sentences(
                name, found, is_own=name in self.facts.own, is_other=name in self.facts.other
            )
        for name, swept in self.sweeps.items():
            told += sweep_sentences(name, swept, is_own=name in self.facts.own)
        # The meaning of R once, not after every index.
        scale = [SCALE] if self.redundancy or self.sweeps else []
        return [*told, *scale, *self.facts.notes]

    def document(self) -> Document:
        """Plain JSON values, `None` where there is no data."""
        facts = {each.name: getattr(self.facts, each.name) for each in fields(self.facts)}
        return {
            "kind": KIND,
            "format": FORMAT,
            # The name alone at the top; the full identity is in model_facts.
            **plain(facts | {"model": self.facts.model["name"]}),
            "n_prompts": self.n_prompts,
            "sentences": self.sentences(),
            "effects": plain(self.effects),
            "redundancy": plain(self.redundancy),
            "sweeps": plain(self.sweeps),
            "offsets": plain(self.offsets),
            "model_facts": plain(self.facts.model),
        }


def ablation_numbers(
    facts: AblationFacts,
    *,
    prompts: Sequence[PromptNumbers],
    redundancy_prompts: Mapping[str, Sequence[PromptRedundancy]] = _NONE,
    sweep_prompts: Mapping[str, Sequence[PromptSweep]] = _NONE,
) -> AblationNumbers:
    """Put the numbers of all prompts together.

    Args:
        prompts: The same comparisons of every prompt.
        redundancy_prompts: By the name of A; a control has its own name.
        sweep_prompts: By the name of A and B; a control has its own name.

    Raises:
        InputError: No prompts, prompts that differ in their comparisons, a missing control, or a
            condition without a description.
    """
    found = effects([one.effects for one in prompts], controls=facts.controls, seed=facts.seed)
    unnamed = sorted({name for one in prompts for name in one.offsets} - set(facts.conditions))
    if unnamed:
        raise InputError(
            f"expected a description of every condition, got none of {', '.join(unnamed)}; say "
            "what they do"
        )
    return AblationNumbers(
        facts=facts,
        n_prompts=len(prompts),
        effects=found,
        offsets=offset_findings(
            [one.offsets for one in prompts],
            [one.variations for one in prompts],
            heads=facts.heads,
            seed=facts.seed,
        ),
        redundancy={
            name: redundancy(own, layers=facts.layers, seed=facts.seed)
            for name, own in redundancy_prompts.items()
        },
        sweeps={
            name: sweep(own, layers=facts.layers, seed=facts.seed)
            for name, own in sweep_prompts.items()
        },
    )
