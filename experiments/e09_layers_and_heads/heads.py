"""What the number of a head explains, and which kinds of heads there are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tempo_analysis.parallel.head_kinds import (
    KINDS,
    MEASURES,
    HeadTable,
    IndexEffect,
    PromptHeads,
    head_table,
    index_effect,
    index_shares,
    kind_columns,
    kinds_by_index,
)
from tempo_analysis.parallel.metrics import NONE, Metric
from tempo_analysis.stats.intervals import benjamini_hochberg, estimate_with_interval

KIND = "kind"


def table_of(
    prompts: Sequence[PromptHeads], *, layers: tuple[int, ...], heads: tuple[int, ...]
) -> HeadTable:
    """Means over prompts of every (layer, head)."""
    return head_table(prompts, layers=layers, heads=heads)


def index_tests(table: HeadTable, options: Mapping[str, Any]) -> dict[str, IndexEffect]:
    """Heads permuted within layers, for each measure and for the kind of the head."""
    values = {name: table.column(name)[..., None] for name in options["measures"]}
    values[KIND] = kind_columns(table.kind)
    return {
        name: index_effect(each, permutations=options["permutations"])
        for name, each in values.items()
    }


def index_metrics(
    arm: str,
    prompts: Sequence[PromptHeads],
    tests: Mapping[str, IndexEffect],
    measures: Sequence[str],
) -> list[Metric]:
    """Share of the variance within layers that the head number explains, prompt by prompt."""
    made = []
    for name in measures:
        column = MEASURES.index(name)
        share = estimate_with_interval(index_shares([one.value[..., column] for one in prompts]))
        text = f"heads permuted within layers explain as much with p = {tests[name].p:.2g}"
        title = f"explained_by_head_index_{name}"
        made.append(Metric(title, arm, "share", share, tests[name].chance, NONE, text))
    return made


def head_detail(
    table: HeadTable, tests: Mapping[str, IndexEffect], prompts: Sequence[PromptHeads]
) -> dict[str, Any]:
    """The tests, and the kinds of heads: how many, by number, and whether other prompts agree."""
    p = np.array([test.p for test in tests.values()])
    halves = [
        table_of(half, layers=table.layers, heads=table.heads).kind
        for half in (prompts[::2], prompts[1::2])
        if half
    ]
    return {
        "index": {
            name: {"share": test.share, "chance": test.chance, "detectable": test.detectable}
            | {"p": test.p, "adjusted_p": float(q), "n_layers": test.n_layers}
            for (name, test), q in zip(tests.items(), benjamini_hochberg(p), strict=True)
        },
        "spread": {name: _spread(table, name) for name in tests if name != KIND},
        "kinds": table.kind_count(),
        "kinds_by_index": {
            number: dict(zip(KINDS, counts, strict=True))
            for number, counts in zip(table.heads, kinds_by_index(table.kind).tolist(), strict=True)
        },
        "same_kind_in_other_half": float(np.mean(halves[0] == halves[-1])) if halves else NONE,
    }


def _spread(table: HeadTable, name: str) -> dict[str, float]:
    """Lowest and highest single head, and lowest and highest mean of a number over layers."""
    column = table.column(name)
    means = np.nanmean(column, 0)
    return {
        "lowest_head": float(np.nanmin(column)),
        "highest_head": float(np.nanmax(column)),
        "lowest_index": float(means.min()),
        "highest_index": float(means.max()),
    }
