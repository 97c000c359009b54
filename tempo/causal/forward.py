"""Plain causal forwards of an unmodified model, with the attention rows just as it ran them.

Sequences run in batches of one length, so nothing is padded, and are handed on one at a time. The
model's attention setting is as before whenever a caller looks.
"""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.batch import SequenceBatch
from tempo.engine.capture import Capture
from tempo.engine.edits import check_applied, check_edit_list, check_slots
from tempo.engine.forward import ForwardOutput
from tempo.engine.forward import forward as run_forward
from tempo.engine.kv_cache import SlotCache
from tempo.engine.state import DecodeContext
from tempo.engine.value_norms import value_norms
from tempo.errors import InputError, ModelError, NumericalError
from tempo.models.hooks import watched_inputs, watched_stream
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.load import Source, load_model
from tempo.models.projections import head_slices, output_projections
from tempo.models.support import check_rope
from tempo.policy.edits import Edit
from tempo.policy.presets import greedy
from tempo.policy.slots import prompt_table


@dataclass(frozen=True, slots=True, eq=False)
class Forwarded:
    """One forward of a text.

    Attributes:
        tokens: As fed; query i is slot i.
        logits: Of the next token at every query.
        attention: Rows as the model used them, edits included; one that lost an edge after the
            softmax sums to less than 1.
        head_outputs: What each head gave to the output projection, edits included.
    """

    tokens: Int64[np.ndarray, " query"]
    logits: Float32[np.ndarray, "query vocab"]
    attention: Float32[np.ndarray, "layer head query slot"]
    head_outputs: Float32[np.ndarray, "layer query head channel"]

    def log_probability(self) -> Float32[np.ndarray, "query vocab"]:
        """Of the next token at every query, natural logarithms."""
        shifted = self.logits - self.logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def forward(
    model: Source, text: str | Sequence[int] | np.ndarray, *, edits: Sequence[Edit] = ()
) -> Forwarded:
    """Run a text once, causally, with some edits in it; the model is left as it was.

    Args:
        model: A loaded model, or whatever `load_model` takes.
        text: Text, encoded with the tokenizer's own special tokens, or token ids.
        edits: From `tempo.edits`; they compose: embeddings, then scores, biases and scales in the
            order given and knock-outs last, then the softmax, then weights and values, then head
            outputs.

    Returns:
        Logits, attention rows and head outputs, as numpy arrays.

    Raises:
        InputError: No tokens, too many, a head that is not the model's, or an edit without a row
            or slot to act on.

    Example:
        >>> cut = tempo.forward(model, "The cat sat", edits=[tempo.edits.zero_heads("L16H0")])
        >>> cut.attention.shape  # layer, head, query, slot
    """
    (found,) = forward_each(model, text, [edits])
    return found


def forward_each(
    model: Source, text: str | Sequence[int] | np.ndarray, variants: Sequence[Sequence[Edit]]
) -> list[Forwarded]:
    """As `forward` for several lists of edits, all in one packed forward.

    Raises:
        InputError: As `forward`, or no variants.
    """
    loaded = model if isinstance(model, LanguageModel) else load_model(model)
    ids = np.asarray(loaded.encode(text) if isinstance(text, str) else text, np.int64)
    if not 1 <= len(ids) <= loaded.max_positions or not variants:
        raise InputError(
            f"expected 1 to {loaded.max_positions} tokens and something to run, got {len(ids)} "
            f"tokens and {len(variants)} lists of edits; give another text"
        )
    check_sequences(loaded, [ids])
    layers, heads = tuple(range(loaded.n_layers)), tuple(range(loaded.n_heads))
    for edits in variants:
        check_edit_list(edits)
        for edit in edits:
            check_slots(edit, len(ids))
    session = DecodeContext(
        loaded,
        Capture("weights", layers, heads),
        edits=tuple(edit for edits in variants for edit in edits),
        edited=tuple(number for number, edits in enumerate(variants) for _ in edits),
        keeps_outputs=True,
    )
    view = SequenceBatch(
        prompt_table(ids.tolist()), np.arange(len(ids)), greedy(), np.arange(len(ids))
    )
    cache = SlotCache(n_sequences=len(variants), capacity=len(ids))
    with torch.inference_mode(), attention_as(loaded.hf, PACKED_ATTENTION):
        passes = run_forward(session, cache, [view] * len(variants), first=0)
    check_applied(session.edits, session.applied_edits)
    if any(not torch.isfinite(one.logits).all() for one in passes):
        raise NumericalError(
            "expected finite logits, got NaN or infinity; check the weights, the size of the "
            "edits, or load the model in float32"
        )
    return [_forwarded(ids, one, number) for number, one in enumerate(passes)]


