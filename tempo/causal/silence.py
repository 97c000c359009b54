"""Ablation of heads in a plain forward, and its effect on the loss.

A head is silenced at the input of its layer's output projection; reshaping the output into heads
is another operation. Queries and keys are computed as before. An output of zero may lie outside the
distribution that the model was trained on, so a head can be fixed at its mean instead.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from tempo.causal.eager_rows import BATCH, IdBatch, SequenceIds, batches_of, check_sequences
from tempo.errors import InputError
from tempo.models.hooks import changed_inputs, watched_inputs, watched_outputs
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.projections import output_projections

HeadIndex = tuple[int, int]
"""Layer and query head, both from 0."""

Means = Float32[np.ndarray, "layer head channel"]


@dataclass(frozen=True, slots=True, eq=False)
class DeltaNll:
    """Increase of the loss of each sequence when one head is silenced.

    Attributes:
        heads: The silenced heads, in the order given.
        base: Mean loss of the untouched model, in nats per token.
        delta: Loss without the head less the loss with it; positive where the head helps.
        replacement: "zero" or "mean".
        counted: First predicted token that counts, from 1.
    """

    heads: tuple[HeadIndex, ...]
    base: Float32[np.ndarray, " sequence"]
    delta: Float32[np.ndarray, "head sequence"]
    replacement: str
    counted: int


@contextmanager
def ablated(
    model: LanguageModel, heads: Iterable[HeadIndex], *, means: Means | None = None
) -> Generator[None]:
    """Run the model with some heads silent at every position; undone at the end of the context.

    Args:
        means: Hold each head at these instead of at zero; see `mean_inputs`.

    Raises:
        InputError: There is no such head.
        ModelError: A layer has no plain output projection.
    """
    chosen = heads_by_layer(model, heads)
    linears = output_projections(model, tuple(chosen))

    def silence(layer: int, given: Float[Tensor, "*row wide"]) -> Float[Tensor, "*row wide"]:
        # A copy: the tensor of the forward may be kept by a hook that reads it.
        by_head = given.unflatten(-1, (model.n_heads, -1)).clone()
        numbers = chosen[layer]
        value = 0 if means is None else torch.from_numpy(means[layer, numbers]).to(by_head)
        by_head[..., numbers, :] = value
        return by_head.flatten(-2)

    with changed_inputs(linears, silence):
        yield


def heads_by_layer(model: LanguageModel, heads: Iterable[HeadIndex]) -> dict[int, list[int]]:
    """The heads of each layer, each once.

    Raises:
        InputError: There is no such head.
    """
    found: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise InputError(
                f"expected heads from L0H0 to L{model.n_layers - 1}H{model.n_heads - 1}, got "
                f"L{layer}H{head}; check the heads"
            )
        found.setdefault(layer, []).append(head)
    return found


def delta_nll(
    model: LanguageModel,
    sequences: Sequence[SequenceIds] | IdBatch,
    heads: Sequence[HeadIndex],
    *,
    batch: int = BATCH,
    means: Means | None = None,
    counted: int = 1,
) -> DeltaNll:
    """Loss without each head alone; layers below it are not run again.

    Args:
        means: Hold a silent head at these instead of at zero.
        counted: First token whose loss counts, for example that of the second half.

    Raises:
        InputError: A head or a sequence cannot be used, or none of its tokens counts.
        ModelError: A layer has no plain output projection.
    """
    rows = [np.asarray(ids, np.int64) for ids in sequences]
    check_sequences(model, rows)
    heads_by_layer(model, heads)
    shortest = min(len(ids) for ids in rows)
    if not heads or not 1 <= counted < shortest:
        raise InputError(
            f"expected heads and a first counted token from 1 to {shortest - 1}, got "
            f"{len(heads)} heads and {counted}; choose again"
        )
    base: list[np.ndarray] = []
    silent: list[np.ndarray] = []
    with torch.inference_mode(), attention_as(model.hf, "eager"):
        for ids in batches_of(rows, batch):
            fed = torch.from_numpy(ids).to(model.device)
            losses = partial(_losses, model, fed, counted)
            with kept_layer_outputs(model) as kept:
                # In the same batches as the ablated runs, so that rounding cancels in the
                # difference.
                base.append(losses())
            silent.append(
                np.stack([_without(model, losses, one, kept=kept, means=means) for one in heads])
            )
    before = np.concatenate(base)
    return DeltaNll(
        heads=tuple(heads),
        base=before,
        delta=np.concatenate(silent, axis=1) - before,
        replacement="zero" if means is None else "mean",
        counted=counted,
    )


@torch.inference_mode()
def mean_inputs(
    model: LanguageModel, sequences: Sequence[SequenceIds] | IdBatch, *, batch: int = BATCH
) -> Means:
    """Mean output of each head, before the output projection, over all tokens.

    Raises:
        InputError: A sequence cannot be used.
        ModelError: A layer has no plain output projection.
    """
    rows = [np.asarray(ids, np.int64) for ids in sequences]
    check_sequences(model, rows)
    linears = output_projections(model, range(model.n_layers))
    decoder: Any = model.hf.get_decoder()
    # float64: a sum over all tokens of a suite would lose digits in the model's dtype
    total = torch.zeros(model.n_layers, model.n_heads * model.head_dim, dtype=torch.float64)
    for ids in batches_of(rows, batch):
        with attention_as(model.hf, "eager"), watched_inputs(linears) as given:
            decoder(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False)
        for layer, (each,) in given.items():
            total[layer] += each.double().sum((0, 1)).cpu()
    mean = total / sum(len(ids) for ids in rows)
    return mean.float().reshape(model.n_layers, model.n_heads, -1).numpy()


LayerOutputs = Mapping[int, Sequence[Any]]
"""What every layer returned during one forward, in the form its family returns it."""


@contextmanager
def kept_layer_outputs(model: LanguageModel) -> Generator[LayerOutputs]:
    """The return values of every layer in a forward, for `resumed`."""
    decoder: Any = model.hf.get_decoder()
    with watched_outputs(dict(enumerate(decoder.layers))) as kept:
        yield kept


@contextmanager
def resumed(model: LanguageModel, layer: int, kept: LayerOutputs) -> Generator[None]:
    """Layers before this one return their recorded values instead of running.

    The instance attribute `forward` hides the method of the class; hooks on the layer still run.
    """
    decoder: Any = model.hf.get_decoder()
    skipped = decoder.layers[:layer]
    try:
        for number, module in enumerate(skipped):
            module.forward = partial(_returned, kept[number][0])
        yield
    finally:
        # Only the instance attribute is removed; the class keeps its method.
        for module in skipped:
            module.__dict__.pop("forward", None)


def _returned(out: object, *_: object, **__: object) -> object:
    return out


def _without(
    model: LanguageModel,
    losses: Callable[[], np.ndarray],
    head: HeadIndex,
    *,
    kept: LayerOutputs,
    means: Means | None,
) -> Float32[np.ndarray, " sequence"]:
    with resumed(model, head[0], kept), ablated(model, [head], means=means):
        return losses()


def _losses(model: LanguageModel, fed: Tensor, counted: int) -> Float32[np.ndarray, " sequence"]:
    """Mean loss of each sequence over the tokens that count."""
    logits = model.hf(input_ids=fed, use_cache=False).logits
    found: list[float] = []
    for rows, ids in zip(logits, fed, strict=True):
        # row t predicts token t + 1
        lost = nn.functional.cross_entropy(rows[counted - 1 : -1].float(), ids[counted:])
        found.append(float(lost))
    return np.array(found, np.float32)
