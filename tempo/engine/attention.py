"""The engine's attention, called by the unmodified model through its attention-function registry.

All rows of a forward come packed as `[1, rows]`; here they are laid out per sequence against that
sequence's slot buffers. The output path is fixed per model and never depends on capture: SDPA;
SDPA with a zero-key column for a learned sink; explicit where scores are soft-capped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tempo.engine.batch import Mask, Packing, Query
from tempo.engine.kv_cache import SlotCache
from tempo.errors import ModelError

PACKED_ATTENTION = "tempo"


@dataclass(frozen=True, slots=True)
class LayerCall:
    """Inputs of the attention of one layer, kept for capture.

    Attributes:
        query: After RoPE, per sequence.
        window: Sliding window in positions, None where the layer is full.
        sinks: Learned sink score of each head (gpt-oss).
    """

    query: Query
    scaling: float
    window: int | None
    softcap: float | None
    sinks: Float[Tensor, " head"] | None


Attend = Callable[[LayerCall, Tensor, Tensor, Mask], Query]
"""Computes the head outputs of a layer from its call, keys, values and mask."""

RowsOf = Callable[[LayerCall, Tensor, Mask], tuple[Tensor, Tensor]]
"""The rows of a layer and the logarithms of their normalisers, [sequence head query (slot)]."""


@dataclass(slots=True)
class Forward:
    """State of one packed forward, passed through the model as a keyword argument.

    Attributes:
        attention_overrides: Functions that replace `attend` in edited layers.
        row_overrides: Functions that compute the captured rows where scores or weights are edited.
    """

    packing: Packing
    cache: SlotCache
    mask: Callable[[int | None], Mask]
    keep: frozenset[int]
    attention_overrides: Mapping[int, Attend] = field(default_factory=dict)
    row_overrides: Mapping[int, RowsOf] = field(default_factory=dict)
    attended: set[int] = field(default_factory=set)
    calls: dict[int, LayerCall] = field(default_factory=dict)


def tempo_attention(
    module: nn.Module,
    query: Float[Tensor, "1 head row channel"],
    key: Float[Tensor, "1 kv_head row channel"],
    value: Float[Tensor, "1 kv_head row channel"],
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    tempo_forward: Forward,
    **_: object,
) -> tuple[Float[Tensor, "1 row head channel"], None]:
    """Append this layer's keys and values, then attend each sequence to its own slots."""
    packing, layer = tempo_forward.packing, cast(int, module.layer_idx)
    _check_call(tempo_forward, layer, masked=attention_mask is not None, dropout=dropout)
    tempo_forward.cache.write(
        layer,
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        sequence=packing.sequence,
        cache_column=packing.cache_column,
    )
    queries = packing.unpack(query[0].transpose(0, 1))
    # Read after the write: a member sees itself, and siblings if they are visible.
    keys, values = tempo_forward.cache.read(layer, packing.sequences, packing.n_slots)
    # Always explicit, from the slot table. Without a mask transformers would take repeated
    # positions for packed sequences, and members would lose the prompt.
    mask = tempo_forward.mask(sliding_window).to(query.device)
    call = LayerCall(queries, float(scaling), sliding_window, softcap, s_aux)
    if layer in tempo_forward.keep:
        tempo_forward.calls[layer] = call
    out = tempo_forward.attention_overrides.get(layer, attend)(call, keys, values, mask)
    return packing.pack(out).unsqueeze(0), None


def _check_call(state: Forward, layer: int, *, masked: bool, dropout: float) -> None:
    """Refuse calls that the engine would silently compute in another way than the model."""
    expected = "expected a decoder that attends once in each layer and makes no mask of its own"
    if layer in state.attended:
        raise ModelError(f"{expected}, got a second call from layer {layer}; not supported")
    if masked or dropout:
        raise ModelError(f"{expected}, got a mask or dropout in layer {layer}; not supported")
    state.attended.add(layer)


