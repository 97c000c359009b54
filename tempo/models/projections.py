"""The output projections of a model's attention, layer by layer."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from tempo.errors import ModelError
from tempo.models.language_model import LanguageModel

OUTPUTS = ("o_proj", "out_proj", "dense", "wo", "Wo")
"""Names of the output projection of the attention in the families of transformers."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def head_slices(
    weight: Float[Tensor, "hidden input"], n_heads: int
) -> Float32[Tensor, "head channel hidden"]:
    """The part of an output projection that belongs to each query head."""
    # nn.Linear stores [output input], and the input is the heads side by side
    return weight.float().T.reshape(n_heads, -1, weight.shape[0])


def output_modules(model: LanguageModel, layers: Sequence[int]) -> dict[int, nn.Module]:
    """The output projection of each of these layers, of any module class.

    Raises:
        ModelError: Names the class that has none or more than one.
    """
    return {layer: module for layer, (_, module) in _found(model, layers).items()}


def output_projections(model: LanguageModel, layers: Sequence[int]) -> dict[int, nn.Linear]:
    """The output projection of each of these layers, as a plain linear module.

    Raises:
        ModelError: Names the class that has none, more than one, or weights that are not plain.
    """
    return {layer: _plain(model, layer, *part) for layer, part in _found(model, layers).items()}


def _found(model: LanguageModel, layers: Sequence[int]) -> dict[int, tuple[nn.Module, nn.Module]]:
    """By layer, the attention and its output projection."""
    decoder: Any = model.hf.get_decoder()
    found: dict[int, list[tuple[nn.Module, nn.Module]]] = {layer: [] for layer in layers}
    for module in decoder.modules():
        layer = getattr(module, "layer_idx", None)
        children = dict(module.named_children())
        if layer in found:
            found[layer] += [(module, children[name]) for name in OUTPUTS if name in children]
    for layer, parts in found.items():
        # Two candidates cannot be told apart by name, and the wrong one gives wrong norms in
        # silence.
        if len(parts) != 1:
            raise ModelError(
                f"{_expected(model, layer)}, got {len(parts)} in {type(model.hf).__name__}; leave "
                "out values"
            )
    return {layer: parts[0] for layer, parts in found.items()}


def _expected(model: LanguageModel, layer: int) -> str:
    return (
        f"expected one plain linear output projection ({', '.join(OUTPUTS)}) of "
        f"{model.n_heads * model.head_dim} inputs in the attention of layer {layer}"
    )


def _plain(model: LanguageModel, layer: int, attention: nn.Module, linear: nn.Module) -> nn.Linear:
    expected, width = _expected(model, layer), model.n_heads * model.head_dim
    kind = f"{type(linear).__name__} in {type(attention).__name__}"
    # a subclass may be quantised, adapted or reparametrised: its weight is not what it computes
    if type(linear) is not nn.Linear or linear.weight.dtype not in _DTYPES:
        weight = getattr(linear, "weight", None)
        raise ModelError(
            f"{expected}, got a {kind} ({getattr(weight, 'dtype', 'no weight')}); leave out values"
        )
    # The input must be all heads side by side; only there can they be separated.
    if linear.in_features != width or linear.weight.is_meta:
        held = ", its weight not in memory" if linear.weight.is_meta else ""
        raise ModelError(
            f"{expected}, got a {kind} of {linear.in_features}{held}; leave out values"
        )
    return linear
