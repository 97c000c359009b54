"""The command `tempo ablate`: effects of removing heads, values and edges at one token."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tempo.cli.options import (
    FLAG,
    MODEL,
    STATISTICS,
    Json,
    OptionalPrompts,
    Replace,
    StudyOut,
    Suite,
    prompts_of,
    takes_options,
)
from tempo.cli.study import check_out, load_for_study, progress_line, save_to, show_study
from tempo.cli.tables import grid_table
from tempo.errors import InputError
from tempo.run.options import Options

if TYPE_CHECKING:
    from tempo_analysis.studies.ablation.findings import Ablation


_PANEL = "Ablation"
_DEFAULT = "head,value:1,value:1+2,value:before,value:through,value:before:model"
# The terminal shows the columns that decide; all others are in the files.
_SHOWN = ("comparison", "n", "kl_at_t_nats", "top_1_changed_at_t", "kl_at_t_nats_less_control")

Heads = Annotated[
    str,
    typer.Option(
        metavar="L16H0,L18H6...", help="Query heads.", rich_help_panel=_PANEL, show_default=False
    ),
]
Conditions = Annotated[
    str,
    typer.Option(
        metavar="NAME,NAME...",
        help="What is taken out, as above.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
At = Annotated[
    str,
    typer.Option(
        metavar="last|random|N", help="The token t of each prompt.", rich_help_panel=_PANEL
    ),
]
Redundancy = Annotated[
    bool,
    typer.Option(
        "--redundancy/--no-redundancy",
        metavar=FLAG,
        help="Ask whether the heads have removed what the value of the token before t gives.",
        rich_help_panel=_PANEL,
    ),
]
Sweep = Annotated[
    int,
    typer.Option(
        metavar="INTEGER",
        help="Ask the same of the values up to so many tokens back; 0 is none.",
        rich_help_panel=_PANEL,
    ),
]
Donor = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Stands in under head:resample; another prompt, drawn, unless given.",
        rich_help_panel=_PANEL,
    ),
]


@takes_options(*MODEL, *STATISTICS)
def ablate(
    prompts: OptionalPrompts = None,
    *,
    heads: Heads,
    suite: Suite = None,
    conditions: Conditions = _DEFAULT,
    at: At = "last",
    redundancy: Redundancy = True,
    sweep: Sweep = 4,
    donor: Donor = None,
    options: Options,
    out: StudyOut = None,
    force: Replace = False,
    as_json: Json = False,
) -> None:
    """Take heads, values and edges out at one token t, and say what that changed.

    Conditions: head, head:mean, head:resample,
    value:OFFSETS[:SCOPE], edge:OFFSETS[:SCOPE][:after].

    OFFSETS: 0 is t, 1 the token before, 1+2 both before,
    before is all before t, through is t as well.

    SCOPE: heads (those listed), layer (all heads of their layers,
    where none is given) or model.

    A value goes for every query, an edge for t only; after is after the
    softmax, so that nothing takes its place.

    Unless given: head, value:1, value:1+2, value:before, value:through,
    value:before:model.

    For example: tempo ablate --suite crafted --heads L16H0,L18H6 --out runs/ablation
    """
    # Imported here: the analysis imports torch, which takes seconds, and `--help` must not wait.
    with progress_line() as on_progress:
        from tempo.vocabulary import parse_head
        from tempo_analysis.studies.ablation.findings import Ablation
        from tempo_analysis.studies.ablation.measure import ablate as ask
        from tempo_analysis.studies.ablation.plan import parse_conditions

        # Every refusal comes before the model is loaded, so that a typing error costs no minutes.
        check_out(Ablation, out, force=force)
        wanted = [name.strip() for name in conditions.split(",")]
        parse_conditions(wanted)
        named = [parse_head(name) for name in _parts(heads)]
        chosen = prompts_of(prompts, suite)
        found = ask(
            load_for_study(options, on_progress),
            chosen,
            heads=named,
            conditions=wanted,
            # `at` mixes words and numbers in one option, which typer cannot express as a type.
            at=int(at) if at.isdecimal() else at,
            redundancy=redundancy,
            sweep=sweep,
            donor=donor,
            seed=options.seed,
            on_progress=on_progress,
        )
        on_progress("drawing")
        paths = save_to(found, out, force=force)
    # The page and the document; the many tables and figures lie beside them.
    show_study(found, _tables(found), paths[:2], as_json=as_json)


def _parts(heads: str) -> list[str]:
    """Head names between commas; the comma inside `(3, 5)` does not separate."""
    # A comma that a closing bracket follows, with no opening one between, is inside a pair.
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", heads)]
    if not all(parts):
        raise InputError(f"expected heads such as L16H0,L18H6, got {heads!r}")
    return parts


def _tables(found: "Ablation") -> Iterator[Table]:
    """A row for each condition."""
    from tempo_analysis.studies.ablation.tables import ablation_tables

    yield grid_table(ablation_tables(found.numbers)[0], _SHOWN)
