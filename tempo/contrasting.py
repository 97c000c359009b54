"""Contrasts the two sides of paired scenarios, head by head: `concepts`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from analysis.concept.effect import (
    FITTED,
    MEASURED,
    ConceptEffect,
    chosen_heads,
    concept_effect,
    matched_random,
)
from analysis.concept.findings import ConceptCheck, ConceptFindings
from analysis.concept.heads import PERMUTATIONS, TOP, concept_heads
from analysis.concept.verdict import Endings
from tempo.causal.silence import Means
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model
from tempo.plain.concept_capture import (
    POOLINGS,
    ConceptInputs,
    concept_inputs,
    pooled_means,
    streams_without,
)
from tempo.prompts.pairs import BUNDLED, Pairs, load_pairs
from tempo.run.recorder import model_facts
from tempo.vocabulary import Head
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE

FEWEST_PERMUTATIONS = 200
SWAPS_PER_HEAD = 20
"""With as many swaps for each head as this, one head alone can be assigned."""

Say = Callable[[str], object]


def concepts(
    model: Source,
    pairs: str | Path | Pairs | None = None,
    *,
    pooling: str = "last",
    permutations: int | None = None,
    seed: int = 0,
    top: int = TOP,
    effect: bool = True,
    on_stage: Say | None = None,
) -> ConceptFindings:
    """Which heads tell the two sides of paired scenarios apart, and do they carry it?

    Args:
        model: As `tempo.load_model` takes it.
        pairs: Bundled pairs by name, a `.jsonl` file of rows {id, positive, negative}, or `Pairs`;
            the bundled urgency where None.
        pooling: "last" reads the last token of a text, "mean" all but a bos token.
        permutations: Random swaps of sides behind the null; at least 200. Where None, 2000 or 20
            for each head, whichever is more.
        seed: Of every draw.
        top: Heads that the causal check silences.
        effect: Whether to make that check; it runs half of the texts another 22 times.
        on_stage: Told what is done next.

    Raises:
        InputError: Pairs or an option cannot be used.
        ModelError: The model cannot be loaded, or no layer has heads to read.
    """
    check_options(pooling=pooling, permutations=permutations, top=top)
    chosen = (
        pairs if isinstance(pairs, Pairs) else load_pairs(BUNDLED[0] if pairs is None else pairs)
    )
    say = on_stage or _silent
    loaded = load_model(model)
    say("reading the pairs")
    inputs = concept_inputs(loaded, chosen, pooling=pooling)
    swaps = permutations or enough_permutations(inputs)
    say(f"swapping sides {swaps} times")
    found = concept_heads(
        inputs.positive, inputs.negative, inputs.out, permutations=swaps, seed=seed
    )
    no_check = _why_no_check(found.n, loaded.n_heads) if effect else "it was not asked for"
    check = None
    if not no_check:
        say("silencing heads")
        check = _check(loaded, chosen, inputs, top=top, seed=seed)
    return ConceptFindings(
        model=model_facts(loaded),
        concept=chosen.name,
        heads=found,
        layers=inputs.layers,
        skipped=tuple(asdict(each) for each in inputs.skipped),
        pooling=pooling,
        endings=_endings(inputs),
        permutations=swaps,
        seed=seed,
        check=check,
        no_check=no_check,
    )


def check_options(*, pooling: str, permutations: int | None, top: int) -> None:
    """Refuse what cannot be used before a model is loaded.

    Raises:
        InputError: The pooling is unknown, or a number is too small.
    """
    if pooling not in POOLINGS:
        raise InputError(f"expected pooling {' or '.join(POOLINGS)}, got {pooling!r}; choose one")
    if permutations is not None and permutations < FEWEST_PERMUTATIONS:
        raise InputError(
            f"expected at least {FEWEST_PERMUTATIONS} permutations, got {permutations}: so few "
            "cannot say that a head is rare; ask for more"
        )
    if top < 1:
        raise InputError(
            f"expected at least 1 head to silence, got {top}; ask for more, or for no causal check"
        )


def enough_permutations(inputs: ConceptInputs) -> int:
    """So many that one head alone can be assigned among all."""
    n_layers, n_heads = inputs.positive.shape[1:3]
    return max(PERMUTATIONS, SWAPS_PER_HEAD * n_layers * n_heads)


def _why_no_check(n_pairs: int, n_heads: int) -> str:
    """Nothing where the check can be made."""
    if n_pairs < 2 * SMALLEST_SAMPLE:
        return (
            f"it chooses heads on one half of the pairs and measures on the other, which takes "
            f"{2 * SMALLEST_SAMPLE} pairs, got {n_pairs}"
        )
    return "" if n_heads > 1 else "layers of one head leave no other to compare with"


def _check(
    model: LanguageModel, pairs: Pairs, inputs: ConceptInputs, *, top: int, seed: int
) -> ConceptCheck:
    """Choose on every other pair, silence, and measure on the rest."""
    sides = {"positive": inputs.positive[FITTED], "negative": inputs.negative[FITTED]}
    half = replace(inputs, **sides, stream=inputs.stream[:, FITTED])
    fitted = concept_heads(half.positive, half.negative, half.out, permutations=1, seed=seed)
    heads = chosen_heads(fitted, inputs.layers, top=top)
    others = matched_random(heads, model.n_heads, seed=seed)

    measured = Pairs(pairs.name, pairs.pairs[MEASURED])

    def silent(heads: Sequence[tuple[int, int]], means: Means | None) -> np.ndarray:
        streams = inputs.stream.copy()
        streams[:, MEASURED] = streams_without(model, measured, heads, means=means)
        return streams

    def effect(means: Means | None) -> ConceptEffect:
        random = np.stack([silent(each, means) for each in others])
        return concept_effect(inputs.stream, silent(heads, means), random)

    means = pooled_means(half, model.n_layers)
    named = tuple(Head(*head) for head in heads)
    return ConceptCheck(named, zero=effect(None), mean=effect(means))


def _endings(inputs: ConceptInputs) -> Endings:
    positive, negative = (float(np.mean(lengths)) for lengths in inputs.n_tokens)
    return Endings(inputs.same_last_token, positive, negative)


def _silent(_: str) -> None:
    """Told what is done, says nothing."""
