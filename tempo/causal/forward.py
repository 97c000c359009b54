"""One causal forward of a text, with edits in it: `tempo.forward`."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tempo.causal.eager_rows import check_sequences, checked_names, value_norm_reader
from tempo.engine.attention import PACKED_ATTENTION
from tempo.engine.batch import SequenceBatch
from tempo.engine.capture import NOTHING, Capture
from tempo.engine.edits import check_applied, check_edit_list, check_slots
from tempo.engine.forward import packed_forward as run_forward
from tempo.engine.kv_cache import SlotCache
from tempo.engine.state import DecodeContext
from tempo.errors import InputError, NumericalError
from tempo.models.hooks import watched_inputs, watched_stream
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.load import Source, load_model
from tempo.models.projections import output_modules
from tempo.policy.edits import Edit
from tempo.policy.presets import greedy
from tempo.policy.slots import prompt_table

QUANTITIES = (
    *("logits", "attention", "head_outputs", "residual", "values", "value_norm", "final"),
)
"""What `forward` can keep; see the properties of `Forwarded`."""
DEFAULT_KEEP = ("logits", "attention", "head_outputs")


@dataclass(frozen=True, slots=True, eq=False)
class Forwarded:
    """One forward of a text; reading a quantity that was not kept raises an error.

    Attributes:
        tokens: As fed; query i is slot i.
        kept: Arrays by name, see `QUANTITIES`.
    """

    tokens: Int64[np.ndarray, " query"]
    kept: Mapping[str, Float32[np.ndarray, "..."]]

    @property
    def logits(self) -> Float32[np.ndarray, "query vocab"]:
        """Logits of the next token at every query."""
        return self._array("logits")

    @property
    def attention(self) -> Float32[np.ndarray, "layer head query slot"]:
        """Rows as the model used them, edits included.

        A row that lost an edge after the softmax sums to less than 1.
        """
        return self._array("attention")

    @property
    def head_outputs(self) -> Float32[np.ndarray, "layer query head channel"]:
        """Output of each head at the input of the output projection, edits included."""
        return self._array("head_outputs")

    @property
    def residual(self) -> Float32[np.ndarray, "depth query hidden"]:
        """The residual stream: depth 0 enters the first layer, depth k leaves layer k - 1."""
        return self._array("residual")

    @property
    def values(self) -> Float32[np.ndarray, "layer kv_head slot channel"]:
        """Value vectors by KV head; an edit that zeroes values acts where they are read."""
        return self._array("values")

    @property
    def value_norm(self) -> Float32[np.ndarray, "layer head slot"]:
        """`|| v W_O ||` of each slot's value through each query head."""
        return self._array("value_norm")

    @property
    def final(self) -> Float32[np.ndarray, "query hidden"]:
        """Hidden states after the final norm, which the language-model head reads."""
        return self._array("final")

    def log_probability(self) -> Float32[np.ndarray, "query vocab"]:
        """Log-probabilities (natural) of the next token at every query."""
        # less the largest, so that no exponential overflows
        shifted = self.logits - self.logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def _array(self, name: str) -> np.ndarray:
        if name not in self.kept:
            raise InputError(
                f"expected {name} to be kept, got a forward that kept {', '.join(self.kept)}; "
                f"write keep=[{name!r}]"
            )
        return self.kept[name]


def forward(
    model: Source,
    text: str | Sequence[int] | np.ndarray,
    *,
    edits: Sequence[Edit] = (),
    keep: Sequence[str] = DEFAULT_KEEP,
) -> Forwarded:
    """Run a text once, causally, with edits; the model itself is not changed.

    Args:
        model: A loaded model, or whatever `load_model` takes.
        text: Text, encoded with the tokenizer's own special tokens, or token ids.
        edits: From `tempo.edits`; they compose: embeddings, then scores, biases and scales in the
            order given and knock-outs last, then the softmax, then weights and values, then head
            outputs.
        keep: Names of `QUANTITIES`: logits, attention, head_outputs, residual, values, value_norm,
            final. Others cost no memory.

    Returns:
        What was kept, as numpy arrays.

    Raises:
        InputError: No tokens, too many, a head that is not the model's, a name that is not known,
            or an edit without a row or slot to act on.
        ModelError: The output projections, which `head_outputs` and `value_norm` need, are not
            where a family known here has them.

    Example:
        >>> cut = tempo.forward(model, "The cat sat", edits=[tempo.edits.zero_heads("L16H0")])
        >>> cut.attention.shape  # layer, head, query, slot
        >>> tempo.forward(model, "The cat sat", keep=["residual", "values"]).residual.shape
    """
    (found,) = forward_each(model, text, [edits], keep=keep)
    return found


