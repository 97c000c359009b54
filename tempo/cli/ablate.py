"""`tempo ablate`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from tempo.cli.console import notes, show, visible
from tempo.cli.options import (
    FLAG,
    MODEL,
    STATISTICS,
    Json,
    OptionalPrompts,
    Replace,
    StudyOut,
    Suite,
    given,
    prompts_of,
    takes_options,
)
from tempo.cli.tables import grid_table
from tempo.errors import InputError
from tempo.run.options import Options

if TYPE_CHECKING:
    from tempo_analysis.studies.ablation.findings import Ablation


_PANEL = "Ablation"
_DEFAULT = "head,value:1,value:1+2,value:before,value:through,value:before:model"
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
    settings = given(options)
    settings.pop("seed", None)
    with notes().status(Text("starting")) as status:
        from tempo.models.load import load_model
        from tempo.vocabulary import parse_head
        from tempo_analysis.studies.ablation.findings import Ablation
        from tempo_analysis.studies.ablation.measure import ablate as ask
        from tempo_analysis.studies.ablation.plan import parse_conditions

        if out is not None:
            Ablation.check_folder(out, force=force)
        wanted = [name.strip() for name in conditions.split(",")]
        parse_conditions(wanted)
        named = [parse_head(name) for name in _parts(heads)]
        chosen = prompts_of(prompts, suite)
        status.update(Text(visible(f"loading {options.model}")))
        found = ask(
            load_model(options.model, **settings),
            chosen,
            heads=named,
            conditions=wanted,
            at=int(at) if at.isdecimal() else at,
            redundancy=redundancy,
            sweep=sweep,
            donor=donor,
            seed=options.seed,
            on_progress=lambda doing: status.update(Text(doing)),
        )
        status.update(Text("drawing"))
        paths = [] if out is None else found.save(out, force=force)
    if as_json:
        sys.stdout.write(found.json())
    else:
        _show(found, paths)


def _parts(heads: str) -> list[str]:
    """Names between commas; `(3, 5)` holds one of its own."""
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", heads)]
    if not all(parts):
        raise InputError(f"expected heads such as L16H0,L18H6, got {heads!r}")
    return parts


def _show(found: "Ablation", paths: Sequence[Path]) -> None:
    """A row for each condition, the sentences, and where the files lie."""
    from tempo_analysis.studies.ablation.tables import ablation_tables

    show(grid_table(ablation_tables(found.numbers)[0], _SHOWN), Text(""))
    show(*(Text(visible(line), style="dim") for line in found.sentences()))
    show(*(Text(str(path)) for path in paths[:2]))
