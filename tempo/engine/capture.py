"""The attention of a step for the trace, computed separately from the model's output path.

Rows are the float32 softmax of the same queries and keys, after RoPE, that the model used. They do
not enter the output, so tokens and logits are bit-equal with capture on and off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from tempo.engine.attention import (
    Forward,
    LayerCall,
    explicit_scores,
    fold,
    fold_mask,
    sink_column,
    unfold,
)
from tempo.engine.batch import BatchMask, SequenceBatch
from tempo.policy.pruning import Received
from tempo.policy.slots import group_of
from tempo.trace.attention import group_onehot
from tempo.trace.schema import bias_name, visible_name

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Capture:
    """What to keep of every row.

    Attributes:
        level: weights, qk or reduced; None keeps nothing.
        layers: Layers to keep.
        heads: Query heads to keep.
        values: Whether to keep the norm of each slot's value too, see `tempo.engine.value_norms`.
    """

    level: str | None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    values: bool = False


NOTHING = Capture(level=None)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one layer for all sequences of a forward."""

    weights: Float32[Tensor, "sequence head query slot"]
    logsumexp: Float32[Tensor, "sequence head query"]


def captured(forward: Forward, sight: BatchMask, capture: Capture) -> list[Tensors]:
    """The tensors of each sequence's rows, by the names of `docs/trace-format.md`."""
    if capture.level is None:
        return [{} for _ in sight.views]
    calls = [(layer, forward.calls[layer]) for layer in capture.layers]
    per_layer = [
        _layer_tensors(layer, call, forward=forward, sight=sight, capture=capture)
        for layer, call in calls
    ]
    windows = dict.fromkeys(call.window for _, call in calls)
    stacked = [
        _stack([tensors[number] for tensors in per_layer]) for number in range(len(sight.views))
    ]
    return [tensors | _seen(sight, number, windows) for number, tensors in enumerate(stacked)]


def layer_facts(forward: Forward, capture: Capture) -> dict[str, object]:
    """Scaling, window, soft cap and learned sinks of each kept layer, as the model passed them."""
    calls = [forward.calls[layer] for layer in capture.layers]
    heads = list(capture.heads)
    sinks = tuple(
        None if call.sinks is None else tuple(call.sinks[heads].float().tolist()) for call in calls
    )
    return {
        "scaling": tuple(call.scaling for call in calls),
        "window": tuple(call.window for call in calls),
        "softcap": tuple(call.softcap for call in calls),
        "sinks": sinks if any(sinks) else None,
    }


def _layer_tensors(
    layer: int, call: LayerCall, *, forward: Forward, sight: BatchMask, capture: Capture
) -> list[Tensors]:
    rows = _rows(layer, call, forward=forward, sight=sight)
    heads = list(capture.heads)
    weights, logsumexp = rows.weights[:, heads], rows.logsumexp[:, heads]
    keys, _ = forward.cache.read(layer, forward.packing.sequences, forward.packing.n_slots)
    tensors: list[Tensors] = []
    for number, view in enumerate(sight.views):
        n_queries = len(view.queries)
        kept = _by_slot(weights[number, :, :n_queries], view)
        piece = {"logsumexp": logsumexp[number, :, :n_queries]}
        if capture.level == "weights":
            piece["weights"] = kept
        elif capture.level == "reduced":
            piece |= _reduced(kept, sight, number)
        else:
            piece["q"] = call.query[number, heads, :n_queries].float()
            piece["k"] = keys[number, :, torch.from_numpy(view.cache_columns)].float()
        tensors.append({name: value.cpu().numpy() for name, value in piece.items()})
    return tensors


def received(forward: Forward, sight: BatchMask) -> list[Received]:
    """Attention received by each slot in a forward: mean over all layers, heads and queries."""
    total = [np.zeros(len(view.table), np.float64) for view in sight.views]
    for layer, call in forward.calls.items():
        weights = _rows(layer, call, forward=forward, sight=sight).weights
        for number, view in enumerate(sight.views):
            if len(view.queries):
                kept = _by_slot(weights[number, :, : len(view.queries)], view)
                # Mean over heads and queries of one layer; layers have equal weight.
                total[number] += kept.mean((0, 1)).cpu().numpy()
    return [(one / len(forward.calls)).astype(np.float32) for one in total]


