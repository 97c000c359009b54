"""The tables of one followed member as data, for whoever shows or stores them."""

from collections.abc import Mapping, Sequence

import numpy as np

from tempo_analysis.report.table import Cell, Column, Table
from tempo_analysis.studies.follow.result import MemberNumbers
from tempo_analysis.studies.follow.trajectory import Control, Course, KnockedOut, correlation, shown

NONE = float("nan")
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
    columns = (
        Column("role", "role", "text"),
        Column("slot", "slot", "count"),
        Column("text", "token", "text"),
        Column("probability", "probability", "number"),
        Column("attention", "attention", "number"),
        Column("hidden_everywhere", "hidden everywhere, nats", "number"),
        Column("hidden_sum", "sum over layers, nats", "number"),
        Column("strongest", "strongest layer", "text"),
        Column("rank_correlation", "rank correlation", "number"),
        Column("layers", "layers", "count"),
        Column("settles_at", "settles at", "text"),
    )
    rows = tuple(_slot_row(role, each) for role, each in _everyone(found))
    return Table("slots", "The member and what stands beside it", _SLOTS_NOTE, columns, rows)


def layers_table(found: MemberNumbers) -> Table:
    """The member by depth and layer."""
    numbers = {
        "attention": "attention",
        "chance": "chance",
        "alone": "alone",
        "odds_law": "odds law",
        "written": "attention x value norm",
        "hidden": "hidden, nats",
        "hidden_alone": "hidden alone, nats",
        "hidden_control": "prompt slot hidden, nats",
        "norm": "norm of the state",
        "own_change": "change against alone",
    }
    columns = (
        Column("depth", "depth", "count"),
        Column("layer", "layer before it", "text"),
        *(Column(key, heading, "number") for key, heading in numbers.items()),
    )
    member, alone, control = found.member, found.alone, found.control
    none = np.full(found.n_layers, NONE)
    by_layer = {
        "attention": member.attention_by_layer,
        "chance": found.chance[0],
        "alone": none if alone is None else alone.attention_by_layer,
        "odds_law": found.odds_law[0].mean(-1),
        "written": member.written_by_layer,
        "hidden": _effects(member.knocked, none),
        "hidden_alone": none if alone is None else _effects(alone.knocked, none),
        "hidden_control": none if control is None else _effects(control.knocked, none),
    }
    by_depth = {name: np.concatenate([[NONE], values]) for name, values in by_layer.items()}
    by_depth |= {"norm": member.norm, "own_change": found.own_change}
    rows = tuple(
        {
            "depth": depth,
            "layer": str(depth - 1) if depth else "embedding",
            **{name: float(values[depth]) for name, values in by_depth.items()},
        }
        for depth in range(found.n_layers + 1)
    )
    return Table("layers", "The member, layer by layer", _LAYERS_NOTE, columns, rows)


def lens_table(found: MemberNumbers) -> Table:
    """The lens of the member by depth."""
    lens = found.member.lens
    n_top = lens.token.shape[1]
    columns = (
        Column("depth", "depth", "count"),
        *(Column(f"top_{place}", f"best {place}", "text") for place in range(1, n_top + 1)),
        Column("own_kl", "KL from its own end", "number"),
        Column("readout_kl", "KL from the set's readout", "number"),
        Column("next_rank", f"rank of {shown(found.next_text)}", "count"),
        Column("next_log_probability", "its log-probability", "number"),
    )
    rows: list[Mapping[str, Cell]] = []
    for depth, texts in enumerate(lens.text):
        shares = np.exp(lens.log_probability[depth])
        named = zip(range(1, n_top + 1), texts, shares, strict=True)
        row: dict[str, Cell] = {"depth": depth}
        row |= {f"top_{place}": f"{shown(text)} {share:.2f}" for place, text, share in named}
        row |= {"own_kl": float(lens.own_kl_nats[depth])}
        row |= {"readout_kl": float(lens.readout_kl_nats[depth])}
        row |= {"next_rank": int(lens.next_rank[depth]) + 1}
        row |= {"next_log_probability": float(lens.next_log_probability[depth])}
        rows.append(row)
    return Table("lens", "What its slot would predict at each depth", _LENS_NOTE, columns, (*rows,))


