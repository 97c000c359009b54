"""The stream `values`: the norm of each slot's value after each head's output weights.

Query head h adds `a v W_h` to its layer's output, where W_h are its rows of the output projection
(the input side; the bias belongs to no head). The attention weight alone does not give the size of
v W_h (Kobayashi et al. 2020, "Attention is Not Only a Weight"). Outputs are not affected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from tempo.engine.attention import Forward
from tempo.engine.batch import SequenceBatch
from tempo.engine.capture import Capture, Tensors
from tempo.models.language_model import LanguageModel
from tempo.models.projections import head_slices, output_projections

Gram = Float32[Tensor, "head channel channel"]


@dataclass(frozen=True, slots=True)
class Projections:
    """The output projections of the captured layers, by layer.

    Attributes:
        grams: `W_h W_h^T` of the captured heads, on the layer's own device.
        kv_heads: The KV head that each captured head reads.
    """

    linears: Mapping[int, nn.Linear]
    grams: Mapping[int, Gram]
    kv_heads: tuple[int, ...]


NONE = Projections({}, {}, ())


def projections(model: LanguageModel, capture: Capture) -> Projections:
    """The weights that the stream needs, computed once; empty where values are not captured.

    Raises:
        ModelError: A captured layer has no plain output projection.
    """
    if capture.level is None or not capture.values:
        return NONE
    linears = output_projections(model, capture.layers)
    heads, group = list(capture.heads), model.n_heads // model.n_kv_heads
    grams = {layer: _gram(linear.weight, model.n_heads, heads) for layer, linear in linears.items()}
    return Projections(linears, grams, tuple(head // group for head in heads))


@torch.inference_mode()
def _gram(weight: Float[Tensor, "hidden input"], n_heads: int, heads: list[int]) -> Gram:
    slices = head_slices(weight, n_heads)[heads]
    return slices @ slices.mT


def captured_values(
    forward: Forward, views: Sequence[SequenceBatch], through: Projections
) -> list[Tensors]:
    """For each sequence, the norms of the values that this forward wrote."""
    if not through.grams:
        return [{} for _ in views]
    columns = [torch.from_numpy(view.cache_columns) for view in views]
    norms: list[list[np.ndarray]] = [[] for _ in views]
    for layer, gram in through.grams.items():
        _, values = forward.cache.read(layer, forward.packing.sequences, forward.packing.n_slots)
        for number, own in enumerate(columns):
            # One copy for each captured query head, which reads KV head h // group.
            written = values[number][:, own][list(through.kv_heads)]
            norms[number].append(value_norms(written, gram).cpu().numpy())
    return [{"value_norm": np.stack(one)} for one in norms]


def value_norms(
    values: Float[Tensor, "head query channel"], gram: Gram
) -> Float32[Tensor, "head query"]:
    """`|| v W_h ||_2` of every value, as the head reads it."""
    # v W W^T v^T through the Gram matrix of a head: [channel channel] in place of [channel hidden]
    exact = values.float()
    # rounding may leave a value near 0 slightly negative
    return ((exact @ gram) * exact).sum(-1).clamp_(min=0).sqrt_()