def forward_each(
    model: Source,
    text: str | Sequence[int] | np.ndarray,
    variants: Sequence[Sequence[Edit]],
    *,
    keep: Sequence[str] = DEFAULT_KEEP,
) -> list[Forwarded]:
    """As `forward` for several lists of edits, all in one packed forward.

    Raises:
        InputError: As `forward`, or no variants.
        ModelError: As `forward`.
    """
    kept = checked_names(keep, QUANTITIES)
    loaded = model if isinstance(model, LanguageModel) else load_model(model)
    ids = np.asarray(loaded.encode(text) if isinstance(text, str) else text, np.int64)
    if not 1 <= len(ids) <= loaded.max_positions or not variants:
        raise InputError(
            f"expected 1 to {loaded.max_positions} tokens and something to run, got {len(ids)} "
            f"tokens and {len(variants)} lists of edits; give another text"
        )
    check_sequences(loaded, [ids])
    for edits in variants:
        check_edit_list(edits)
        for edit in edits:
            check_slots(edit, len(ids))
    layers, heads = tuple(range(loaded.n_layers)), tuple(range(loaded.n_heads))
    # Edits of all variants in one list; `edited` says to which sequence each belongs.
    session = DecodeContext(
        loaded,
        Capture("weights", layers, heads) if "attention" in kept else NOTHING,
        edits=tuple(edit for edits in variants for edit in edits),
        edited=tuple(number for number, edits in enumerate(variants) for _ in edits),
    )
    return _run(session, ids, len(variants), kept)


def _run(
    session: DecodeContext, ids: Int64[np.ndarray, " query"], n_variants: int, kept: frozenset[str]
) -> list[Forwarded]:
    """One packed forward: the rows of variant n are the n-th `len(ids)` rows."""
    model = session.model
    head: Any = model.hf.get_output_embeddings()
    # a prompt is causal whatever the policy, so any policy will do
    view = SequenceBatch(
        prompt_table(ids.tolist()), np.arange(len(ids)), greedy(), np.arange(len(ids))
    )
    cache = SlotCache(n_sequences=n_variants, capacity=len(ids))
    modules = output_modules(model, range(model.n_layers)) if "head_outputs" in kept else {}
    norms = value_norm_reader(model) if "value_norm" in kept else None
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(attention_as(model.hf, PACKED_ATTENTION))
        given = stack.enter_context(watched_inputs(modules))
        final = stack.enter_context(watched_inputs({0: head} if "final" in kept else {}))
        depths = stack.enter_context(watched_stream(model)) if "residual" in kept else []
        passes = run_forward(session, cache, [view] * n_variants, first=0)
    check_applied(session.edits, session.applied_edits)
    # An edit can overflow half precision: NaN must not be reported as an effect.
    if any(not torch.isfinite(one.logits).all() for one in passes):
        raise NumericalError(
            "expected finite logits, got NaN or infinity; check the weights, the size of the "
            "edits, or load the model in float32"
        )
    found: list[Forwarded] = []
    for number, one in enumerate(passes):
        rows = slice(number * len(ids), (number + 1) * len(ids))
        own = slice(number, number + 1)
        # From the cache: values before any edit, which acts where they are read.
        values = {layer: cache.read(layer, own, len(ids))[1] for layer in range(model.n_layers)}
        arrays: dict[str, np.ndarray] = {}
        if "logits" in kept:
            arrays["logits"] = _array(one.logits)
        if "attention" in kept:
            arrays["attention"] = one.tensors["weights"]
        if "head_outputs" in kept:
            wide = _stacked([given[layer][0][0, rows] for layer in sorted(given)])
            arrays["head_outputs"] = wide.reshape(*wide.shape[:2], model.n_heads, -1)
        if "residual" in kept:
            arrays["residual"] = _stacked([depth[0, rows] for depth in depths])
        if "values" in kept:
            arrays["values"] = _stacked([each[0] for each in values.values()])
        if norms is not None:
            each = [norms(layer, value)[0] for layer, value in values.items()]
            arrays["value_norm"] = _stacked(each)
        if "final" in kept:
            arrays["final"] = _array(final[0][0][0, rows])
        found.append(Forwarded(ids, arrays))
    return found


def _array(tensor: Float[Tensor, "..."]) -> Float32[np.ndarray, "..."]:
    return tensor.float().cpu().numpy()


def _stacked(parts: Sequence[Float[Tensor, "..."]]) -> Float32[np.ndarray, "part ..."]:
    """Layers or depths as one array; they may be on different devices."""
    return np.stack([_array(part) for part in parts])