def _forwarded(ids: Int64[np.ndarray, " query"], ran: ForwardOutput, number: int) -> Forwarded:
    outputs = [ran.outputs[layer][number].transpose(0, 1) for layer in sorted(ran.outputs)]
    return Forwarded(
        tokens=ids,
        logits=ran.logits.float().cpu().numpy(),
        attention=ran.tensors["weights"],
        head_outputs=torch.stack(outputs).float().cpu().numpy(),
    )


Ids = Int64[np.ndarray, " _"]
"""Token ids of one sequence among others, whose lengths may differ."""
Batch = Int64[np.ndarray, "sequence token"]


def check_sequences(model: LanguageModel, sequences: Sequence[Ids]) -> None:
    """Refuse ids that the model does not have, empty sequences, and too long ones.

    Raises:
        InputError: Says which.
        ModelError: A position at which the model's RoPE would change its frequencies.
    """
    if not sequences or any(not len(ids) for ids in sequences):
        raise InputError("expected at least one sequence of at least one token, got none; add some")
    lowest, highest = (
        min(int(ids.min()) for ids in sequences),
        max(int(ids.max()) for ids in sequences),
    )
    if lowest < 0 or highest >= model.vocab_size:
        raise InputError(
            f"expected token ids from 0 to {model.vocab_size - 1}, got {lowest} to {highest}; "
            "encode with the model's own tokenizer"
        )
    longest = max(len(ids) for ids in sequences)
    if longest > model.max_positions:
        raise InputError(
            f"expected at most {model.max_positions} tokens, got {longest}; take shorter sequences"
        )
    check_rope(model, longest - 1)


def batches_of(sequences: Sequence[Ids], batch: int) -> Iterator[Batch]:
    """Neighbours of one length, up to a number of them, in order."""
    start = 0
    while start < len(sequences):
        end = start + 1
        while (
            end < len(sequences)
            and end - start < batch
            and len(sequences[end]) == len(sequences[start])
        ):
            end += 1
        yield np.stack(sequences[start:end])
        start = end


EAGER_ATTENTION = "tempo-eager"


@dataclass(slots=True)
class EagerNotes:
    """What the model's own eager attention computed in one forward, by layer.

    Attributes:
        read: What to take from the values; None to leave them.
        masks: Additive; absent where the family passes none.
        outputs: What each layer's heads gave, before the output projection.
    """

    read: Callable[[int, Tensor], Tensor] | None
    weights: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)


