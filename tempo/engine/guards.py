"""Checks while the first set of every run is fed: positions, windows, masks, rows.

A model that changes positions or applies its own window runs without an error and gives wrong
results. The guards read tensors that the engine already has; they add no forward and change none.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from tempo.engine.attention import Forward, attend
from tempo.engine.batch import SequenceBatch
from tempo.engine.capture import Capture, Tensors
from tempo.errors import ModelError
from tempo.models.language_model import LanguageModel
from tempo.trace.schema import visible_name

ROW_SUM = 1e-5
"""Rows are a float32 softmax for every dtype of the model, so one tolerance is enough."""
PROJECTED = 1e-2
"""Relative difference allowed in the input of a projection; a gate causes a far larger one."""
_ADVICE = "ask tempo doctor about this model"
_on_guard = ContextVar("on_guard", default=True)


@contextmanager
def unguarded() -> Generator[None]:
    """Switch the guards off: the doctor runs all checks itself."""
    token = _on_guard.set(False)
    try:
        yield
    finally:
        _on_guard.reset(token)


def guard_first_step(
    model: LanguageModel,
    state: Forward,
    views: Sequence[SequenceBatch],
    *,
    positions: Sequence[Tensor],
    tensors: Sequence[Tensors],
    capture: Capture,
) -> None:
    """Refuse a model that did not feed the first set as in the slot table.

    Args:
        model: Declares a sliding window for every layer.
        state: The forward that fed the set; its kept layers are checked.
        views: The rows fed, one view for each sequence.
        positions: Positions that reached the rotary modules, from `watched_positions`.
        tensors: Captured tensors, one dict for each sequence.
        capture: What was captured; rows are checked where there are any.

    Raises:
        ModelError: Names the first thing that differs.
    """
    if not _on_guard.get():
        return
    guard_positions(views, positions)
    guard_windows(model, state)
    for window in {call.window for call in state.calls.values()}:
        guard_mask(views, state.mask(window), window=window)
    if capture.level not in ("weights", "reduced"):
        return
    sinks = [state.calls[layer].sinks for layer in capture.layers]
    windows = [state.calls[layer].window for layer in capture.layers]
    for view, piece in zip(views, tensors, strict=True):
        if len(view.queries) and piece:
            guard_rows(piece, sink_scores(sinks, capture.heads))
            guard_zeros(piece, windows=windows, n_slots=len(view.table))


def guard_positions(views: Sequence[SequenceBatch], positions: Sequence[Tensor]) -> None:
    """The rotary modules got the positions of the slot table, exactly and in the order of rows."""
    wanted = np.concatenate([view.table.position[view.queries] for view in views])
    if not positions:
        raise ModelError(f"expected positions to reach a rotary module, got no call; {_ADVICE}")
    for given in positions:
        # float64 holds every float32 and every integer position exactly, so equality is a fair
        # test.
        got = given.detach().reshape(-1).double().cpu().numpy()
        if not np.array_equal(got, wanted):
            raise ModelError(
                f"expected RoPE to get positions {_some(wanted)}, got {_some(got)}; {_ADVICE}"
            )


def guard_windows(model: LanguageModel, state: Forward) -> None:
    """Every layer attends with the sliding window that the configuration declares for it."""
    for layer, call in sorted(state.calls.items()):
        declared = model.windows[layer]
        # A window at least as wide as the context hides nothing, and families may omit it.
        if call.window != declared and (declared is None or declared < model.max_positions):
            raise ModelError(
                f"expected layer {layer} to attend with the window its configuration declares "
                f"({declared}), got {call.window}; {_ADVICE}"
            )


def guard_projections(state: Forward, given: Mapping[int, Sequence[Tensor]]) -> None:
    """Every output projection reads the outputs of its heads, once and unchanged.

    With a gate or a norm in between, the value norms would not describe this model.
    """
    if not _on_guard.get():
        return
    packing = state.packing
    for layer, inputs in given.items():
        call = state.calls[layer]
        keys, values = state.cache.read(layer, packing.sequences, packing.n_slots)
        mask = state.mask(call.window).to(call.query.device)
        heads = packing.pack(attend(call, keys, values, mask)).flatten().float()
        read = torch.cat([one.flatten().float() for one in inputs]) if inputs else heads[:0]
        if len(read) != len(heads) or not (read - heads).norm() <= PROJECTED * heads.norm():
            raise ModelError(
                "expected an output projection that reads the outputs of its heads as they are, "
                f"got another input in layer {layer}; leave out values"
            )


def guard_mask(
    views: Sequence[SequenceBatch],
    mask: Float[Tensor, "sequence query slot"],
    *,
    window: int | None,
) -> None:
    """No row sees a later step, a slot out of its window, or a slot that was never written."""
    for number, view in enumerate(views):
        seen = mask[number, : len(view.queries)].isfinite().cpu().numpy()
        allowed = np.zeros_like(seen)
        allowed[:, : len(view.table)] = _may_see(view, window)
        wrong = np.argwhere(seen & ~allowed)
        if len(wrong):
            query, slot = wrong[0]
            raise ModelError(
                f"expected slot {view.queries[query]} not to see slot {slot}, got a mask that "
                f"shows it (sequence {number}, window {window}); {_ADVICE}"
            )


def _may_see(view: SequenceBatch, window: int | None) -> Bool[np.ndarray, "query slot"]:
    table, queries = view.table, view.queries
    # windows are measured in positions: members that share one are at distance 0
    behind = table.position[queries, None] - table.position[None, :]
    not_later = table.step[None, :] <= table.step[queries, None]
    return not_later & (behind < (np.inf if window is None else window))


def sink_scores(
    sinks: Sequence[Tensor | None], heads: Sequence[int]
) -> Float32[np.ndarray, "layer head 1"]:
    """Learned sink score of every captured layer and head, -inf where there is none."""
    scores = np.full((len(sinks), len(heads), 1), -np.inf, np.float32)
    for layer, learned in enumerate(sinks):
        if learned is not None:
            scores[layer, :, 0] = learned[list(heads)].detach().float().cpu().numpy()
    return scores


def row_excess(
    tensors: Tensors, sinks: Float32[np.ndarray, "layer head 1"]
) -> Float32[np.ndarray, "layer head query"]:
    """Excess over 1 of the sum of each row, with the weight of the learned sink."""
    rows = tensors["weights"] if "weights" in tensors else tensors["group_mass"]
    return rows.sum(-1) + np.exp(sinks - tensors["logsumexp"]) - np.float32(1)


def guard_rows(tensors: Tensors, sinks: Float32[np.ndarray, "layer head 1"]) -> None:
    """Every row sums to 1; the weight of a learned sink is counted in."""
    excess = np.abs(row_excess(tensors, sinks))
    if not excess.max() <= ROW_SUM:  # "not <=" in place of ">": NaN is caught too
        layer = int(excess.reshape(len(excess), -1).max(-1).argmax())
        raise ModelError(
            f"expected rows that sum to 1 within {ROW_SUM:g}, got {excess.max():.1e} off in "
            f"captured layer {layer}; {_ADVICE}"
        )


def guard_zeros(tensors: Tensors, *, windows: Sequence[int | None], n_slots: int) -> None:
    """Rows are exactly 0 where the trace records a slot as invisible."""
    if "weights" not in tensors:
        return
    for layer, window in enumerate(windows):
        seen = unpacked(tensors[visible_name(window)], n_slots)
        leaked = tensors["weights"][layer][:, ~seen]
        if leaked.any():
            raise ModelError(
                f"expected weight 0 on every slot that is not seen, got {leaked.max():.1e} in "
                f"captured layer {layer}; {_ADVICE}"
            )


def unpacked(bits: np.ndarray, n_slots: int) -> Bool[np.ndarray, "query slot"]:
    """Visibility as stored in a trace, one byte for each slot."""
    return np.unpackbits(bits, axis=-1, count=n_slots).astype(bool)


def _some(positions: Float[np.ndarray, " row"]) -> str:
    shown = ", ".join(f"{position:g}" for position in positions[:6])
    return f"{shown}, ..." if len(positions) > 6 else shown
