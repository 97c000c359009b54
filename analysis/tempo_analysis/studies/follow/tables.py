"""The tables of one followed member as data, for whoever shows or stores them."""

from collections.abc import Sequence

import numpy as np

from tempo_analysis.report.table import Column, Table
from tempo_analysis.studies.follow.logit_lens import Lens
from tempo_analysis.studies.follow.result import MemberNumbers
from tempo_analysis.studies.follow.trajectory import Control, Course, correlation, shown

_LAYERS_NOTE = (
    "Depth 0 is the embedding, depth d the residual stream after d layers; attention and hiding "
    "are of the layer between two depths. Attention is the mean over heads and over the queries of "
    "the next step that may see the member; chance is 1 / visible slots; alone is the same slot "
    "table without its siblings; the odds law is what independent odds predict from alone (exact "
    "in layer 0). Hidden: KL of the next readout in nats where the column of the slot is taken out "
    "before the softmax, in this layer only."
)
_SLOTS_NOTE = (
    "Attention is the mean over layers and heads from the next step. Hidden everywhere is the KL "
    "of the next readout in nats with the slot hidden in all layers at once, beside the sum over "
    "layers hidden one by one. The rank correlation of attention and effect is over layers; "
    "unrelated quantities give 0, and one slot of one run has no interval. Settles at: the depth "
    "from which on the best token of the lens is the last one."
)
_LENS_NOTE = (
    "The logit lens of the member's slot: final norm, output embedding and soft cap applied to its "
    "state at each depth. Best tokens with their probabilities; KL in nats over the whole "
    "vocabulary; rank (from 1) and log-probability of the token the run went on with."
)
_LATER_NOTE = (
    "Attention to the member by later step: mean over layers, heads and the queries that may see "
    "it, beside chance, alone and the odds law."
)
_HEADS_NOTE = (
    "Attention of every head to the member, from the next step; KV head is the one a query head "
    "reads. Written is the attention times the norm of what the value writes through the head."
)
_OTHERS_NOTE = "Every slot by layer: attention from the next step, and the effect of hiding it."


def member_tables(found: MemberNumbers) -> tuple[Table, ...]:
    """Every table, the short ones first."""
    return (
        slots_table(found),
        layers_table(found),
        lens_table(found),
        later_table(found),
        others_table(found),
        heads_table(found),
    )


def slots_table(found: MemberNumbers) -> Table:
    """The member beside its siblings, itself alone and a prompt slot."""

    def seen(_: str, one: Course | Control) -> int:
        return int(np.isfinite(_hidden(one, found.n_layers)).sum())

    columns = (
        *_SLOT,
        Column("probability", "probability", "number", _probability),
        Column("attention", "attention", "number", lambda _, one: _mean(one.attention_by_layer)),
        Column("hidden_everywhere", "hidden everywhere, nats", "number", _hidden_everywhere),
        Column("hidden_sum", "sum over layers, nats", "number", _hidden_sum),
        Column("strongest", "strongest layer", "text", _strongest),
        Column("rank_correlation", "rank correlation", "number", lambda _, one: correlation(one)),
        Column("layers", "layers", "count", seen),
        Column("settles_at", "settles at", "text", _settles_at),
    )
    title = "The member and what stands beside it"
    return Table.of("slots", title, columns, _everyone(found), _SLOTS_NOTE)


def layers_table(found: MemberNumbers) -> Table:
    """The member by depth and layer."""
    member, alone, n_layers = found.member, found.alone, found.n_layers
    attention_alone = np.full(n_layers, np.nan) if alone is None else alone.attention_by_layer
    control = _hidden(found.control, n_layers)

    def layer_before(depth: int) -> str:
        return str(depth - 1) if depth else "embedding"

    columns = (
        Column("depth", "depth", "count", lambda depth: depth),
        Column("layer", "layer before it", "text", layer_before),
        _by_layer("attention", "attention", member.attention_by_layer),
        _by_layer("chance", "chance", found.chance[0]),
        _by_layer("alone", "alone", attention_alone),
        _by_layer("odds_law", "odds law", found.odds_law[0].mean(-1)),
        _by_layer("written", "attention x value norm", member.written_by_layer),
        _by_layer("hidden", "hidden, nats", _hidden(member, n_layers)),
        _by_layer("hidden_alone", "hidden alone, nats", _hidden(alone, n_layers)),
        _by_layer("hidden_control", "prompt slot hidden, nats", control),
        _by_depth("norm", "norm of the state", member.norm),
        _by_depth("own_change", "change against alone", found.own_change),
    )
    depths = range(n_layers + 1)
    return Table.of("layers", "The member, layer by layer", columns, depths, _LAYERS_NOTE)


def lens_table(found: MemberNumbers) -> Table:
    """The lens of the member by depth."""
    lens = found.member.lens
    rank = f"rank of {shown(found.next_text)}"
    columns = (
        Column("depth", "depth", "count", lambda depth: depth),
        *(_best_token(lens, place) for place in range(lens.token.shape[1])),
        _by_depth("own_kl", "KL from its own end", lens.own_kl_nats),
        _by_depth("readout_kl", "KL from the set's readout", lens.readout_kl_nats),
        Column("next_rank", rank, "count", lambda depth: int(lens.next_rank[depth]) + 1),
        _by_depth("next_log_probability", "its log-probability", lens.next_log_probability),
    )
    title = "What its slot would predict at each depth"
    return Table.of("lens", title, columns, range(len(lens.text)), _LENS_NOTE)