def _eager_attention(
    module: nn.Module,
    query: Float[Tensor, "sequence head query channel"],
    key: Float[Tensor, "sequence kv_head slot channel"],
    value: Float[Tensor, "sequence kv_head slot channel"],
    attention_mask: Tensor | None,
    *,
    tempo_eager: EagerNotes,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Call the family's own eager attention and note what it computed."""
    # softcaps and learned sinks are in the family's function, so its rows are used as they are
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    layer: Any = module.layer_idx
    if eager is None:
        raise ModelError(
            f"expected an eager attention beside {type(module).__name__}, got none; not supported"
        )
    out, weights = eager(module, query, key, value, attention_mask, **options)
    tempo_eager.weights[layer] = weights
    if attention_mask is not None:
        tempo_eager.masks[layer] = attention_mask
    if tempo_eager.read is not None:
        tempo_eager.values[layer] = tempo_eager.read(layer, value)
        tempo_eager.outputs[layer] = out
    return out, weights


AttentionInterface.register(EAGER_ATTENTION, _eager_attention)
AttentionMaskInterface.register(EAGER_ATTENTION, eager_mask)

EXTRAS = ("inputs", "value_norm", "activations", "final", "predictions")
BATCH = 8

Token = Int64[np.ndarray, " token"]


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """The residual stream before the first layer (depth 0) and after each layer.

    Attributes:
        norm: Its length at every token.
        largest: Largest absolute value over tokens and channels.
        median: Median absolute value over tokens and channels.
        token: Place of the token that holds the largest.
        channel: Its channel.
    """

    norm: Float32[np.ndarray, "depth token"]
    largest: Float32[np.ndarray, " depth"]
    median: Float32[np.ndarray, " depth"]
    token: Int64[np.ndarray, " depth"]
    channel: Int64[np.ndarray, " depth"]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What the model makes of its text.

    Attributes:
        nll: Of each token but the first, given those before it, in nats.
        best: The token that each row ranks first.
    """

    nll: Float32[np.ndarray, " later"]
    best: Token


@dataclass(frozen=True, slots=True, eq=False)
class PlainRows:
    """One sequence; what was not asked for is None.

    Attributes:
        weights: Rows sum to 1, less where a head has a learned sink.
        visible: What each layer's mask let a row see; None where all layers are plain causal.
        inputs: What the output projection is given by each head.
        value_norm: Norm of each slot's value through each head's output weights.
        final: Hidden states behind the final norm.
    """

    tokens: Token
    weights: Float32[np.ndarray, "layer head query slot"]
    visible: Bool[np.ndarray, "layer query slot"] | None
    inputs: Float32[np.ndarray, "layer query head channel"] | None = None
    value_norm: Float32[np.ndarray, "layer head slot"] | None = None
    activations: Activations | None = None
    final: Float32[np.ndarray, "query hidden"] | None = None
    predictions: Predictions | None = None


def plain_rows(
    model: LanguageModel,
    sequences: Sequence[Ids] | Batch,
    *,
    batch: int = BATCH,
    extras: Sequence[str] = (),
) -> Iterator[PlainRows]:
    """Run sequences in the given order; neighbours of one length run together.

    Args:
        sequences: Token ids, complete with any bos token.
        batch: Most sequences in one forward.
        extras: Any of EXTRAS; each costs memory while a sequence is held.

    Raises:
        InputError: A sequence, the batch or an extra cannot be used.
        ModelError: The model does not attend as its family's eager attention.
    """
    unknown = sorted(set(extras) - set(EXTRAS))
    if unknown or batch < 1:
        raise InputError(
            f"expected extras of {', '.join(EXTRAS)} and a batch of at least 1, got "
            f"{', '.join(unknown) or 'no other'} and {batch}; choose again"
        )
    rows = [np.asarray(ids, np.int64) for ids in sequences]
    check_sequences(model, rows)
    return _streamed(model, rows, batch, frozenset(extras))


def _streamed(
    model: LanguageModel, sequences: Sequence[Ids], batch: int, extras: frozenset[str]
) -> Generator[PlainRows]:
    read = _norm_reader(model) if "value_norm" in extras else None
    linears = output_projections(model, range(model.n_layers)) if _needs_inputs(extras) else {}
    for ids in batches_of(sequences, batch):
        notes = EagerNotes(read)
        with watched_inputs(linears) as given:
            depths, final, logits = _run(model, ids, notes, extras)
        inputs = {layer: calls[0] for layer, calls in given.items()}
        _check_projection(model, notes, inputs)
        for number, tokens in enumerate(ids):
            yield PlainRows(
                tokens=tokens,
                weights=_stack(notes.weights, number),
                visible=_visible(notes.masks, number),
                inputs=_heads(inputs, number, model.n_heads) if "inputs" in extras else None,
                value_norm=_stack(notes.values, number) if read else None,
                activations=_activations(depths, number, model.config.hidden_size),
                final=_array(final[number]) if "final" in extras else None,
                predictions=None if logits is None else _predictions(logits[number], tokens),
            )


def _needs_inputs(extras: frozenset[str]) -> bool:
    return bool(extras & {"inputs", "value_norm"})


@dataclass(frozen=True, slots=True)
class _Depth:
    """The residual stream at one depth, summarised while it passes: it is too large to keep.

    Attributes:
        index: Of the largest value, in the flattened [token channel].
    """

    norm: Float32[Tensor, "sequence token"]
    largest: Float32[Tensor, " sequence"]
    median: Float32[Tensor, " sequence"]
    index: Int64[Tensor, " sequence"]


def _depth(stream: Float[Tensor, "sequence token hidden"]) -> _Depth:
    size = stream.float().abs().flatten(1)
    largest, index = size.max(1)
    return _Depth(stream.float().norm(dim=-1), largest, size.median(1).values, index)


@torch.inference_mode()
def _run(
    model: LanguageModel, ids: Batch, notes: EagerNotes, extras: frozenset[str]
) -> tuple[list[_Depth], Tensor, Tensor | None]:
    """Summaries of the stream, final hidden states, and logits where they are asked for."""
    decoder: Any = model.hf.get_decoder()
    head: Any = model.hf.get_output_embeddings()
    fed = torch.from_numpy(ids).to(model.device)
    with ExitStack() as stack:
        stack.enter_context(attention_as(model.hf, EAGER_ATTENTION))
        depths: list[_Depth] = []
        if "activations" in extras:
            depths = stack.enter_context(watched_stream(model, _depth))
        if "predictions" not in extras:
            # the head is the largest product of a small model: left out where nobody asks
            out = decoder(input_ids=fed, use_cache=False, tempo_eager=notes)
            return depths, out.last_hidden_state, None
        final = stack.enter_context(watched_inputs({0: head}))
        logits = model.hf(input_ids=fed, use_cache=False, tempo_eager=notes).logits
        return depths, final[0][0], logits


def _norm_reader(model: LanguageModel) -> Callable[[int, Tensor], Tensor]:
    """How far each value reaches through each head."""
    group = model.n_heads // model.n_kv_heads
    heads = [head // group for head in range(model.n_heads)]
    linears = output_projections(model, range(model.n_layers))
    slices = {layer: head_slices(one.weight, model.n_heads) for layer, one in linears.items()}
    with torch.inference_mode():
        grams = {layer: part @ part.mT for layer, part in slices.items()}

    def read(layer: int, value: Float[Tensor, "sequence kv_head slot channel"]) -> Tensor:
        return torch.stack([value_norms(one[heads], grams[layer]) for one in value])

    return read


def _check_projection(
    model: LanguageModel,
    notes: EagerNotes,
    inputs: Mapping[int, Float[Tensor, "sequence query wide"]],
) -> None:
    """Refuse a layer that gates or changes what its heads give before it projects them."""
    for layer, out in notes.outputs.items():
        if not torch.equal(out.flatten(2), inputs[layer]):
            raise ModelError(
                "expected an output projection that reads its heads as they are, got other inputs "
                f"in layer {layer} of {type(model.hf).__name__}; leave out value_norm"
            )


def _stack(parts: Mapping[int, Tensor], number: int) -> np.ndarray:
    """One sequence's share of every layer, in the order of layers."""
    return np.stack([_array(parts[layer][number]) for layer in sorted(parts)])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _heads(inputs: Mapping[int, Tensor], number: int, n_heads: int) -> np.ndarray:
    whole = _stack(inputs, number)
    return whole.reshape(*whole.shape[:2], n_heads, -1)


def _visible(masks: Mapping[int, Tensor], number: int) -> np.ndarray | None:
    """What the additive masks let through; None where that is every earlier slot and oneself."""
    if not masks:
        return None
    shares = (masks[layer][min(number, len(masks[layer]) - 1), 0] for layer in sorted(masks))
    seen = np.stack([(mask > torch.finfo(mask.dtype).min / 2).cpu().numpy() for mask in shares])
    return None if (seen == np.tril(np.ones(seen.shape[1:], bool))).all() else seen


def _activations(depths: Sequence[_Depth], number: int, n_channels: int) -> Activations | None:
    if not depths:
        return None
    index = np.array([int(one.index[number]) for one in depths])
    return Activations(
        norm=np.stack([_array(one.norm[number]) for one in depths]),
        largest=np.stack([_array(one.largest[number]) for one in depths]),
        median=np.stack([_array(one.median[number]) for one in depths]),
        token=index // n_channels,
        channel=index % n_channels,
    )


def _predictions(logits: Float[Tensor, "query vocab"], tokens: Token) -> Predictions:
    following = torch.from_numpy(tokens[1:]).to(logits.device)
    lost = nn.functional.cross_entropy(logits[:-1].float(), following, reduction="none")
    return Predictions(_array(lost), logits.argmax(-1).cpu().numpy())
