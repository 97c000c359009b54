"""Context managers that read or change tensors inside an unmodified model.

This is the only module that registers forward hooks. Every hook is removed when its context ends,
also after an error, so a model is always left as it was.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tempo.models.language_model import LanguageModel

ReadTensor = Callable[[Tensor], Any]
"""What to keep of a tensor; reduce it here if all of them would not fit in memory."""


@contextmanager
def watched_inputs(
    modules: Mapping[int, nn.Module], read: ReadTensor = Tensor.detach
) -> Generator[dict[int, list[Any]]]:
    """Record the inputs of each module, by key, in the order of the calls.

    The note is taken after the module has run, so it is what the module really read: changes by
    other hooks are in it, whichever was registered first.

    Example:
        with watched_inputs(output_projections(model, [0])) as given:
            model.hf(ids)
        given[0][0]  # [sequence, token, head * channel]
    """
    given: dict[int, list[Any]] = {key: [] for key in modules}

    def noting(key: int) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], __: object) -> None:
            given[key].append(read(_first(args, options)))

        return note

    with _removed(
        module.register_forward_hook(noting(key), with_kwargs=True)
        for key, module in modules.items()
    ):
        yield given


@contextmanager
def watched_outputs(modules: Mapping[int, nn.Module]) -> Generator[dict[int, list[Any]]]:
    """Record the return value of each module (a tensor, or a tuple in some families), by call."""
    given: dict[int, list[Any]] = {key: [] for key in modules}

    def noting(key: int) -> Callable[..., None]:
        def note(_: nn.Module, __: object, out: Any) -> None:
            given[key].append(out)

        return note

    with _removed(module.register_forward_hook(noting(key)) for key, module in modules.items()):
        yield given


@contextmanager
def watched_stream(model: LanguageModel, read: ReadTensor = Tensor.detach) -> Generator[list[Any]]:
    """Record the residual stream of one forward, depth by depth.

    Depth 0 is what enters the first layer, scaled where a family scales its embeddings and with
    any embedding offset; depth k is what layer k - 1 returns. The last depth is before the final
    norm. A packed forward gives `[1, row, hidden]`, a batch `[sequence, token, hidden]`.

    Args:
        read: Applied to every depth as it passes.

    Example:
        with watched_stream(model) as depths:
            model.hf(ids)
        depths[-1]  # what the final norm reads
    """
    decoder: Any = model.hf.get_decoder()
    depths: list[Any] = []

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], out: Any) -> None:
        if module is decoder.layers[0]:
            depths.append(read(_first(args, options)))
        depths.append(read(out[0] if isinstance(out, tuple) else out))

    with _removed(layer.register_forward_hook(note, with_kwargs=True) for layer in decoder.layers):
        yield depths


@contextmanager
def watched_positions(hf: nn.Module) -> Generator[list[Tensor]]:
    """Record the positions passed to every rotary module, in the order of the calls."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        # called as (hidden_states, position_ids), by keyword in most families
        seen.append(options["position_ids"] if "position_ids" in options else args[1])

    rotary = [module for module in hf.modules() if "RotaryEmbedding" in type(module).__name__]
    with _removed(module.register_forward_pre_hook(note, with_kwargs=True) for module in rotary):
        yield seen


@contextmanager
def changed_inputs(
    modules: Mapping[int, nn.Module], change: Callable[[int, Tensor], Tensor]
) -> Generator[None]:
    """Replace the input tensor of each module.

    Args:
        change: Takes the key of a module and its input; returns a new tensor.
    """

    def changing(key: int) -> Callable[..., tuple[Any, ...]]:
        def replace(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            # The replaced tensor comes first by place: so do layers and projections in all
            # families.
            return (change(key, args[0]), *args[1:])

        return replace

    with _removed(
        module.register_forward_pre_hook(changing(key)) for key, module in modules.items()
    ):
        yield


RowShift = Float32[Tensor, "row channel"]


@contextmanager
def shifted(model: LanguageModel, shift: RowShift | None) -> Generator[None]:
    """Add a vector to each row of a packed forward before the first layer; None adds nothing."""
    decoder: Any = model.hf.get_decoder()
    first = {} if shift is None else {0: decoder.layers[0]}
    with changed_inputs(first, lambda _, given: given + (0 if shift is None else shift.to(given))):
        yield


@contextmanager
def zeroed_output(module: nn.Module) -> Generator[None]:
    """Make a module return zeros, its bias included."""

    def zero(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return torch.zeros_like(out)

    with _removed([module.register_forward_hook(zero)]):
        yield


class _Stopped(Exception):
    """Raised to end a forward early."""


@contextmanager
def stopped_after(module: nn.Module) -> Generator[None]:
    """End the forward, and the body of the context, once this module has run.

    Enter it after the contexts that watch the module: hooks run in the order of registration.
    """

    def stop(*_: object) -> None:
        raise _Stopped

    with _removed([module.register_forward_hook(stop)]), suppress(_Stopped):
        yield


def _first(args: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    """The tensor that a module works on: families pass it by place or by keyword."""
    return args[0] if args else options["hidden_states"]


@contextmanager
def _removed(handles: Iterable[RemovableHandle]) -> Generator[None]:
    # The generator registers a hook for each module as it is consumed; all before the body runs.
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
