"""A trace: everything recorded of one decoded prompt under one arm, read without a model.

Tensors are looked up by name in a mapping: a dict for a run in memory, a lazy reader for a folder.
`docs/trace-format.md` lists the names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from tempo.errors import InputError, LevelError
from tempo.policy.pruning import DECISIONS, Decision
from tempo.policy.selection import DROP_REASONS, Dropped
from tempo.policy.slots import SLOT_COLUMNS, SlotTable, group_of, prompt_table
from tempo.trace.attention import (
    GroupMass,
    HeadWeights,
    Weights,
    entropy_nats,
    group_onehot,
    mass_by_group,
    rows_from_qk,
)
from tempo.trace.glyphs import line_glyphs
from tempo.trace.notebook import trace_markup
from tempo.trace.schema import Readout, TraceHeader, bias_name, tensor_name, visible_name
from tempo.vocabulary import GROUPS, Head, HeadName, head_of, spell_numbers


@dataclass(frozen=True)
class Trace:
    """One decoded prompt under one arm."""

    header: TraceHeader
    tensors: Mapping[str, np.ndarray] = field(repr=False)

    def tensor(self, step: int, name: str) -> np.ndarray:
        """A stored tensor of one step.

        Raises:
            InputError: The trace has no such step.
            LevelError: The level of the trace does not hold this tensor.
        """
        if step not in range(self.header.last_step + 1):
            raise InputError(f"expected a step from 0 to {self.header.last_step}, got {step}")
        key = tensor_name(step, name)
        if key not in self.tensors:
            raise LevelError(
                f"expected a trace that holds {name!r}, got level {self.level!r}; capture again "
                "at another level"
            )
        return self.tensors[key]

    @property
    def level(self) -> str:
        """What is stored of each row: weights, qk or reduced."""
        return self.header.level

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers on the layer axis."""
        return self.header.layers

    @property
    def heads(self) -> tuple[int, ...]:
        """Query heads on the head axis."""
        return self.header.heads

    @property
    def n_steps(self) -> int:
        """Number of sets chosen and fed."""
        return max(self.header.last_step, 0)

    @cached_property
    def slots(self) -> SlotTable:
        """The slot table, one row for each entry of the KV cache."""
        steps = range(self.header.last_step + 1)
        if not steps:
            return prompt_table([])
        pieces = {
            name: [self.tensor(step, f"slots/{name}") for step in steps] for name in SLOT_COLUMNS
        }
        columns: Any = {name: np.concatenate(pieces[name]) for name in SLOT_COLUMNS}
        table = SlotTable(**columns)
        for step in steps:  # a slot is stored when it is written, and may be pruned later
            pruned = [one.slot for one in self.decisions(step) if one.reason != "kept"]
            table = table.mark_pruned(pruned, step) if pruned else table
        return table

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " step"]:
        # Steps do not decrease along the slots, so a step ends where the next would be inserted.
        return np.searchsorted(self.slots.step, np.arange(self.n_steps + 1), side="right")

    def n_slots(self, step: int) -> int:
        """Slots written up to and including a step: the slot axis of its rows."""
        return int(self._ends[step])

    def members(self, step: int) -> Int64[np.ndarray, " query"]:
        """Slot numbers written by a step: the query axis of its rows."""
        return self.slots.members(step)

    def attention(self, step: int, *, head: HeadName | None = None) -> Weights | HeadWeights:
        """Attention weights of a step's queries on all slots written so far; 0 where invisible.

        Step 0 is the prompt square; step k >= 1 has the members of set k in rank order.

        Args:
            step: From 0 to `n_steps`.
            head: One head, `"L3H5"` or `(3, 5)`, numbered as in the model. Its rows come without
                the layer and head axes. All captured heads if None.

        Raises:
            InputError: No such step, or a head that was not captured.
            LevelError: The trace was reduced to group masses.

        Example:
            >>> trace.attention(3).shape  # layer, head, query, slot
            >>> trace.attention(3, head="L3H5").shape  # query, slot
        """
        if head is None:
            every = range(len(self.layers))
            return self._rows(step, every) if self.level == "qk" else self.tensor(step, "weights")
        layer, number = self.index_of(head)
        if self.level == "qk":  # one layer is enough: rows are computed when they are read
            return self._rows(step, [layer])[0, number]
        return self.tensor(step, "weights")[layer, number]

    def has_rows(self, step: int) -> bool:
        """Whether this step was captured; a twin may keep the rows of its last steps only."""
        return tensor_name(step, "logsumexp") in self.tensors

    def logsumexp(self, step: int) -> Float32[np.ndarray, "layer head query"]:
        """Log of the normaliser of every row: scaling, soft cap, bias and learned sink included."""
        return self.tensor(step, "logsumexp")

    def visible(self, step: int) -> Bool[np.ndarray, "layer query slot"]:
        """Whether each query of a step may see each slot, in each captured layer."""
        packed = {
            window: self.tensor(step, visible_name(window))
            for window in dict.fromkeys(self.header.window)
        }
        n = self.n_slots(step)
        # Eight slots to a byte; the last byte is padded, so the number of slots is given.
        unpacked = {
            window: np.unpackbits(bits, axis=-1, count=n).astype(bool)
            for window, bits in packed.items()
        }
        return np.stack([unpacked[window] for window in self.header.window])

    def bias(self, step: int) -> Float32[np.ndarray, "layer query slot"] | None:
        """Finite score bias added by the policy; None where it added none."""
        if tensor_name(step, bias_name(self.header.window[0])) not in self.tensors:
            return None
        return np.stack([self.tensor(step, bias_name(window)) for window in self.header.window])

    def readout(self, step: int) -> Readout:
        """The distribution after a step; it chose the set of the next step."""
        return Readout(
            token=self.tensor(step, "readout/token"),
            log_probability=self.tensor(step, "readout/log_probability"),
            tail_mass=float(self.tensor(step, "readout/tail_mass")[0]),
            entropy_nats=float(self.tensor(step, "readout/entropy_nats")[0]),
        )

    def margins(self, step: int) -> tuple[float, float]:
        """Distance of the choice of a set from another one: top-2 log-probability gap, gap to tau.

        NaN where not defined (the prompt; a rule without a threshold).
        """
        top2, tau = self.tensor(step, "margins")
        return float(top2), float(tau)

    def dropped(self, step: int) -> tuple[Dropped, ...]:
        """Tokens that passed the selection of this step and were left out."""
        columns = (
            self.tensor(step, f"dropped/{name}") for name in ("token", "probability", "reason")
        )
        return tuple(
            Dropped(int(token), float(probability), DROP_REASONS[reason])
            for token, probability, reason in zip(*columns, strict=True)
        )

    def decisions(self, step: int) -> tuple[Decision, ...]:
        """Decisions of the pruning rule after this step, with the number behind each."""
        if tensor_name(step, "judged/slot") not in self.tensors:
            return ()
        columns = (self.tensor(step, f"judged/{name}") for name in ("slot", "value", "reason"))
        return tuple(
            Decision(int(slot), float(value), DECISIONS[reason])
            for slot, value, reason in zip(*columns, strict=True)
        )

    def group_mass(self, step: int) -> GroupMass:
        """Mass of every row on each of the groups of `tempo.vocabulary.GROUPS`, at any level."""
        if self.level == "reduced":
            return self.tensor(step, "group_mass")
        return mass_by_group(
            self.attention(step), group_of(self._table_at(step), self.members(step))
        )

    def mass_on(self, step: int, group: str) -> Float32[np.ndarray, "layer head query"]:
        """Mass of every row on one group of slots, at any level.

        Args:
            step: A step of the trace.
            group: One of `tempo.vocabulary.GROUPS`, such as `"siblings"` or `"sink"`.

        Raises:
            InputError: No such group.

        Example:
            >>> trace.mass_on(3, "siblings").mean(-1)  # by layer and head
        """
        if group not in GROUPS:
            raise InputError(f"expected a group of {', '.join(GROUPS)}, got {group!r}")
        return self.group_mass(step)[..., GROUPS.index(group)]

    def group_count(self, step: int) -> Int[np.ndarray, "layer query group"]:
        """Number of visible slots of each group, for chance values and means per slot."""
        onehot = group_onehot(group_of(self._table_at(step), self.members(step)))
        return np.einsum(
            "lqs,qsg->lqg", self.visible(step).astype(np.int64), onehot.astype(np.int64)
        )

    def entropy_nats(self, step: int) -> Float32[np.ndarray, "layer head query"]:
        """Entropy of every row, at any level."""
        if self.level == "reduced":
            return self.tensor(step, "entropy_nats")
        return entropy_nats(self.attention(step))

    def max_weight(self, step: int) -> Float32[np.ndarray, "layer head query"]:
        """Largest weight of every row, at any level."""
        return (
            self.tensor(step, "max_weight")
            if self.level == "reduced"
            else self.attention(step).max(-1)
        )

    def queries(self, step: int) -> Float32[np.ndarray, "layer head query channel"]:
        """Queries after RoPE (level qk)."""
        return self.tensor(step, "q")

    def keys(self, step: int) -> Float32[np.ndarray, "layer kv_head slot channel"]:
        """Keys after RoPE of every slot written up to a step (level qk)."""
        # A step stores the keys of its own set only, so storage grows linearly with the slots.
        return np.concatenate([self.tensor(earlier, "k") for earlier in range(step + 1)], axis=2)

    def value_norm(self, step: int) -> Float32[np.ndarray, "layer head slot"]:
        """Norm of `v W_h` for every slot written up to a step, at the time it was written.

        W_h is the part of the output projection that query head h writes through.

        Raises:
            LevelError: The stream `values` was not captured.
        """
        if tensor_name(0, "value_norm") not in self.tensors:
            raise LevelError(
                "expected a trace with the norms of values, got one without; decode again with "
                "values=True (--values)"
            )
        own = self.tensor(step, "value_norm")
        return np.concatenate([*(self.tensor(k, "value_norm") for k in range(step)), own], axis=2)

    def token_text(self, slot: int) -> str:
        """The text that one slot's token adds."""
        return self.header.tokens[int(self.slots.token[slot])]

    def text(self) -> str:
        """Prompt and top-ranked member of every set, decoded together."""
        return self.header.text

    def lattice(self) -> str:
        """Prompt and sets in one line: ``The cat sat on the [couch|mat]``."""
        sets = (self.members(step) for step in range(1, self.n_steps + 1))
        return self.header.prompt + "".join(
            _set_text([self.token_text(int(slot)) for slot in slots]) for slots in sets
        )

    def head(self, layer: int, head: int) -> Head:
        """Name of the head at one place of the layer and head axes."""
        return Head(self.layers[layer], self.heads[head])

    def index_of(self, head: HeadName) -> tuple[int, int]:
        """Indices of a head on the layer and head axes, which have captured heads only.

        Raises:
            InputError: Its layer or its head was not captured; the message names those that were.
        """
        named = head_of(head)
        if named.layer not in self.layers or named.head not in self.heads:
            raise InputError(
                f"expected a head of the captured layers {spell_numbers(self.layers)} and "
                f"heads {spell_numbers(self.heads)}, got {named}; capture it with "
                "layers=... and heads=..."
            )
        return self.layers.index(named.layer), self.heads.index(named.head)

    def _table_at(self, step: int) -> SlotTable:
        # Rows end at the last slot that their step wrote; later slots have no column.
        return self.slots.upto(self.n_slots(step))

    def _rows(self, step: int, layers: Sequence[int]) -> Weights:
        """Rows of some indices on the layer axis, computed from queries and keys."""
        q, k, visible, bias = (
            self.queries(step),
            self.keys(step),
            self.visible(step),
            self.bias(step),
        )
        sinks = self.header.sinks or (None,) * len(self.layers)
        # Every KV head of a captured layer is stored; query head h reads KV head h // group.
        kv_of = np.asarray(self.heads) // self.header.model["queries_per_kv_head"]
        rows = [
            rows_from_qk(
                q[layer],
                k[layer][kv_of],
                scaling=self.header.scaling[layer],
                visible=visible[layer],
                bias=None if bias is None else bias[layer],
                softcap=self.header.softcap[layer],
                sinks=None if sinks[layer] is None else np.asarray(sinks[layer], np.float32),
            )[0]
            for layer in layers
        ]
        return np.stack(rows)

    def __repr__(self) -> str:
        name = f"{self.header.prompt_id}/{self.header.arm}, {self.n_steps} steps"
        shape = f"{len(self.layers)} layers x {len(self.heads)} heads, {len(self.slots)} slots"
        return f"Trace({name}, {shape}, {self.level})\n{line_glyphs(self.lattice())}"

    def _repr_html_(self) -> str:
        return trace_markup(self.header, self.slots)


def _set_text(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    space = " " if all(text.startswith(" ") for text in texts) else ""
    return f"{space}[{'|'.join(text[len(space) :] for text in texts)}]"
