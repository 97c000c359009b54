"""One packed forward of the unmodified model: the rows of many sequences as one."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tempo.engine.attention import Forward
from tempo.engine.batch import BatchMask, SequenceBatch, packed
from tempo.engine.capture import NOTHING, Tensors, captured, layer_facts, received
from tempo.engine.edits import editing
from tempo.engine.guards import guard_first_step, guard_projections
from tempo.engine.kv_cache import SlotCache
from tempo.engine.state import DecodeContext
from tempo.engine.value_norms import NONE, captured_values
from tempo.errors import ModelError
from tempo.models.hooks import shifted, watched_inputs, watched_positions
from tempo.models.language_model import LanguageModel
from tempo.policy.pruning import Received


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """One sequence's share of a forward.

    Attributes:
        received: Attention received by each slot; zeros where no pruning rule needs it.
    """

    logits: Float[Tensor, "query vocab"]
    tensors: Tensors
    facts: dict[str, object]
    received: Received


def packed_forward(
    session: DecodeContext,
    cache: SlotCache,
    views: Sequence[SequenceBatch],
    *,
    first: int,
    last_row_only: bool = False,
    guarded: bool = False,
    rows: bool = True,
) -> list[ForwardOutput]:
    """Run the rows of some neighbouring sequences, packed as one sequence of rows.

    Args:
        first: Number in the cache of the first of the sequences.
        last_row_only: Give the logits of each sequence's last row only.
        guarded: Run the guards on this forward.
        rows: Capture attention rows and values, as the session requires.

    Raises:
        ModelError: The forward of the model does not follow the slot table.
    """
    cache.reserve(max(len(view.cached_slots) for view in views))
    packing = packed(
        [view.cache_columns for view in views],
        [len(view.cached_slots) for view in views],
        first=first,
        device=session.model.device,
    )
    sight = BatchMask(views, session.model.hf.dtype, session.model.device)
    judged = any(view.policy.prune.needs_attention for view in views)
    keep = range(session.model.n_layers) if judged else session.capture.layers
    state = Forward(packing, cache, sight.mask, frozenset(keep))
    within = [None if one is None else one - first for one in session.within()]
    edits = editing(session.model, session.edits, views, within=within)
    if edits is not None:
        state.attention_overrides = edits.attention_overrides()
        state.row_overrides = edits.row_overrides()
        # Edits change rows and projections on purpose, which the guards would refuse.
        guarded = False
    counts = [1 if last_row_only else len(view.queries) for view in views]
    through = session.projections if rows else NONE
    with (
        watched_positions(session.model.hf) if guarded else nullcontext([]) as positions,
        watched_inputs(through.linears if guarded else {}) as projected,
        shifted(session.model, None if edits is None else edits.shift()),
    ):
        logits = _logits(session.model, views, last_row_only=last_row_only, state=state)
    if edits is not None:
        session.applied_edits.update(edits.applied_edits)
    capture = session.capture if rows else NOTHING
    tensors = captured(state, sight, capture)
    if guarded:
        guard_first_step(
            session.model, state, views, positions=positions, tensors=tensors, capture=capture
        )
        guard_projections(state, projected)
    facts = layer_facts(state, session.capture)
    norms = captured_values(state, views, through)
    got = received(state, sight) if judged else [_nothing(view) for view in views]
    each = zip(logits.split(counts), tensors, norms, got, strict=True)
    return [ForwardOutput(rows, piece | values, facts, one) for rows, piece, values, one in each]


def _fed(
    views: Sequence[SequenceBatch], device: torch.device
) -> tuple[Int64[Tensor, "1 row"], Float32[Tensor, "1 row"]]:
    """Token ids and positions of all rows."""
    token = np.concatenate([view.table.token[view.queries] for view in views])
    position = np.concatenate([view.table.position[view.queries] for view in views])
    # Positions stay float32: rotary modules take fractions, and offsets need them.
    return torch.from_numpy(token)[None].to(device), torch.from_numpy(position)[None].to(device)


def _logits(
    model: LanguageModel, views: Sequence[SequenceBatch], *, last_row_only: bool, state: Forward
) -> Float[Tensor, "kept vocab"]:
    """The model's own forward, with the engine's state passed through it."""
    token, position = _fed(views, model.device)
    ends = np.cumsum([len(view.queries) for view in views])
    kept = torch.from_numpy(ends - 1 if last_row_only else np.arange(ends[-1]))
    try:
        out = model.hf(
            input_ids=token,
            position_ids=position,
            # The cache is ours, written inside the attention function.
            use_cache=False,
            logits_to_keep=kept,
            tempo_forward=state,
        )
    except (TypeError, KeyError) as error:
        raise ModelError(
            "expected a decoder that hands its keywords on to the attention function, got "
            f"{type(error).__name__}: {error} from {type(model.hf).__name__}; not supported"
        ) from error
    return out.logits[0]


def _nothing(view: SequenceBatch) -> Received:
    return np.zeros(len(view.table), np.float32)
