"""The tables of a concept as data, for whoever shows or stores them."""

from tempo.vocabulary import Head
from tempo_analysis.report.table import Column, Table
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
        Column("head", "head", "text", lambda row, head: str(head)),
        Column("kv_head", "KV head", "count", lambda row, head: found.kv_head(head.head)),
        _number(found, "written_norm", "length after W_O"),
        _number(found, "selectivity", "selectivity"),
        _number(found, "auroc", "AUROC held out"),
        _number(found, "q", "q"),
        _assigned(found),
    )
    return Table.of("best_heads", "Best heads", columns, found.best_first()[:rows], _HEADS_NOTE)


def concentration_table(found: ConceptNumbers) -> Table:
    """For each layer, whether its differences are in a few heads."""
    every, n_heads = found.heads.concentration, found.heads.auroc.shape[1]
    effective = every.effective_heads
    columns = (
        Column("layer", "layer", "count", lambda row: found.layers[row]),
        Column("counted", "longest heads counted", "count", lambda row: every.top),
        Column("heads", "of", "count", lambda row: n_heads),
        Column("share", "their share", "number", lambda row: every.share[row]),
        Column("chance", "chance", "number", lambda row: every.chance),
        Column("null", "null", "number", lambda row: every.null[row]),
        Column("p", "p", "number", lambda row: every.p[row]),
        Column("effective_heads", "effective heads", "number", lambda row: effective[row]),
        Column("null_effective_heads", "null", "number", lambda row: every.null_effective[row]),
        Column("effective_heads_p", "p", "number", lambda row: every.effective_p[row]),
    )
    rows = range(len(found.layers))
    return Table.of("concentration", "A few heads or all?", columns, rows, _LAYERS_NOTE)


def _every_head(found: ConceptNumbers) -> Table:
    columns = (
        Column("head", "head", "text", lambda row, head: str(head)),
        Column("layer", "layer", "count", lambda row, head: head.layer),
        Column("kv_head", "KV head", "count", lambda row, head: found.kv_head(head.head)),
        *(_number(found, name, name.replace("_", " ")) for name in (*_VALUES, "p", "q")),
        _assigned(found),
    )
    return Table.of("heads", "Every head, best first", columns, found.best_first(), _HEADS_NOTE)


def _number(found: ConceptNumbers, name: str, heading: str) -> Column:
    values = getattr(found.heads, name)
    return Column(name, heading, "number", lambda row, head: values[row, head.head])


def _assigned(found: ConceptNumbers) -> Column:
    def assigned(row: int, head: Head) -> str:
        return "yes" if found.heads.assigned[row, head.head] else "no"

    return Column("assigned", "assigned", "text", assigned)


def _causal(found: ConceptNumbers) -> Table:
    check = found.check
    effects = {} if check is None else {"zero": check.zero, "their mean": check.mean}
    names = "" if check is None else " ".join(map(str, check.heads))
    lost_random = "share random heads take"
    columns = (
        Column("held_at", "heads held at", "text", lambda held_at, one: held_at),
        Column("heads", "heads", "text", lambda held_at, one: names),
        Column("base", "margin of the model", "interval", lambda held_at, one: one.base),
        Column("lost_top", "share these heads take", "interval", lambda _, one: one.lost_top),
        Column("lost_random", lost_random, "interval", lambda _, one: one.lost_random),
        Column("difference", "difference", "interval", lambda held_at, one: one.difference),
        Column("pairs", "pairs", "count", lambda held_at, one: one.base.n),
        Column("draws", "draws", "count", lambda held_at, one: one.n_draws),
        Column("verdict", "verdict", "text", lambda held_at, one: carried(one).verdict),
    )
    return Table.of("causal", "Do the heads carry it?", columns, effects.items(), _CAUSAL_NOTE)


def _skipped(found: ConceptNumbers) -> Table:
    columns = (
        Column("layer", "layer", "count"),
        Column("kind", "kind", "text"),
        Column("reason", "what stands in place of one plain output projection", "text"),
    )
    return Table.of("skipped", "Layers without heads to read", columns, found.skipped)