def _by_slot(
    weights: Float32[Tensor, "head query place"], view: SequenceBatch
) -> Float32[Tensor, "head query slot"]:
    """Rows over every slot ever written; 0 for evicted slots."""
    cached = weights[..., : len(view.cached_slots)]
    if len(view.cached_slots) == len(view.table):
        return cached
    whole = cached.new_zeros(*cached.shape[:2], len(view.table))
    whole[..., torch.from_numpy(view.cached_slots).to(cached.device)] = cached
    return whole


def _rows(layer: int, call: LayerCall, *, forward: Forward, sight: BatchMask) -> _Rows:
    keys, _ = forward.cache.read(layer, forward.packing.sequences, forward.packing.n_slots)
    if layer in forward.row_overrides:
        mask = sight.mask(call.window).to(keys.device)
        return _Rows(*forward.row_overrides[layer](call, keys, mask))
    n_heads, n_kv = call.query.shape[1], keys.shape[1]
    # float32 before the product: in float16 weights under 6e-8 would be 0, and sums off by 1e-3.
    scores = explicit_scores(fold(call.query.float(), n_kv), keys.float(), call)
    mask = sight.mask(call.window).to(scores.device)
    scores += fold_mask(mask.float(), n_heads // n_kv)
    if call.sinks is not None:
        column = sink_column(call.sinks.float(), n_kv, call.query.shape[2])
        scores = torch.cat([scores, column.expand(scores.shape[0], -1, -1, 1)], -1)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    weights = unfold(weights.div_(total), n_heads)
    logsumexp = unfold(total.log_().add_(top), n_heads)[..., 0]
    # The sink column takes part in the normaliser and is then dropped; rows sum to less than 1.
    return _Rows(weights if call.sinks is None else weights[..., :-1], logsumexp)


def _reduced(
    weights: Float32[Tensor, "head query slot"], sight: BatchMask, number: int
) -> dict[str, Tensor]:
    view = sight.views[number]
    onehot = torch.from_numpy(group_onehot(group_of(view.table, view.queries))).to(weights.device)
    return {
        "group_mass": torch.einsum("hqs,qsg->hqg", weights, onehot),
        # entr(0) is 0, where -w log w would be NaN.
        "entropy_nats": torch.special.entr(weights).sum(-1),
        "max_weight": weights.amax(-1),
    }


def _stack(layers: Sequence[Mapping[str, np.ndarray]]) -> Tensors:
    return {name: np.stack([tensors[name] for tensors in layers]) for name in layers[0]}


def _seen(sight: BatchMask, number: int, windows: Mapping[int | None, None]) -> Tensors:
    view = sight.views[number]

    def by_slot(columns: np.ndarray) -> np.ndarray:
        whole = np.zeros((len(columns), len(view.table)), columns.dtype)
        whole[:, view.cached_slots] = columns
        return whole

    seen = {
        visible_name(window): np.packbits(by_slot(sight.visible(window)[number]), axis=-1)
        for window in windows
    }
    if view.policy.bias:
        seen |= {bias_name(window): by_slot(sight.bias(window)[number]) for window in windows}
    return seen


def join_chunks(chunks: Sequence[Tensors]) -> Tensors:
    """Tensors of one step from those of its chunks, in order of their queries.

    Rows and packed visibility are as long as the slots written so far; shorter ones are padded.
    """
    if len(chunks) == 1:
        return chunks[0]
    joined: Tensors = {}
    for name in chunks[0]:
        pieces = [chunk[name] for chunk in chunks]
        # The query axis: first in visibility and bias, third in [layer head query ...].
        axis = 0 if name.startswith(("visible/", "bias/")) else 2
        if name == "weights" or axis == 0:
            longest = max(piece.shape[-1] for piece in pieces)
            pieces = [
                np.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, longest - p.shape[-1])]) for p in pieces
            ]
        joined[name] = np.concatenate(pieces, axis)
    return joined
