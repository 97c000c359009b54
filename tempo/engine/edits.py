"""Applies edits inside the engine, and checks that they fit the model and act on a row."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from tempo.engine.attention import Attend, LayerCall, RowsOf, attend
from tempo.engine.batch import Mask, Query, SequenceBatch
from tempo.errors import InputError
from tempo.models.hooks import RowShift
from tempo.models.language_model import LanguageModel
from tempo.policy.edits import (
    Columns,
    Edit,
    EmbeddingOffset,
    HeadEdit,
    KnockOut,
    ReplaceHeadOutput,
    Rows,
    ScoreBias,
    ScoreScale,
    ValueZero,
    heads_of,
    is_nothing,
)
from tempo.policy.serialize import edit_to_dict


def heads_in(edit: Edit, model: LanguageModel) -> dict[int, list[int]]:
    """The heads of a model that an edit names, by layer.

    Raises:
        InputError: A head or layer is not the model's, none is named, or an array has another
            size than the model.
    """
    heads = heads_of(edit, n_layers=model.n_layers, n_heads=model.n_heads)
    width = model.config.hidden_size
    if isinstance(edit, EmbeddingOffset) and len(edit.vector) != width:
        raise InputError(
            f"expected a vector of {width} channels, got {len(edit.vector)}; give one of the "
            "model's own width"
        )
    if isinstance(edit, ReplaceHeadOutput) and edit.values is not None:
        found = (len(edit.values), *edit.values.shape[-2:])
        if found != (model.n_layers, model.n_heads, model.head_dim):
            raise InputError(
                f"expected values of {model.n_layers} layers, {model.n_heads} heads and "
                f"{model.head_dim} channels, got {', '.join(map(str, found))}; take them from a "
                "forward of this model"
            )
    return heads


def check_edit_list(edits: object) -> None:
    """Refuse anything but a list of edits.

    Raises:
        InputError: Says what it is.
    """
    if isinstance(edits, get_args(Edit)):
        raise InputError(
            f"expected a list of edits, got one {type(edits).__name__}; write edits=[...]"
        )
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        raise InputError(f"expected a list of edits, got {type(edits).__name__}; write edits=[...]")
    strange = [one for one in edits if not isinstance(one, get_args(Edit))]
    if strange:
        raise InputError(
            f"expected edits of tempo.edits, got {type(strange[0]).__name__}; make one, such as "
            "tempo.edits.ReplaceHeadOutput(heads=['L3H5'])"
        )


def check_slots(edit: Edit, n_slots: int) -> None:
    """Refuse slots that a text of `n_slots` tokens does not have.

    Raises:
        InputError: Names one.
    """
    named = [getattr(edit, name, None) or () for name in ("slots", "queries")]
    missing = [slot for slots in named for slot in slots if not 0 <= slot < n_slots]
    if missing:
        raise InputError(
            f"expected slots from 0 to {n_slots - 1}, got {missing[0]}; the text has {n_slots} "
            "tokens"
        )


def check_applied(edits: Sequence[Edit], applied_edits: Set[int]) -> None:
    """Refuse edits that applied to no row or slot.

    Args:
        applied_edits: Indices of the edits that applied.

    Raises:
        InputError: Names the first that did not.
    """
    real = ((number, edit) for number, edit in enumerate(edits) if not is_nothing(edit))
    # An edit that acts nowhere is almost always a mistake in its selection, and would show "no
    # effect".
    idle = [edit for number, edit in real if number not in applied_edits]
    if idle:
        raise InputError(
            "expected edits that find something to act on, got "
            f"{dict(edit_to_dict(idle[0]))}; check its steps, queries, slots, "
            "positions and groups, and that the rows see the slots (a sliding window hides what "
            "lies before it); members of parallel sets are in decoded text only"
        )


def shift_of(
    moves: Sequence[tuple[EmbeddingOffset, Bool[np.ndarray, " row"]]],
) -> RowShift | None:
    """The sum of all offsets on the packed rows; None without offsets."""
    if not moves:
        return None
    return torch.from_numpy(sum(np.outer(rows, edit.vector) for edit, rows in moves)).float()


HeadScores = Float32[Tensor, "sequence head query slot"]
CELLS = (ScoreBias, ScoreScale, KnockOut)
"""Edits that change scores or weights, and so the rows of a trace."""


@dataclass(slots=True)
class EditApplier:
    """The edits of one forward, by layer.

    Attributes:
        heads: Heads of each edit, by layer; empty where it has none or changes nothing.
        within: Index of the sequence that each edit is made in; None for all sequences.
        applied_edits: Indices of the edits that applied to at least one row and visible slot.
    """

    edits: Sequence[Edit]
    heads: Sequence[dict[int, list[int]]]
    views: Sequence[SequenceBatch]
    within: Sequence[int | None]
    applied_edits: set[int] = field(default_factory=set)

    def attention_overrides(self) -> dict[int, Attend]:
        """The attention function of every edited layer."""
        layers = {layer for heads in self.heads for layer in heads}
        return {layer: partial(self.attended, layer) for layer in sorted(layers)}

    def row_overrides(self) -> dict[int, RowsOf]:
        """The row function of every layer whose scores or weights are edited."""
        layers = {
            layer
            for edit, heads in zip(self.edits, self.heads, strict=True)
            if isinstance(edit, CELLS)
            for layer in heads
        }
        return {layer: partial(self.weights, layer) for layer in sorted(layers)}

    def attended(
        self,
        layer: int,
        call: LayerCall,
        keys: Float[Tensor, "sequence kv_head slot channel"],
        values: Float[Tensor, "sequence kv_head slot channel"],
        mask: Mask,
    ) -> Query:
        """Head outputs of a layer, with its edits."""
        if any(isinstance(edit, Columns) for _, edit, _ in self._of_layer(layer)):
            weights, _ = self.weights(layer, call, keys, mask)
            read = weights.masked_fill(self._unread(layer, weights, mask), 0.0)
            # edits name query heads, so each gets a copy of the values of its KV head
            own = values.repeat_interleave(call.query.shape[1] // values.shape[1], 1)
            out = (read.to(own.dtype) @ own).to(call.query.dtype)
        else:
            out = attend(call, keys, values, mask)
        return self._replaced(layer, out)

    def weights(
        self,
        layer: int,
        call: LayerCall,
        keys: Float[Tensor, "sequence kv_head slot channel"],
        mask: Mask,
    ) -> tuple[HeadScores, Float32[Tensor, "sequence head query"]]:
        """The rows of a layer with its edits, and the log of their normalisers, in float32."""
        group = call.query.shape[1] // keys.shape[1]
        own = keys.float().repeat_interleave(group, 1)
        scores = (call.query.float() @ own.transpose(-1, -2)) * call.scaling
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        cut = {
            softmax: torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
            for softmax in ("before", "after")
        }
        for number, edit, heads in self._of_layer(layer):
            if isinstance(edit, CELLS):
                chosen = self._cells(number, edit, heads, scores, mask)
                if isinstance(edit, KnockOut):
                    cut[edit.softmax] |= chosen
                else:
                    scores = _edited(edit, scores, chosen)
        # cut before the softmax: the rest of the row is renormalised
        scores = scores.masked_fill(cut["before"], -torch.inf) + mask.float().unsqueeze(1)
        _check_rows(layer, scores, mask)
        if call.sinks is not None:
            column = call.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], -1)
        # the learned sink takes its share of the row and is then dropped from it
        logsumexp = scores.logsumexp(-1)
        weights = (scores - logsumexp.unsqueeze(-1)).exp()[..., : keys.shape[2]]
        return weights.masked_fill(cut["after"], 0.0), logsumexp

    def shift(self) -> RowShift | None:
        """Vectors added to the packed rows at the first layer; None without offsets."""
        moves = [
            (number, edit)
            for number, edit in enumerate(self.edits)
            if isinstance(edit, EmbeddingOffset) and not is_nothing(edit)
        ]
        for number, edit in moves:
            if self._moved(number, edit).any():
                self.applied_edits.add(number)
        return shift_of([(edit, self._moved(number, edit)) for number, edit in moves])

    def _moved(self, number: int, edit: EmbeddingOffset) -> Bool[np.ndarray, " row"]:
        """Which of the packed rows an offset applies to."""
        rows = [
            edit.moved(view.table, view.queries) & self._concerns(number, place)
            for place, view in enumerate(self.views)
        ]
        return np.concatenate(rows)

    def _of_layer(self, layer: int) -> list[tuple[int, HeadEdit, list[int]]]:
        """Number, edit and heads of every edit that names this layer."""
        named = enumerate(zip(self.edits, self.heads, strict=True))
        return [
            (n, edit, heads[layer])
            for n, (edit, heads) in named
            if layer in heads and isinstance(edit, Rows)
        ]

    def _concerns(self, number: int, place: int) -> bool:
        return self.within[number] in (None, place)

    def _unread(
        self, layer: int, weights: HeadScores, mask: Mask
    ) -> Bool[Tensor, "sequence head query slot"]:
        """Cells whose slot's value is zeroed for the row."""
        unread = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
        for number, edit, heads in self._of_layer(layer):
            if isinstance(edit, ValueZero):
                unread |= self._cells(number, edit, heads, weights, mask)
        return unread

    def _replaced(self, layer: int, out: Query) -> Query:
        """Head outputs after all replacements."""
        for number, edit, heads in self._of_layer(layer):
            if isinstance(edit, ReplaceHeadOutput):
                rows = self._rows(number, edit, out)
                chosen = torch.zeros(out.shape[:3], dtype=torch.bool, device=out.device)
                # [sequence head query]: the same rows for each of the heads.
                chosen[:, heads] = rows[:, None]
                out = torch.where(chosen[..., None], self._donated(number, layer, edit, out), out)
        return out

    def _donated(self, number: int, layer: int, edit: ReplaceHeadOutput, out: Query) -> Query:
        if edit.values is None:
            return torch.zeros_like(out)
        given = torch.from_numpy(np.ascontiguousarray(edit.values[layer])).to(out)
        if edit.how == "mean":
            return given[None, :, None, :].expand_as(out)
        donated = torch.zeros_like(out)
        for place, view in enumerate(self.views):
            rows = view.queries[edit.query_mask(view.table, view.queries)]
            if not self._concerns(number, place) or not len(rows):
                continue
            if rows.max() >= len(given):
                raise InputError(
                    f"expected a donor with the rows of slot {rows.max()}, got {len(given)} rows; "
                    "take a donor as long as the text"
                )
            # Queries are ascending slots: this is the place of each row in the forward.
            to = np.searchsorted(view.queries, rows)
            donated[place][:, to] = given[torch.from_numpy(rows).to(given.device)].transpose(0, 1)
        return donated

    def _cells(
        self, number: int, edit: Columns, heads: list[int], scores: HeadScores, mask: Mask
    ) -> Bool[Tensor, "sequence head query slot"]:
        """Visible cells that an edit applies to."""
        chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for place, view in enumerate(self.views):
            if not self._concerns(number, place):
                continue
            cells = edit.cells(view.table, view.queries)[:, view.cached_slots]
            rows, columns = cells.shape
            # Hidden cells stay hidden: a bias cannot reveal what the relation forbids.
            seen = torch.isfinite(mask[place, :rows, :columns])
            seen &= torch.from_numpy(cells).to(seen.device)
            chosen[place, heads, :rows, :columns] = seen
            if seen.any():
                self.applied_edits.add(number)
        return chosen

    def _rows(self, number: int, edit: Rows, out: Tensor) -> Bool[Tensor, "sequence query"]:
        chosen = torch.zeros(out.shape[0], out.shape[2], dtype=torch.bool, device=out.device)
        for place, view in enumerate(self.views):
            rows = edit.query_mask(view.table, view.queries) & self._concerns(number, place)
            chosen[place, : len(rows)] = torch.from_numpy(rows).to(out.device)
            if rows.any():
                self.applied_edits.add(number)
        return chosen