def later_table(found: MemberNumbers) -> Table:
    """Attention by later step."""
    names = ("attention", "chance", "alone", "odds_law")
    columns = (
        Column("step", "step", "count"),
        Column("queries", "queries", "count"),
        *(Column(name, name.replace("_", " "), "number") for name in names),
    )
    rows = tuple(
        {
            "step": step,
            "queries": found.n_queries[place],
            "attention": _mean(found.member.attention[place]),
            "chance": _mean(found.chance[place]),
            "alone": NONE if found.alone is None else _mean(found.alone.attention[place]),
            "odds_law": _mean(found.odds_law[place]),
        }
        for place, step in enumerate(found.later)
    )
    return Table("later_steps", "Attention of later steps", _LATER_NOTE, columns, rows)


def others_table(found: MemberNumbers) -> Table:
    """Every slot by layer."""
    columns = (
        Column("role", "role", "text"),
        Column("slot", "slot", "count"),
        Column("text", "token", "text"),
        Column("layer", "layer", "count"),
        Column("attention", "attention", "number"),
        Column("hidden", "hidden, nats", "number"),
    )
    none = np.full(found.n_layers, NONE)
    rows = tuple(
        {
            "role": role,
            "slot": each.slot,
            "text": shown(each.text),
            "layer": layer,
            "attention": float(each.attention_by_layer[layer]),
            "hidden": float(_effects(each.knocked, none)[layer]),
        }
        for role, each in _everyone(found)
        for layer in range(found.n_layers)
    )
    return Table("slots_by_layer", "Every slot, layer by layer", _OTHERS_NOTE, columns, rows)


def heads_table(found: MemberNumbers) -> Table:
    """Every head."""
    names = ("attention", "alone", "odds_law", "value_norm", "written")
    columns = (
        Column("layer", "layer", "count"),
        Column("head", "head", "count"),
        Column("kv_head", "KV head", "count"),
        Column("chance", "chance", "number"),
        *(Column(name, name.replace("_", " "), "number") for name in names),
    )
    member, group = found.member, int(found.model["queries_per_kv_head"])
    none = np.full(member.value_norm.shape, NONE)
    values = {
        "attention": member.attention[0],
        "alone": none if found.alone is None else found.alone.attention[0],
        "odds_law": found.odds_law[0],
        "value_norm": member.value_norm,
        "written": member.attention[0] * member.value_norm,
    }
    rows = tuple(
        {
            "layer": layer,
            "head": head,
            "kv_head": head // group,
            "chance": float(found.chance[0, layer]),
            **{name: float(each[layer, head]) for name, each in values.items()},
        }
        for layer, head in np.ndindex(*none.shape)
    )
    return Table("heads", "Every head", _HEADS_NOTE, columns, rows)


def _everyone(found: MemberNumbers) -> Sequence[tuple[str, Course | Control]]:
    """Every slot that was followed, with its role."""
    beside = [("sibling", each) for each in found.siblings]
    alone = [] if found.alone is None else [("member alone", found.alone)]
    control = [] if found.control is None else [("prompt slot", found.control)]
    return [("member", found.member), *beside, *alone, *control]


def _slot_row(role: str, each: Course | Control) -> Mapping[str, Cell]:
    knocked = each.knocked
    parts = np.array([]) if knocked is None else knocked.one_layer_nats
    return {
        "role": role,
        "slot": each.slot,
        "text": shown(each.text),
        "probability": each.probability if isinstance(each, Course) else NONE,
        "attention": _mean(each.attention_by_layer),
        "hidden_everywhere": NONE if knocked is None else knocked.every_layer_nats,
        "hidden_sum": NONE if knocked is None else float(np.nansum(parts)),
        "strongest": "" if knocked is None else f"L{knocked.strongest}",
        "rank_correlation": correlation(each),
        "layers": int(np.isfinite(parts).sum()),
        "settles_at": str(each.lens.settles_at) if isinstance(each, Course) else "",
    }


def _effects(knocked: KnockedOut | None, none: np.ndarray) -> np.ndarray:
    return none if knocked is None else knocked.one_layer_nats


def _mean(values: np.ndarray) -> float:
    """Over what is seen; NaN where nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else NONE
