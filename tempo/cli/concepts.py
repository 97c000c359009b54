"""The command `tempo concepts`: heads that separate the two sides of paired texts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tempo.cli.options import FLAG, MODEL, STATISTICS, Json, Replace, StudyOut, takes_options
from tempo.cli.study import check_out, load_for_study, progress_line, save_to, show_study
from tempo.cli.tables import grid_table
from tempo.prompts.pairs import BUNDLED_PAIRS
from tempo.run.options import Options

if TYPE_CHECKING:
    from tempo_analysis.studies.concepts.findings import ConceptFindings


_PANEL = "Measure"
_SAID = {"counted", "heads"}
"""Columns with one value in all rows; the sentences below the table give it."""
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
    # None, because the default depends on the number of heads, which the model decides.
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
    with progress_line() as on_progress:
        from tempo.prompts.pairs import load_pairs
        from tempo_analysis.studies.concepts.findings import ConceptFindings
        from tempo_analysis.studies.concepts.measure import check_options
        from tempo_analysis.studies.concepts.measure import concepts as contrast

        check_out(ConceptFindings, out, force=force)
        # Refused before the model is loaded.
        check_options(pooling=pooling, permutations=permutations, top=top)
        chosen = load_pairs(pairs)
        found = contrast(
            load_for_study(options, on_progress),
            chosen,
            pooling=pooling,
            permutations=permutations,
            seed=options.seed,
            top=top,
            check_effects=not no_effect,
            on_progress=on_progress,
        )
        paths = save_to(found, out, force=force)
    show_study(found, _tables(found), paths, as_json=as_json)


def _tables(found: "ConceptFindings") -> Iterator[Table]:
    """The best heads, and how the contrast is spread over heads."""
    from tempo_analysis.studies.concepts.tables import best_table, concentration_table

    for grid in (best_table(found), concentration_table(found)):
        keys = {column.key for column in grid.columns} - _SAID
        yield grid_table(grid, keys)