def editing(
    model: LanguageModel,
    edits: Sequence[Edit],
    views: Sequence[SequenceBatch],
    *,
    within: Sequence[int | None],
) -> EditApplier | None:
    """The edits of one forward; None where nothing is changed.

    Args:
        within: Place among the views of the sequence that each edit is made in; None is all.

    Raises:
        InputError: An edit does not fit the model.
    """
    if not edits:
        return None
    named = [heads_in(edit, model) for edit in edits]
    heads = [{} if is_nothing(edit) else one for edit, one in zip(edits, named, strict=True)]
    return EditApplier(edits, heads, views, within)


def _check_rows(layer: int, scores: HeadScores, mask: Mask) -> None:
    """Refuse a row without any visible slot left."""
    before = torch.isfinite(mask).any(-1)[:, None]
    if (before & ~torch.isfinite(scores).any(-1)).any():
        raise InputError(
            f"expected edits that leave every row something to see, got a row of layer {layer} "
            "without a slot; leave one in, or zero the head's output"
        )


def _edited(
    edit: ScoreBias | ScoreScale,
    scores: HeadScores,
    chosen: Bool[Tensor, "sequence head query slot"],
) -> HeadScores:
    if isinstance(edit, ScoreBias):
        # A no-op edit never gets here, so it is bit-equal to no edit.
        return scores + chosen * edit.amount
    return torch.where(chosen, scores * edit.factor, scores)