def attend(
    call: LayerCall,
    keys: Float[Tensor, "sequence kv_head slot channel"],
    values: Float[Tensor, "sequence kv_head slot channel"],
    mask: Mask,
) -> Query:
    """Output of one layer's heads; query heads that share a KV head are folded into its rows."""
    n_kv = keys.shape[1]
    queries = fold(call.query, n_kv)
    bias = fold_mask(mask, call.query.shape[1] // n_kv)
    if call.softcap is not None:
        # SDPA has no soft cap; the softmax is in float32 and rounded before it meets the values
        weights = explicit_scores(queries, keys, call).add_(bias).softmax(-1).to(values.dtype)
        return unfold(weights @ values, call.query.shape[1])
    if call.sinks is not None:
        # a key of zeros scores 0, so the mask alone gives the column the learned score; its value
        # of zeros adds nothing: the sink only takes weight away
        keys, values, bias = with_sink_column(
            keys, values, bias, sinks=call.sinks, n_queries=call.query.shape[2]
        )
    out = nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=bias, scale=call.scaling
    )
    return unfold(out, call.query.shape[1])


def explicit_scores(
    queries: Float[Tensor, "sequence kv_head row channel"],
    keys: Float[Tensor, "sequence kv_head slot channel"],
    call: LayerCall,
) -> Float32[Tensor, "sequence kv_head row slot"]:
    """Scaled and soft-capped scores in float32, before mask and bias."""
    # the order of the families: scale, then cap, then mask; a capped -inf would be a number
    scores = (queries @ keys.transpose(-1, -2)).float() * call.scaling
    return scores if call.softcap is None else torch.tanh(scores / call.softcap) * call.softcap


def with_sink_column(
    keys: Float[Tensor, "sequence kv_head slot channel"],
    values: Float[Tensor, "sequence kv_head slot channel"],
    bias: Float[Tensor, "sequence _ row slot"],
    *,
    sinks: Float[Tensor, " head"],
    n_queries: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Append a slot of zero key and value whose score is the head's learned sink."""
    n_kv = keys.shape[1]
    column = sink_column(sinks, n_kv, n_queries).to(bias.dtype).expand(bias.shape[0], -1, -1, 1)
    wide = torch.cat([bias.expand(-1, n_kv, -1, -1), column], -1)
    return nn.functional.pad(keys, (0, 0, 0, 1)), nn.functional.pad(values, (0, 0, 0, 1)), wide


def sink_column(
    sinks: Float[Tensor, " head"], n_kv: int, n_queries: int
) -> Float[Tensor, "1 kv_head row 1"]:
    """Learned sink scores in the folded row order."""
    # one score a query head, repeated for each of its queries: see `fold`
    return sinks.view(n_kv, -1, 1).expand(-1, -1, n_queries).reshape(1, n_kv, -1, 1)


def fold(query: Query, n_kv: int) -> Float[Tensor, "sequence kv_head row channel"]:
    """Query heads of one KV head as its rows: row = head in the group * n_queries + query."""
    # query heads of one KV head are neighbours, so a reshape is enough and keys are not copied
    n_sequences, _, _, n_channels = query.shape
    return query.reshape(n_sequences, n_kv, -1, n_channels)


def unfold(out: Float[Tensor, "sequence kv_head row channel"], n_heads: int) -> Query:
    """The inverse of `fold`."""
    return out.reshape(out.shape[0], n_heads, -1, out.shape[3])


def fold_mask(mask: Mask, group: int) -> Float[Tensor, "sequence 1 row slot"]:
    """One copy of the mask for each query head of a KV head."""
    return mask.repeat(1, group, 1).unsqueeze(1)


def _no_mask(*_: object, **__: object) -> None:
    return None


# process-wide and harmless: a model uses it only while its config names it. The mask function
# returns nothing because every row's visibility comes from the slot table
AttentionInterface.register(PACKED_ATTENTION, tempo_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
