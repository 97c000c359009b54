"""Edits carried out inside the engine's attention, in torch.

Only the layers that an edit names leave their usual path. There scores are written out in float32,
per query head; the rows of a trace are computed with the same edits, so they stay what the model
used.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from tempo.attention import Attend, LayerCall, Mask, RowsOf, attend
from tempo.edits import (
    Edit,
    HeadOutput,
    KnockOut,
    Rows,
    ScoreBias,
    ScoreScale,
    ValueZero,
    described,
    heads_of,
    is_nothing,
)
from tempo.errors import InputError
from tempo.model import LanguageModel
from tempo.packing import Query
from tempo.sight import View

PerHead = Float32[Tensor, "sequence head query slot"]


@dataclass(slots=True)
class Editing:
    """The edits of one forward, by layer.

    Attributes:
        touched: Numbers of the edits that found a row and a slot to act on.
        outputs: What each layer's heads gave, after the edits, where it is kept.
    """

    edits: Sequence[Edit]
    heads: Sequence[dict[int, list[int]]]
    views: Sequence[View]
    keeps_outputs: bool = False
    touched: set[int] = field(default_factory=set)
    outputs: dict[int, Query] = field(default_factory=dict)

    def instead(self, n_layers: int) -> dict[int, Attend]:
        """What attends in the layers that are edited, or in all where outputs are kept."""
        named = {layer for heads in self.heads for layer in heads}
        layers = range(n_layers) if self.keeps_outputs else sorted(named)
        return {layer: partial(self.attended, layer) for layer in layers}

    def rows_of(self) -> dict[int, RowsOf]:
        """What computes the rows of layers whose scores or weights are edited."""
        named = zip(self.edits, self.heads, strict=True)
        layers = {n for edit, heads in named if not isinstance(edit, HeadOutput) for n in heads}
        return {layer: partial(self.weights, layer) for layer in sorted(layers)}

    def of_layer(self, layer: int) -> "list[tuple[int, Edit, list[int]]]":
        """Number, edit and heads of every edit that names this layer."""
        named = enumerate(zip(self.edits, self.heads, strict=True))
        return [(n, edit, heads[layer]) for n, (edit, heads) in named if layer in heads]

    def attended(
        self,
        layer: int,
        call: LayerCall,
        keys: Float[Tensor, "sequence kv_head slot channel"],
        values: Float[Tensor, "sequence kv_head slot channel"],
        mask: Mask,
    ) -> Query:
        """What the heads of a layer give, with its edits."""
        edits = self.of_layer(layer)
        if all(isinstance(edit, HeadOutput) for _, edit, _ in edits):
            out = attend(call, keys, values, mask)
        else:
            weights, _ = self.weights(layer, call, keys, mask)
            own = self._values(layer, call, values)
            out = (weights.to(own.dtype) @ own).to(call.query.dtype)
        out = self._replaced(layer, out)
        if self.keeps_outputs:
            self.outputs[layer] = out
        return out

    def weights(
        self,
        layer: int,
        call: LayerCall,
        keys: Float[Tensor, "sequence kv_head slot channel"],
        mask: Mask,
    ) -> tuple[PerHead, Float32[Tensor, "sequence head query"]]:
        """The rows of a layer with its edits, and the log of their normalisers, in float32."""
        group = call.query.shape[1] // keys.shape[1]
        own = keys.float().repeat_interleave(group, 1)
        scores = (call.query.float() @ own.transpose(-1, -2)) * call.scaling
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        gone = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for number, edit, heads in self.of_layer(layer):
            if isinstance(edit, ScoreBias | ScoreScale | KnockOut):
                chosen = self._cells(number, edit, heads, scores)
                scores, gone = _edited(edit, scores, gone, chosen)
        scores = scores + mask.float().unsqueeze(1)
        self._check_rows(layer, scores, mask)
        if call.sinks is not None:
            column = call.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], -1)
        logsumexp = scores.logsumexp(-1)
        weights = (scores - logsumexp.unsqueeze(-1)).exp()[..., : keys.shape[2]]
        return weights.masked_fill(gone, 0.0), logsumexp

    def _values(
        self, layer: int, call: LayerCall, values: Float[Tensor, "sequence kv_head slot channel"]
    ) -> Float[Tensor, "sequence head slot channel"]:
        """A copy of the values for each query head, zeroed where an edit says so."""
        own = values.repeat_interleave(call.query.shape[1] // values.shape[1], 1)
        for number, edit, heads in self.of_layer(layer):
            if isinstance(edit, ValueZero):
                own = own.masked_fill(self._slots(number, edit, heads, own)[..., None], 0.0)
        return own

    def _replaced(self, layer: int, out: Query) -> Query:
        """Head outputs put in place of what the heads gave."""
        for number, edit, heads in self.of_layer(layer):
            if isinstance(edit, HeadOutput):
                rows = self._rows(number, edit, out)
                chosen = torch.zeros(out.shape[:3], dtype=torch.bool, device=out.device)
                chosen[:, heads] = rows[:, None]
                out = torch.where(chosen[..., None], self._donated(layer, edit, out), out)
        return out

    def _donated(self, layer: int, edit: HeadOutput, out: Query) -> Query:
        if edit.values is None:
            return torch.zeros_like(out)
        given = torch.from_numpy(np.ascontiguousarray(edit.values[layer])).to(out)
        if edit.how == "mean":
            return given[None, :, None, :].expand_as(out)
        donated = torch.zeros_like(out)
        for number, view in enumerate(self.views):
            if len(view.queries) and view.queries.max() >= len(given):
                raise InputError(
                    f"expected a donor with the rows of slot {view.queries.max()}, got "
                    f"{len(given)} rows; take a donor as long as the text"
                )
            rows = given[torch.from_numpy(view.queries).to(given.device)]
            donated[number, :, : len(view.queries)] = rows.transpose(0, 1)
        return donated

    def _cells(
        self,
        number: int,
        edit: ScoreBias | ScoreScale | KnockOut,
        heads: list[int],
        scores: Tensor,
    ) -> Bool[Tensor, "sequence head query slot"]:
        chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for place, view in enumerate(self.views):
            cells = edit.cells(view.table, view.queries)[:, view.held]
            seen = torch.from_numpy(cells).to(scores.device)
            chosen[place, heads, : cells.shape[0], : cells.shape[1]] = seen
            if cells.any():
                self.touched.add(number)
        return chosen

    def _slots(
        self, number: int, edit: ValueZero, heads: list[int], own: Tensor
    ) -> Bool[Tensor, "sequence head slot"]:
        chosen = torch.zeros(own.shape[:3], dtype=torch.bool, device=own.device)
        for place, view in enumerate(self.views):
            slots = np.asarray(edit.cells(view.table, view.queries)[:, view.held].any(0))
            chosen[place, heads, : len(slots)] = torch.from_numpy(slots).to(own.device)
            if slots.any():
                self.touched.add(number)
        return chosen

    def _rows(self, number: int, edit: Rows, out: Tensor) -> Bool[Tensor, "sequence query"]:
        chosen = torch.zeros(out.shape[0], out.shape[2], dtype=torch.bool, device=out.device)
        for place, view in enumerate(self.views):
            rows = edit.asked(view.table, view.queries)
            chosen[place, : len(rows)] = torch.from_numpy(rows).to(out.device)
            if rows.any():
                self.touched.add(number)
        return chosen

    def _check_rows(self, layer: int, scores: PerHead, mask: Mask) -> None:
        """Refuse a row that is left with nothing to see."""
        before = torch.isfinite(mask).any(-1)[:, None]
        if (before & ~torch.isfinite(scores).any(-1)).any():
            raise InputError(
                f"expected edits that leave every row something to see, got a row of layer {layer} "
                "without a slot; leave one in, or zero the head's output"
            )


def editing(
    model: LanguageModel, edits: Sequence[Edit], views: Sequence[View], *, keeps: bool = False
) -> Editing | None:
    """The edits of one forward; None where nothing is changed or kept.

    Raises:
        InputError: An edit names a head or layer that is not the model's, or none.
    """
    if not edits and not keeps:
        return None
    size = {"n_layers": model.n_layers, "n_heads": model.n_heads}
    heads = [{} if is_nothing(edit) else heads_of(edit, **size) for edit in edits]
    return Editing(edits, heads, views, keeps)


def check_touched(edits: Sequence[Edit], touched: Set[int]) -> None:
    """Refuse edits that never found a row or slot to act on.

    Args:
        touched: Numbers of those that did.

    Raises:
        InputError: Names the first that did not.
    """
    real = ((number, edit) for number, edit in enumerate(edits) if not is_nothing(edit))
    idle = [edit for number, edit in real if number not in touched]
    if idle:
        raise InputError(
            f"expected edits that find something to act on, got {dict(described(idle[0]))}; check "
            "its steps, queries, slots and groups"
        )


def _edited(
    edit: ScoreBias | ScoreScale | KnockOut,
    scores: PerHead,
    gone: Bool[Tensor, "sequence head query slot"],
    chosen: Bool[Tensor, "sequence head query slot"],
) -> tuple[PerHead, Bool[Tensor, "sequence head query slot"]]:
    """Scores, and the cells whose weights go after the softmax."""
    if isinstance(edit, ScoreBias):
        return scores + chosen * edit.amount, gone
    if isinstance(edit, ScoreScale):
        return torch.where(chosen, scores * edit.factor, scores), gone
    if edit.softmax == "before":
        return scores.masked_fill(chosen, -torch.inf), gone
    return scores, gone | chosen
