"""`tempo.concepts`: compares the two sides of paired texts in every attention head."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from tempo.causal.eager_rows import BATCH, IdBatch, SequenceIds, batches_of, check_sequences
from tempo.causal.silence import Means, ablated
from tempo.errors import InputError, ModelError
from tempo.models.hooks import watched_inputs, watched_stream
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.load import Source, load_model
from tempo.models.projections import head_slices, output_projections
from tempo.prompts.pairs import BUNDLED_PAIRS, Pairs, load_pairs
from tempo.run.recorder import facts_of_model
from tempo.vocabulary import Head, OnProgress, silent
from tempo_analysis.stats.intervals import SMALLEST_SAMPLE
from tempo_analysis.studies.concepts.effect import (
    FITTED,
    MEASURED,
    ConceptEffect,
    chosen_heads,
    concept_effect,
    matched_random,
)
from tempo_analysis.studies.concepts.findings import ConceptFindings
from tempo_analysis.studies.concepts.result import ConceptCheck
from tempo_analysis.studies.concepts.separation import PERMUTATIONS, TOP, concept_heads
from tempo_analysis.studies.concepts.verdict import Endings

POOLINGS = ("last", "mean")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A layer that is left out because it has no attention heads to read, with the reason."""

    layer: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class ConceptInputs:
    """The outputs of every head on both sides of every pair, before the output projection.

    Attributes:
        positive: Of the texts with the concept.
        negative: Of the texts without it, in the same order.
        out: Output weights of each head, from its channels to the residual stream.
        layers: Number of each captured layer.
        skipped: The other layers.
        pooling: "last": the last token of each text; "mean": the mean over its tokens after a bos
            token.
        n_tokens: Tokens of each text, positive side first.
        same_last_token: Share of pairs whose two texts end with the same token.
        stream: Residual stream after the last layer at the last token.
    """

    positive: Float32[np.ndarray, "pair layer head channel"]
    negative: Float32[np.ndarray, "pair layer head channel"]
    out: Float32[np.ndarray, "layer head channel hidden"]
    layers: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    pooling: str
    n_tokens: tuple[tuple[int, ...], tuple[int, ...]]
    same_last_token: float
    stream: Float32[np.ndarray, "side pair hidden"]


def concept_inputs(model: LanguageModel, pairs: Pairs, *, pooling: str = "last") -> ConceptInputs:
    """Run both texts of every pair; texts of one length run together.

    Args:
        model: To run.
        pairs: Of texts.
        pooling: Which tokens are read, "last" or "mean".

    Raises:
        InputError: The pooling is unknown, or a text is too long.
        ModelError: No layer has heads to read.
    """
    if pooling not in POOLINGS:
        raise InputError(f"expected pooling {' or '.join(POOLINGS)}, got {pooling!r}; choose one")
    texts = encoded(model, pairs)
    linears, skipped = readable_layers(model)
    layers = tuple(linears)
    with torch.inference_mode(), attention_as(model.hf, "eager"):
        found, streams = _all(model, texts[0] + texts[1], linears, pooling=pooling)
    # all positive texts come first, then all negative ones
    both = found.reshape(2, len(pairs.pairs), *found.shape[1:])
    # A pair that ends differently can be separated by the last token alone; the report says so.
    last = [[int(ids[-1]) for ids in side] for side in texts]
    slices = [head_slices(linear.weight.detach(), model.n_heads) for linear in linears.values()]
    return ConceptInputs(
        positive=both[0],
        negative=both[1],
        out=np.stack([part.cpu().numpy() for part in slices]),
        layers=layers,
        skipped=skipped,
        pooling=pooling,
        n_tokens=(tuple(map(len, texts[0])), tuple(map(len, texts[1]))),
        same_last_token=float(np.mean(np.equal(last[0], last[1]))),
        stream=streams.reshape(2, len(pairs.pairs), -1),
    )


def readable_layers(model: LanguageModel) -> tuple[dict[int, Any], tuple[Skipped, ...]]:
    """Output projections of the layers with attention heads, and the layers without.

    Hybrid models have layers of other kinds, such as linear attention without separate heads.

    Raises:
        ModelError: No layer has heads.
    """
    linears: dict[int, Any] = {}
    skipped: list[Skipped] = []
    for layer in range(model.n_layers):
        try:
            linears |= output_projections(model, (layer,))
        except ModelError as error:
            # The reason alone: the sentence of the report repeats what was expected.
            reason = str(error).split(", got ", 1)[-1].removesuffix("; leave out values")
            skipped.append(Skipped(layer, mixer_name(model, layer), reason))
    if not linears:
        raise ModelError(
            f"expected a layer with heads and one plain output projection, got none in "
            f"{type(model.hf).__name__}; not supported"
        )
    return linears, tuple(skipped)


