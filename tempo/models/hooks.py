"""Hooks that note what passes through an unmodified model, or add to it; all are removed."""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Float, Float32
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tempo.errors import ModelError
from tempo.models.head_weights import final_norm
from tempo.models.language_model import LanguageModel

PLAIN_ATTENTION = "tempo-plain"


@dataclass(slots=True)
class Notes:
    """What is taken down during one forward, by layer or depth.

    Attributes:
        read: What to take from the values; None to leave them.
        outputs: What each layer's heads gave, before the output projection.
    """

    read: Callable[[int, Tensor], Tensor] | None
    weights: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    stream: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    n_channels: int = 0


def plain_attention(
    module: nn.Module,
    query: Float[Tensor, "sequence head query channel"],
    key: Float[Tensor, "sequence kv_head slot channel"],
    value: Float[Tensor, "sequence kv_head slot channel"],
    attention_mask: Tensor | None,
    *,
    tempo_plain: Notes,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The family's own eager attention, taken down."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    layer: Any = module.layer_idx
    if eager is None:
        raise ModelError(
            f"expected an eager attention beside {type(module).__name__}, got none; not supported"
        )
    out, weights = eager(module, query, key, value, attention_mask, **options)
    tempo_plain.weights[layer] = weights
    if attention_mask is not None:
        tempo_plain.masks[layer] = attention_mask
    if tempo_plain.read is not None:
        tempo_plain.values[layer] = tempo_plain.read(layer, value)
        tempo_plain.outputs[layer] = out
    return out, weights


@contextmanager
def watched_stream(decoder: Any, notes: Notes) -> Generator[None]:
    """Summaries of the residual stream, taken while it passes."""

    def before(_: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        stream = args[0] if args else options["hidden_states"]
        notes.stream[0], notes.n_channels = _summary(stream), stream.shape[-1]

    def after(depth: int) -> Callable[..., None]:
        def note(_: nn.Module, __: object, out: Any) -> None:
            notes.stream[depth] = _summary(out[0] if isinstance(out, tuple) else out)

        return note

    hooks = [decoder.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [
        layer.register_forward_hook(after(depth)) for depth, layer in enumerate(decoder.layers, 1)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _summary(stream: Float[Tensor, "sequence token hidden"]) -> tuple[Tensor, ...]:
    size = stream.float().abs()
    flat = size.flatten(1)
    largest, place = flat.max(1)
    return stream.float().norm(dim=-1), largest, flat.median(1).values, place


@contextmanager
def watched_head(model: LanguageModel) -> Generator[list[Tensor]]:
    """What the language-model head is given."""
    head: Any = model.hf.get_output_embeddings()
    given: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        yield given
    finally:
        hook.remove()


AttentionInterface.register(PLAIN_ATTENTION, plain_attention)
AttentionMaskInterface.register(PLAIN_ATTENTION, eager_mask)
_NORMS = ("norm", "final_layer_norm")


@dataclass(slots=True)
class Stream:
    """What the residual stream held, depth by depth, over all rows of a forward.

    Depth 0 enters the first layer, scaled where a family scales its embeddings; the last depth
    enters the final norm.
    """

    depths: list[Float[Tensor, "row channel"]] = field(default_factory=list)


@contextmanager
def watched_rows_stream(model: LanguageModel) -> Generator[Stream]:
    """Note what every layer and the final norm are given while the model runs once.

    Raises:
        ModelError: The final norm is not where a family known here has it.
    """
    decoder: Any = model.hf.get_decoder()
    if not any(hasattr(decoder, name) for name in _NORMS):
        raise ModelError(
            f"expected a decoder with a final norm ({' or '.join(_NORMS)}), got "
            f"{type(decoder).__name__} without one; its states have no lens here"
        )
    seen = Stream()

    def note(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = args[0] if args else options["hidden_states"]
        seen.depths.append(given[0].detach().clone())

    places = [*decoder.layers, final_norm(model)]
    hooks = [place.register_forward_pre_hook(note, with_kwargs=True) for place in places]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen.depths) == model.n_layers + 1, "the model must run once while it is watched"


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


Shift = Float32[Tensor, "row channel"]


@contextmanager
def shifted(model: LanguageModel, shift: Shift | None) -> Generator[None]:
    """Add to the rows of a packed forward before the first layer; nothing is left behind."""
    if shift is None:
        yield
        return
    decoder: Any = model.hf.get_decoder()

    def move(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0] + shift.to(given[0]), *given[1:])

    hook = decoder.layers[0].register_forward_pre_hook(move)
    try:
        yield
    finally:
        hook.remove()
