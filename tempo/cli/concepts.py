"""`tempo concepts`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from tempo.cli.console import notes, show, visible
from tempo.cli.options import FLAG, MODEL, STATISTICS, Json, Replace, StudyOut, given, takes_options
from tempo.cli.tables import grid_table
from tempo.prompts.pairs import BUNDLED_PAIRS
from tempo.run.options import Options

if TYPE_CHECKING:
    from tempo_analysis.studies.concepts.findings import ConceptFindings


_PANEL = "Measure"
_SAID = {"counted", "heads"}
"""Columns that are the same in every row of a table and stand in a sentence."""
_ROWS = f"Pairs: {', '.join(BUNDLED_PAIRS)}, or a file of rows {{id, positive, negative}}."

PairsFile = Annotated[str, typer.Argument(metavar="PAIRS.jsonl", help=_ROWS)]
Pooling = Annotated[
    str,
    typer.Option(metavar="last|mean", help="Read the last token, or all.", rich_help_panel=_PANEL),
]
Permutations = Annotated[
    int | None,
    typer.Option(
        metavar="INTEGER",
        help="Swaps of sides behind the null; if not given, 2000, or 20 for each head.",
        rich_help_panel=_PANEL,
    ),
]
TopHeads = Annotated[
    int,
    typer.Option(metavar="INTEGER", help="Heads in the causal check.", rich_help_panel=_PANEL),
]
NoEffect = Annotated[
    bool,
    typer.Option(
        "--no-effect", metavar=FLAG, help="Leave the causal check out.", rich_help_panel=_PANEL
    ),
]


@takes_options(*MODEL, *STATISTICS)
def concepts(
    pairs: PairsFile = BUNDLED_PAIRS[0],
    *,
    pooling: Pooling = "last",
    permutations: Permutations = None,
    top: TopHeads = 10,
    no_effect: NoEffect = False,
    options: Options,
    out: StudyOut = None,
    force: Replace = False,
    as_json: Json = False,
) -> None:
    """Find the heads that tell two sides of paired texts apart, beside nulls.

    For example: tempo concepts urgency --out runs/urgency
    """
    settings = given(options)
    settings.pop("seed", None)
    with notes().status(Text("starting")) as status:
        from tempo.models.load import load_model
        from tempo.prompts.pairs import load_pairs
        from tempo_analysis.studies.concepts.findings import ConceptFindings
        from tempo_analysis.studies.concepts.measure import check_options
        from tempo_analysis.studies.concepts.measure import concepts as contrast

        if out is not None:
            ConceptFindings.check_folder(out, force=force)
        check_options(pooling=pooling, permutations=permutations, top=top)
        chosen = load_pairs(pairs)
        status.update(Text(visible(f"loading {options.model}")))
        found = contrast(
            load_model(options.model, **settings),
            chosen,
            pooling=pooling,
            permutations=permutations,
            seed=options.seed,
            top=top,
            check_effects=not no_effect,
            on_progress=lambda doing: status.update(Text(doing)),
        )
        paths = [] if out is None else found.save(out, force=force)
    if as_json:
        sys.stdout.write(found.json())
    else:
        _show(found, paths)


def _show(found: "ConceptFindings", paths: Sequence[Path]) -> None:
    """Two short tables, what a reader must know beside them, and where the files lie."""
    from tempo_analysis.studies.concepts.tables import best_table, concentration_table

    for grid in (best_table(found), concentration_table(found)):
        keys = {column.key for column in grid.columns} - _SAID
        show(grid_table(grid, keys), Text(""))
    show(*(Text(visible(line), style="dim") for line in found.sentences()))
    show(*(Text(str(path)) for path in paths))
