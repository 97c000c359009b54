"""The stream `values`: how far each slot's value reaches through each head's output weights.

Query head h adds `a v W_h` to its layer's output, where W_h are its rows of the output projection
(the input side; the bias is nobody's). An attention weight alone says nothing of the size of v W_h
(Kobayashi et al. 2020, "Attention is Not Only a Weight"). Nothing here feeds back.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from tempo.attention import Forward
from tempo.capture import Capture, Tensors
from tempo.errors import ModelError
from tempo.model import LanguageModel
from tempo.sight import View

OUTPUTS = ("o_proj", "out_proj", "dense", "wo", "Wo")
"""What models call the output projection of their attention."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

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
    """What the stream needs of a model, worked out once; empty where values are not captured.

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


def head_slices(
    weight: Float[Tensor, "hidden input"], n_heads: int
) -> Float32[Tensor, "head channel hidden"]:
    """The part of an output projection that each query head writes through."""
    return weight.float().T.reshape(n_heads, -1, weight.shape[0])


def output_projections(model: LanguageModel, layers: Sequence[int]) -> dict[int, nn.Linear]:
    """The linear map that each of these layers sends its heads' outputs through.

    Raises:
        ModelError: Names the class that has none, more than one, or weights that are not plain.
    """
    decoder: Any = model.hf.get_decoder()
    found: dict[int, list[tuple[nn.Module, nn.Module]]] = {layer: [] for layer in layers}
    for module in decoder.modules():
        layer = getattr(module, "layer_idx", None)
        children = dict(module.named_children())
        if layer in found:
            found[layer] += [(module, children[name]) for name in OUTPUTS if name in children]
    return {layer: _only(model, layer, parts) for layer, parts in found.items()}


def _only(
    model: LanguageModel, layer: int, parts: Sequence[tuple[nn.Module, nn.Module]]
) -> nn.Linear:
    width = model.n_heads * model.head_dim
    expected = (
        f"expected one plain linear output projection ({', '.join(OUTPUTS)}) of {width} inputs in "
        f"the attention of layer {layer}"
    )
    if len(parts) != 1:
        raise ModelError(
            f"{expected}, got {len(parts)} in {type(model.hf).__name__}; leave out values"
        )
    ((attention, linear),) = parts
    kind = f"{type(linear).__name__} in {type(attention).__name__}"
    # a subclass may be quantised, adapted or reparametrised: its weight is not what it computes
    if type(linear) is not nn.Linear or linear.weight.dtype not in _DTYPES:
        weight = getattr(linear, "weight", None)
        raise ModelError(
            f"{expected}, got a {kind} ({getattr(weight, 'dtype', 'no weight')}); leave out values"
        )
    if linear.in_features != width or linear.weight.is_meta:
        held = ", its weight not in memory" if linear.weight.is_meta else ""
        raise ModelError(
            f"{expected}, got a {kind} of {linear.in_features}{held}; leave out values"
        )
    return linear


def captured_values(forward: Forward, views: Sequence[View], through: Projections) -> list[Tensors]:
    """For each sequence, the norms of the values that this forward wrote."""
    if not through.grams:
        return [{} for _ in views]
    places = [torch.from_numpy(view.places) for view in views]
    norms: list[list[np.ndarray]] = [[] for _ in views]
    for layer, gram in through.grams.items():
        _, values = forward.cache.read(layer, forward.packing.sequences, forward.packing.n_slots)
        for number, own in enumerate(places):
            written = values[number][:, own][list(through.kv_heads)]
            norms[number].append(value_norms(written, gram).cpu().numpy())
    return [{"value_norm": np.stack(one)} for one in norms]


def value_norms(
    values: Float[Tensor, "head query channel"], gram: Gram
) -> Float32[Tensor, "head query"]:
    """`|| v W_h ||_2` of every value, as the head reads it."""
    exact = values.float()
    return ((exact @ gram) * exact).sum(-1).clamp_(min=0).sqrt_()


@contextmanager
def watched_inputs(
    linears: Mapping[int, nn.Linear],
) -> Generator[dict[int, list[Tensor]]]:
    """Notes what the output projections are given, by layer, in the order of the calls."""
    given: dict[int, list[Tensor]] = {layer: [] for layer in linears}
    hooks = [
        linear.register_forward_pre_hook(partial(_note, given[layer]))
        for layer, linear in linears.items()
    ]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _note(into: list[Tensor], _: nn.Module, args: tuple[Any, ...]) -> None:
    into.append(args[0])