def mixer_name(model: LanguageModel, layer: int) -> str:
    """Class of the module of a layer that mixes tokens; of the layer itself if none is marked."""
    decoder: Any = model.hf.get_decoder()
    parts = decoder.layers[layer].modules()
    # in transformers, modules that keep a cache entry know the number of their layer
    numbered = [part for part in parts if getattr(part, "layer_idx", None) == layer]
    # The last one: a mixer comes after the layer that contains it.
    return type(numbered[-1] if numbered else decoder.layers[layer]).__name__


def streams_without(
    model: LanguageModel, pairs: Pairs, heads: Sequence[Head], *, means: Means | None = None
) -> Float32[np.ndarray, "side pair hidden"]:
    """The residual stream after the last layer at the last token, with some heads silenced.

    Args:
        model: To run.
        pairs: Of texts.
        heads: To silence at every position.
        means: Output of each head in place of zero, at every position.
    """
    texts = encoded(model, pairs)
    with (
        torch.inference_mode(),
        attention_as(model.hf, "eager"),
        ablated(model, heads, means=means),
    ):
        # No projections are watched: with heads silenced, only the stream at the end is compared.
        _, streams = _all(model, texts[0] + texts[1], {})
    return streams.reshape(2, len(pairs.pairs), -1)


def pooled_means(inputs: ConceptInputs, n_layers: int) -> Means:
    """Mean output of each head over both sides; zero in the layers that were skipped."""
    both = np.concatenate([inputs.positive, inputs.negative]).mean(0)
    means = np.zeros((n_layers, *both.shape[1:]), np.float32)
    # By number of the layer, which differs from the row where layers were skipped.
    means[list(inputs.layers)] = both
    return means


def encoded(model: LanguageModel, pairs: Pairs) -> list[list[np.ndarray]]:
    """Token ids of the positive texts, and of the negative texts.

    Raises:
        InputError: A text is too long.
    """
    texts = ([pair.positive for pair in pairs.pairs], [pair.negative for pair in pairs.pairs])
    ids = [[np.array(model.encode(text), np.int64) for text in side] for side in texts]
    check_sequences(model, ids[0] + ids[1])
    return ids


def _all(
    model: LanguageModel,
    texts: list[SequenceIds],
    linears: dict[int, Any],
    *,
    pooling: str = "last",
) -> tuple[
    Float32[np.ndarray, "text layer head channel"] | Float32[np.ndarray, "text 0"],
    Float32[np.ndarray, "text hidden"],
]:
    """Inputs of these projections and last streams, one row for each text, in the order given."""
    # By length, so that texts of one length are neighbours and run together without padding.
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    inputs: list[np.ndarray] = []
    streams: list[np.ndarray] = []
    for ids in batches_of([texts[number] for number in order], BATCH):
        rows, stream = _run(model, ids, linears, pooling=pooling)
        inputs.append(rows)
        streams.append(stream)
    place = np.argsort(order)  # undoes the sorting by length
    return np.concatenate(inputs)[place], np.concatenate(streams)[place]


def _run(
    model: LanguageModel, ids: IdBatch, linears: dict[int, Any], *, pooling: str
) -> tuple[np.ndarray, Float32[np.ndarray, "sequence hidden"]]:
    """Run one batch of texts of one length.

    Returns:
        Pooled inputs of the projections, [sequence, layer, head, channel], and the last stream.
    """
    decoder: Any = model.hf.get_decoder()
    with (
        watched_inputs(linears) as given,
        watched_stream(model, lambda stream: stream[:, -1]) as depths,
    ):
        decoder(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False)
    # Without bos: it is an attention sink, and its outputs are the same in every text. A text of
    # that token alone keeps it, as a mean over nothing is undefined.
    skipped = int(ids.shape[1] > 1 and (ids[:, 0] == _bos(model)).all())
    # -1 gives a mean over the last token only, which is that token.
    first = skipped if pooling == "mean" else -1
    pooled = [
        one[0][:, first:].float().mean(1).unflatten(-1, (model.n_heads, -1)).cpu().numpy()
        for one in given.values()
    ]
    inputs = np.stack(pooled, axis=1) if pooled else np.empty((len(ids), 0), np.float32)
    return inputs, depths[-1].float().cpu().numpy()


def _bos(model: LanguageModel) -> int | None:
    return getattr(model.tokenizer, "bos_token_id", None)


FEWEST_PERMUTATIONS = 200
# 20 = 1 / 0.05: the adjusted p-value of the best of n heads is n times its own.
SWAPS_PER_HEAD = 20
"""The smallest p-value for n heads is then just below 1 / (20 n), and just below 0.05 once adjusted
over heads: one head alone can be assigned."""