def later_table(found: MemberNumbers) -> Table:
    """Attention by later step."""
    alone = np.full(len(found.later), np.nan) if found.alone is None else found.alone.attention
    columns = (
        Column("step", "step", "count", lambda place: found.later[place]),
        Column("queries", "queries", "count", lambda place: found.n_queries[place]),
        _by_step("attention", found.member.attention),
        _by_step("chance", found.chance),
        _by_step("alone", alone),
        _by_step("odds_law", found.odds_law),
    )
    places = range(len(found.later))
    return Table.of("later_steps", "Attention of later steps", columns, places, _LATER_NOTE)


def others_table(found: MemberNumbers) -> Table:
    """Every slot by layer."""

    def attention(_: str, one: Course | Control, layer: int) -> float:
        return one.attention_by_layer[layer]

    def hidden(_: str, one: Course | Control, layer: int) -> float:
        return _hidden(one, found.n_layers)[layer]

    columns = (
        *_SLOT,
        Column("layer", "layer", "count", lambda role, one, layer: layer),
        Column("attention", "attention", "number", attention),
        Column("hidden", "hidden, nats", "number", hidden),
    )
    items = ((*item, layer) for item in _everyone(found) for layer in range(found.n_layers))
    return Table.of("slots_by_layer", "Every slot, layer by layer", columns, items, _OTHERS_NOTE)


def heads_table(found: MemberNumbers) -> Table:
    """Every head."""
    member, alone = found.member, found.alone
    group = int(found.model["queries_per_kv_head"])
    none = np.full(member.value_norm.shape, np.nan)
    columns = (
        Column("layer", "layer", "count", lambda layer, head: layer),
        Column("head", "head", "count", lambda layer, head: head),
        Column("kv_head", "KV head", "count", lambda layer, head: head // group),
        Column("chance", "chance", "number", lambda layer, head: found.chance[0, layer]),
        _by_head("attention", member.attention[0]),
        _by_head("alone", none if alone is None else alone.attention[0]),
        _by_head("odds_law", found.odds_law[0]),
        _by_head("value_norm", member.value_norm),
        _by_head("written", member.attention[0] * member.value_norm),
    )
    return Table.of("heads", "Every head", columns, np.ndindex(*none.shape), _HEADS_NOTE)


def _by_depth(key: str, heading: str, values: np.ndarray) -> Column:
    return Column(key, heading, "number", lambda depth: values[depth])


def _by_layer(key: str, heading: str, values: np.ndarray) -> Column:
    # Depth d is the output of layer d - 1; depth 0, the embedding, is that of no layer.
    return _by_depth(key, heading, np.concatenate([[np.nan], values]))


def _best_token(lens: Lens, place: int) -> Column:
    def best(depth: int) -> str:
        return f"{shown(lens.text[depth][place])} {np.exp(lens.log_probability[depth, place]):.2f}"

    return Column(f"top_{place + 1}", f"best {place + 1}", "text", best)


def _by_step(key: str, values: np.ndarray) -> Column:
    return Column(key, key.replace("_", " "), "number", lambda place: _mean(values[place]))


def _by_head(key: str, values: np.ndarray) -> Column:
    return Column(key, key.replace("_", " "), "number", lambda layer, head: values[layer, head])


_SLOT = (
    Column("role", "role", "text", lambda role, *_: role),
    Column("slot", "slot", "count", lambda role, one, *_: one.slot),
    Column("text", "token", "text", lambda role, one, *_: shown(one.text)),
)
"""Columns of the items of `_everyone`, with or without a layer."""


def _everyone(found: MemberNumbers) -> Sequence[tuple[str, Course | Control]]:
    """Every slot that was followed, with its role."""
    beside = [("sibling", each) for each in found.siblings]
    alone = [] if found.alone is None else [("member alone", found.alone)]
    control = [] if found.control is None else [("prompt slot", found.control)]
    return [("member", found.member), *beside, *alone, *control]


def _probability(_: str, one: Course | Control) -> float:
    return one.probability if isinstance(one, Course) else np.nan


def _settles_at(_: str, one: Course | Control) -> str:
    return str(one.lens.settles_at) if isinstance(one, Course) else ""


def _hidden_everywhere(_: str, one: Course | Control) -> float:
    return one.knocked.every_layer_nats if one.knocked else np.nan


def _hidden_sum(_: str, one: Course | Control) -> float:
    return float(np.nansum(one.knocked.one_layer_nats)) if one.knocked else np.nan


def _strongest(_: str, one: Course | Control) -> str:
    return f"L{one.knocked.strongest}" if one.knocked else ""


def _hidden(one: Course | Control | None, n_layers: int) -> np.ndarray:
    """Effect of hiding a slot in one layer; NaN where there is no slot or no query may see it."""
    knocked = one.knocked if one else None
    return knocked.one_layer_nats if knocked else np.full(n_layers, np.nan)


def _mean(values: np.ndarray) -> float:
    """Over what is seen; NaN where nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
