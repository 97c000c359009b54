"""The tables of a concept as data, for whoever shows or stores them."""

from collections.abc import Mapping

from tempo.vocabulary import Head
from tempo_analysis.report.table import Cell, Column, Table
from tempo_analysis.studies.concepts.effect import ConceptEffect
from tempo_analysis.studies.concepts.result import BEST, ConceptNumbers
from tempo_analysis.studies.concepts.verdict import carried

_HEADS_NOTE = (
    "Length after W_O is that of the mean difference behind the head's output weights. "
    "Selectivity is the raw length over the RMS distance of the negatives from their mean. AUROC "
    "is on pairs that the direction was not fitted to; chance is 0.5. q: pairs swap sides at "
    "random, adjusted over all heads (Benjamini-Hochberg)."
)
_LAYERS_NOTE = (
    "Share of the longest heads in the summed length after W_O; chance is heads of equal length, "
    "the null and p are from pairs that swap sides at random. Where a layer has no more heads than "
    "are counted, the share is 1 whatever they do: read the effective heads, (sum of lengths)^2 / "
    "sum of squares."
)
_CAUSAL_NOTE = (
    "Shares of the margin between the sides, along the direction that separates them in the last "
    "stream. Heads and direction were chosen on every other pair and measured on the rest."
)
_VALUES = ("raw_norm", "selectivity", "written_norm", "unbiased", "separation", "auroc", "paired")


def concept_tables(found: ConceptNumbers) -> tuple[Table, ...]:
    """Every table that has a row."""
    tables = (_every_head(found), concentration_table(found), _causal(found), _skipped(found))
    return tuple(table for table in tables if table.rows)


def best_table(found: ConceptNumbers, *, rows: int = BEST) -> Table:
    """The best heads, for a short look."""
    columns = (
        Column("head", "head", "text"),
        Column("kv_head", "KV head", "count"),
        Column("written_norm", "length after W_O", "number"),
        Column("selectivity", "selectivity", "number"),
        Column("auroc", "AUROC held out", "number"),
        Column("q", "q", "number"),
        Column("assigned", "assigned", "text"),
    )
    keys = [column.key for column in columns]
    best = (_head_row(found, row, head) for row, head in found.best_first()[:rows])
    cells = tuple({key: row[key] for key in keys} for row in best)
    return Table("best_heads", "Best heads", _HEADS_NOTE, columns, cells)


def concentration_table(found: ConceptNumbers) -> Table:
    """For each layer, whether its differences are in a few heads."""
    columns = (
        Column("layer", "layer", "count"),
        Column("counted", "longest heads counted", "count"),
        Column("heads", "of", "count"),
        Column("share", "their share", "number"),
        Column("chance", "chance", "number"),
        Column("null", "null", "number"),
        Column("p", "p", "number"),
        Column("effective_heads", "effective heads", "number"),
        Column("null_effective_heads", "null", "number"),
        Column("effective_heads_p", "p", "number"),
    )
    by_layer = found.heads.concentration
    values = {
        "share": by_layer.share,
        "null": by_layer.null,
        "p": by_layer.p,
        "effective_heads": by_layer.effective_heads,
        "null_effective_heads": by_layer.null_effective,
        "effective_heads_p": by_layer.effective_p,
    }
    rows = tuple(
        {
            "layer": layer,
            "counted": by_layer.top,
            "heads": found.heads.auroc.shape[1],
            "chance": by_layer.chance,
            **{name: float(column[row]) for name, column in values.items()},
        }
        for row, layer in enumerate(found.layers)
    )
    return Table("concentration", "A few heads or all?", _LAYERS_NOTE, columns, rows)


def _every_head(found: ConceptNumbers) -> Table:
    columns = (
        Column("head", "head", "text"),
        Column("layer", "layer", "count"),
        Column("kv_head", "KV head", "count"),
        *(Column(name, name.replace("_", " "), "number") for name in (*_VALUES, "p", "q")),
        Column("assigned", "assigned", "text"),
    )
    rows = tuple(_head_row(found, row, head) for row, head in found.best_first())
    return Table("heads", "Every head, best first", _HEADS_NOTE, columns, rows)


def _head_row(found: ConceptNumbers, row: int, head: Head) -> Mapping[str, Cell]:
    place = (row, head.head)
    return {
        "head": str(head),
        "layer": head.layer,
        "kv_head": found.kv_head(head.head),
        **{name: float(getattr(found.heads, name)[place]) for name in (*_VALUES, "p", "q")},
        "assigned": "yes" if found.heads.assigned[place] else "no",
    }


def _causal(found: ConceptNumbers) -> Table:
    columns = (
        Column("held_at", "heads held at", "text"),
        Column("heads", "heads", "text"),
        Column("base", "margin of the model", "interval"),
        Column("lost_top", "share these heads take", "interval"),
        Column("lost_random", "share random heads take", "interval"),
        Column("difference", "difference", "interval"),
        Column("pairs", "pairs", "count"),
        Column("draws", "draws", "count"),
        Column("verdict", "verdict", "text"),
    )
    check = found.check
    effects = {} if check is None else {"zero": check.zero, "their mean": check.mean}
    names = "" if check is None else " ".join(map(str, check.heads))
    rows = tuple(_effect_row(held, names, effect) for held, effect in effects.items())
    return Table("causal", "Do the heads carry it?", _CAUSAL_NOTE, columns, rows)


def _effect_row(held_at: str, heads: str, effect: ConceptEffect) -> Mapping[str, Cell]:
    return {
        "held_at": held_at,
        "heads": heads,
        "base": effect.base,
        "lost_top": effect.lost_top,
        "lost_random": effect.lost_random,
        "difference": effect.difference,
        "pairs": effect.base.n,
        "draws": effect.n_draws,
        "verdict": carried(effect).verdict,
    }


def _skipped(found: ConceptNumbers) -> Table:
    columns = (
        Column("layer", "layer", "count"),
        Column("kind", "kind", "text"),
        Column("reason", "what stands in place of one plain output projection", "text"),
    )
    rows = tuple({key: each[key] for key in ("layer", "kind", "reason")} for each in found.skipped)
    return Table("skipped", "Layers without heads to read", "", columns, rows)