def concepts(
    model: Source,
    pairs: str | Path | Pairs | None = None,
    *,
    pooling: str = "last",
    permutations: int | None = None,
    seed: int = 0,
    top: int = TOP,
    check_effects: bool = True,
    on_progress: OnProgress = silent,
) -> ConceptFindings:
    """Find the heads that separate two sides of paired texts, and check that the model needs them.

    Args:
        model: As `tempo.load_model` takes it.
        pairs: Bundled pairs by name, a `.jsonl` file of rows {id, positive, negative}, or `Pairs`;
            the bundled urgency where None.
        pooling: "last" reads the last token of a text, "mean" the mean over all but a bos token.
        permutations: Random swaps of sides behind the null, at least 200; where None, 2000 or 20
            for each head, whichever is more.
        seed: Seed of every draw.
        top: Number of heads that the causal check silences.
        check_effects: Whether to make the causal check; it runs half of the texts 22 times more.
        on_progress: Called with a short text before each stage.

    Returns:
        `ConceptFindings`: the separation of the sides by every head on held-out pairs, the null,
        and the causal check.

    Raises:
        InputError: Pairs or an option cannot be used.
        ModelError: The model cannot be loaded, or no layer has heads to read.

    Example:
        >>> found = tempo.concepts(model, "urgency")
        >>> found = tempo.concepts(model, "pairs.jsonl", pooling="mean", check_effects=False)
    """
    check_options(pooling=pooling, permutations=permutations, top=top)
    chosen = (
        pairs
        if isinstance(pairs, Pairs)
        else load_pairs(BUNDLED_PAIRS[0] if pairs is None else pairs)
    )
    loaded = load_model(model)
    on_progress("reading the pairs")
    inputs = concept_inputs(loaded, chosen, pooling=pooling)
    swaps = permutations or enough_permutations(inputs)
    on_progress(f"swapping sides {swaps} times")
    found = concept_heads(
        inputs.positive, inputs.negative, inputs.out, permutations=swaps, seed=seed
    )
    # Decided before the extra passes, which take most of the time.
    no_check = _why_no_check(found.n, loaded.n_heads) if check_effects else "it was not asked for"
    check = None
    if not no_check:
        on_progress("silencing heads")
        check = _check(loaded, chosen, inputs, top=top, seed=seed)
    return ConceptFindings(
        model=facts_of_model(loaded),
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
    """Check the options before a model is loaded.

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
    """Number of permutations with which one head alone can be assigned."""
    n_layers, n_heads = inputs.positive.shape[1:3]
    return max(PERMUTATIONS, SWAPS_PER_HEAD * n_layers * n_heads)


def _why_no_check(n_pairs: int, n_heads: int) -> str:
    """Reason why the causal check cannot be made; empty if it can."""
    if n_pairs < 2 * SMALLEST_SAMPLE:
        return (
            f"it chooses heads on one half of the pairs and measures on the other, which takes "
            f"{2 * SMALLEST_SAMPLE} pairs, got {n_pairs}"
        )
    return "" if n_heads > 1 else "layers of one head leave no other to compare with"


def _check(
    model: LanguageModel, pairs: Pairs, inputs: ConceptInputs, *, top: int, seed: int
) -> ConceptCheck:
    """Choose heads on every other pair, silence them, and measure on the other pairs."""
    sides = {"positive": inputs.positive[FITTED], "negative": inputs.negative[FITTED]}
    half = replace(inputs, **sides, stream=inputs.stream[:, FITTED])
    # only the AUROC is used of these scores: one permutation is enough
    fitted = concept_heads(half.positive, half.negative, half.out, permutations=1, seed=seed)
    heads = chosen_heads(fitted, inputs.layers, top=top)
    # Chosen and drawn from the fitted half only: heads chosen on the measured pairs would separate
    # them by selection alone.
    others = matched_random(heads, model.n_heads, seed=seed)

    measured = Pairs(pairs.name, pairs.pairs[MEASURED])

    def silenced(heads: Sequence[Head], means: Means | None) -> np.ndarray:
        # the fitted pairs keep their stream: only the direction is taken from them
        streams = inputs.stream.copy()
        streams[:, MEASURED] = streams_without(model, measured, heads, means=means)
        return streams

    def effect(means: Means | None) -> ConceptEffect:
        random = np.stack([silenced(each, means) for each in others])
        return concept_effect(inputs.stream, silenced(heads, means), random)

    # Means of the fitted half, for the same reason as the choice of heads.
    means = pooled_means(half, model.n_layers)
    return ConceptCheck(heads, zero=effect(None), mean=effect(means))


def _endings(inputs: ConceptInputs) -> Endings:
    positive, negative = (float(np.mean(lengths)) for lengths in inputs.n_tokens)
    return Endings(inputs.same_last_token, positive, negative)
