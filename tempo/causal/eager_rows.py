"""Causal forwards of many texts, with the rows of the model's own eager attention.

Sequences run in batches of one length, so nothing is padded, and are yielded one at a time. The
model's attention setting is restored before each of them is yielded.
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

from tempo.engine.value_norms import value_norms
from tempo.errors import InputError, ModelError
from tempo.models.hooks import watched_inputs, watched_stream
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.projections import head_slices, output_projections
from tempo.models.support import check_rope

SequenceIds = Int64[np.ndarray, " _"]
"""Token ids of one sequence among others, whose lengths may differ."""
IdBatch = Int64[np.ndarray, "sequence token"]


def check_sequences(model: LanguageModel, sequences: Sequence[SequenceIds]) -> None:
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


def checked_names(keep: Sequence[str], known: Sequence[str]) -> frozenset[str]:
    """The names of quantities to keep.

    Raises:
        InputError: A name that is not known, or a string in place of a list of them.
    """
    unknown = [keep] if isinstance(keep, str) else sorted(set(keep) - set(known))
    if unknown:
        raise InputError(
            f"expected a list of {', '.join(known)} to keep, got {', '.join(unknown)}; choose again"
        )
    return frozenset(keep)


def batches_of(sequences: Sequence[SequenceIds], batch: int) -> Iterator[IdBatch]:
    """Batches of neighbouring sequences of one length, in order, at most `batch` in each."""
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
    """Results of the model's own eager attention in one forward, by layer.

    Attributes:
        read: Function of layer and values whose result is kept; None to keep nothing.
        masks: Additive masks; absent where the family passes none.
        outputs: Head outputs of each layer, before the output projection.
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
    """Call the family's own eager attention and record its results."""
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
# Both registrations are needed: without a mask function causality is silently dropped.
AttentionMaskInterface.register(EAGER_ATTENTION, eager_mask)

QUANTITIES = ("head_outputs", "value_norm", "activations", "final", "predictions")
"""What can be kept of a sequence beside its rows; see `EagerRows`."""
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
    """Losses and top predictions of the model on its text.

    Attributes:
        nll: Loss in nats of each token but the first, given the tokens before it.
        best: Top-ranked token of each row.
    """

    nll: Float32[np.ndarray, " later"]
    best: Token


@dataclass(frozen=True, slots=True, eq=False)
class EagerRows:
    """Rows and kept quantities of one sequence; quantities not kept are None.

    Attributes:
        weights: Rows sum to 1, less where a head has a learned sink.
        visible: What each layer's mask let a row see; None where all layers are plain causal.
        head_outputs: What each head gives to the output projection.
        value_norm: Norm of each slot's value through each head's output weights.
        final: Hidden states behind the final norm.
    """

    tokens: Token
    weights: Float32[np.ndarray, "layer head query slot"]
    visible: Bool[np.ndarray, "layer query slot"] | None
    head_outputs: Float32[np.ndarray, "layer query head channel"] | None = None
    value_norm: Float32[np.ndarray, "layer head slot"] | None = None
    activations: Activations | None = None
    final: Float32[np.ndarray, "query hidden"] | None = None
    predictions: Predictions | None = None


def eager_rows(
    model: LanguageModel,
    sequences: Sequence[SequenceIds] | IdBatch,
    *,
    batch: int = BATCH,
    keep: Sequence[str] = (),
) -> Iterator[EagerRows]:
    """Run sequences in the given order; neighbours of one length run together.

    Rows are those of the family's own eager attention, bit for bit. Nothing is edited; see
    `tempo.forward` for one text under edits.

    Args:
        sequences: Token ids, complete with any bos token.
        batch: Most sequences in one forward.
        keep: Any of `QUANTITIES` beside the rows; each costs memory while a sequence is kept.

    Raises:
        InputError: A sequence, the batch or a name in `keep` cannot be used.
        ModelError: The model does not attend as its family's eager attention.
    """
    kept = checked_names(keep, QUANTITIES)
    if batch < 1:
        raise InputError(f"expected a batch of at least 1, got {batch}; take 8")
    rows = [np.asarray(ids, np.int64) for ids in sequences]
    check_sequences(model, rows)
    # A generator of its own, so that errors in the arguments are raised here, not at the first
    # item.
    return _streamed(model, rows, batch, kept)


