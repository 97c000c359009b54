"""`tempo.forward`: a plain forward of a text under edits, with everything it computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64

from tempo.attention import NAME
from tempo.cache import SlotCache
from tempo.capture import Capture
from tempo.decoding import Session
from tempo.edit_checks import check_edit_list, check_slots, check_touched
from tempo.errors import InputError, NumericalError
from tempo.loading import Source, load_model
from tempo.model import LanguageModel, attention_as
from tempo.passing import Ran
from tempo.passing import forward as run_forward
from tempo.plain.feeding import check_sequences
from tempo.policy.edits import Edit
from tempo.policy.presets import greedy
from tempo.policy.slots import prompt_table
from tempo.sight import View


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

    Raises:
        InputError: No tokens, too many, a head that is not the model's, or an edit without a row
            or slot to act on.
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
    session = Session(
        loaded,
        Capture("weights", layers, heads),
        edits=tuple(edit for edits in variants for edit in edits),
        edited=tuple(number for number, edits in enumerate(variants) for _ in edits),
        keeps_outputs=True,
    )
    view = View(prompt_table(ids.tolist()), np.arange(len(ids)), greedy(), np.arange(len(ids)))
    cache = SlotCache(n_sequences=len(variants), capacity=len(ids))
    with torch.inference_mode(), attention_as(loaded.hf, NAME):
        passes = run_forward(session, cache, [view] * len(variants), first=0)
    check_touched(session.edits, session.touched)
    if any(not torch.isfinite(one.logits).all() for one in passes):
        raise NumericalError(
            "expected finite logits, got NaN or infinity; check the weights, the size of the "
            "edits, or load the model in float32"
        )
    return [_forwarded(ids, one, number) for number, one in enumerate(passes)]


def _forwarded(ids: Int64[np.ndarray, " query"], ran: Ran, number: int) -> Forwarded:
    outputs = [ran.outputs[layer][number].transpose(0, 1) for layer in sorted(ran.outputs)]
    return Forwarded(
        tokens=ids,
        logits=ran.logits.float().cpu().numpy(),
        attention=ran.tensors["weights"],
        head_outputs=torch.stack(outputs).float().cpu().numpy(),
    )