def _streamed(
    model: LanguageModel, sequences: Sequence[SequenceIds], batch: int, kept: frozenset[str]
) -> Generator[EagerRows]:
    read = value_norm_reader(model) if "value_norm" in kept else None
    linears = output_projections(model, range(model.n_layers)) if _needs_inputs(kept) else {}
    for ids in batches_of(sequences, batch):
        # New for each batch: rows of earlier batches must not stay in memory.
        notes = EagerNotes(read)
        with watched_inputs(linears) as given:
            depths, final, logits = _run(model, ids, notes, kept)
        inputs = {layer: calls[0] for layer, calls in given.items()}
        _check_projection(model, notes, inputs)
        by_head = "head_outputs" in kept
        for number, tokens in enumerate(ids):
            yield EagerRows(
                tokens=tokens,
                weights=_stack(notes.weights, number),
                visible=_visible(notes.masks, number),
                head_outputs=_heads(inputs, number, model.n_heads) if by_head else None,
                value_norm=_stack(notes.values, number) if read else None,
                activations=_activations(depths, number, model.config.hidden_size),
                final=_array(final[number]) if "final" in kept else None,
                predictions=None if logits is None else _predictions(logits[number], tokens),
            )


def _needs_inputs(kept: frozenset[str]) -> bool:
    return bool(kept & {"head_outputs", "value_norm"})


@dataclass(frozen=True, slots=True)
class _Depth:
    """The residual stream at one depth, summarised at once because it is too large to keep.

    Attributes:
        index: Index of the largest value, in the flattened [token channel].
    """

    norm: Float32[Tensor, "sequence token"]
    largest: Float32[Tensor, " sequence"]
    median: Float32[Tensor, " sequence"]
    index: Int64[Tensor, " sequence"]


def _depth(stream: Float[Tensor, "sequence token hidden"]) -> _Depth:
    # Flattened, so that one index gives token and channel: index // channels, index % channels.
    size = stream.float().abs().flatten(1)
    largest, index = size.max(1)
    return _Depth(stream.float().norm(dim=-1), largest, size.median(1).values, index)


@torch.inference_mode()
def _run(
    model: LanguageModel, ids: IdBatch, notes: EagerNotes, kept: frozenset[str]
) -> tuple[list[_Depth], Tensor, Tensor | None]:
    """Summaries of the stream, final hidden states, and logits if predictions are kept."""
    decoder: Any = model.hf.get_decoder()
    head: Any = model.hf.get_output_embeddings()
    fed = torch.from_numpy(ids).to(model.device)
    with ExitStack() as stack:
        stack.enter_context(attention_as(model.hf, EAGER_ATTENTION))
        depths: list[_Depth] = []
        if "activations" in kept:
            depths = stack.enter_context(watched_stream(model, _depth))
        if "predictions" not in kept:
            # the head is the largest product of a small model: left out where nobody asks
            out = decoder(input_ids=fed, use_cache=False, tempo_eager=notes)
            return depths, out.last_hidden_state, None
        final = stack.enter_context(watched_inputs({0: head}))
        logits = model.hf(input_ids=fed, use_cache=False, tempo_eager=notes).logits
        return depths, final[0][0], logits


def value_norm_reader(model: LanguageModel) -> Callable[[int, Tensor], Tensor]:
    """For a layer and its values, `|| v W_O ||` of each value through each query head."""
    # under GQA a group of query heads reads one KV head, each through its own part of W_O
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
    """Refuse a layer that gates or changes the outputs of its heads before projecting them."""
    for layer, out in notes.outputs.items():
        # Exactly: an output projection reads the same tensor or another one.
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
    """Visibility from the additive masks; None where it is plainly causal in all layers."""
    if not masks:
        return None
    # Families may pass one mask for the batch; then every sequence has the first.
    shares = (masks[layer][min(number, len(masks[layer]) - 1), 0] for layer in sorted(masks))
    # transformers hides with the lowest finite number, not with -inf; half of it splits the two
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
