"""The command `tempo boost`: effects of adding to the attention scores of parallel members."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

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
    from tempo_analysis.studies.boost.findings import BoostFindings


_PANEL = "Measure"
_IN_FILES = {"pooled", "pooled_law"}
"""Columns that are written to the files but not shown in the terminal."""
# Nats: exp(4) is a factor of 55 on the odds. 0 is included as the control without a bias.
_BETAS = "-4,-2,-1,0,1,2,4"

Betas = Annotated[
    str,
    typer.Option(
        metavar="NUMBER,NUMBER...",
        help="Doses in nats; write --betas=-1,1 where the first is negative.",
        rich_help_panel=_PANEL,
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME...",
        help="Some of: all, first third, middle third, last third, set readers, other heads, "
        "control; all unless given.",
        rich_help_panel=_PANEL,
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=HEADS;...",
        help="More targets, such as mine=L3H5,L4H1.",
        rich_help_panel=_PANEL,
    ),
]
# Numbers are taken as text, so that a bad one gets the one-line error of tempo.
Threshold = Annotated[
    str,
    typer.Option(
        metavar="NUMBER",
        help="Tokens with at least this probability enter the set.",
        rich_help_panel=_PANEL,
    ),
]
Steps = Annotated[
    str, typer.Option(metavar="INTEGER", help="Sets to decode.", rich_help_panel=_PANEL)
]
NoFree = Annotated[
    bool,
    typer.Option(
        "--no-free",
        metavar=FLAG,
        help="Do not decode freely under the bias.",
        rich_help_panel=_PANEL,
    ),
]


@takes_options(*MODEL, *STATISTICS)
def boost(
    prompts: OptionalPrompts = None,
    *,
    suite: Suite = None,
    betas: Betas = _BETAS,
    targets: Targets = None,
    groups: Groups = None,
    threshold: Threshold = "0.1",
    steps: Steps = "10",
    no_free: NoFree = False,
    options: Options,
    out: StudyOut = None,
    force: Replace = False,
    as_json: Json = False,
) -> None:
    """Give parallel members more or less attention, dose by dose, and measure what follows.

    For example: tempo boost --suite demo --betas=-1,1 --out runs/boost
    """
    chosen = prompts_of(prompts, suite)
    # Read before the imports below: a wrong number is refused at once.
    asked = _asked(betas, targets, groups)
    asked |= {"threshold": _number(threshold, "--threshold"), "steps": _whole(steps, "--steps")}
    with progress_line() as on_progress:
        from tempo_analysis.studies.boost.findings import BoostFindings
        from tempo_analysis.studies.boost.measure import boost as ask
        from tempo_analysis.studies.boost.measure import check_betas
        from tempo_analysis.studies.boost.plan import check_targets

        check_out(BoostFindings, out, force=force)
        # Checked before the model is loaded, not when the first dose is applied.
        check_betas(asked["betas"])
        check_targets(asked["targets"], asked["groups"])
        found = ask(
            load_for_study(options, on_progress),
            chosen,
            **asked,
            seed=options.seed,
            check_effects=not no_free,
            on_progress=on_progress,
        )
        paths = save_to(found, out, force=force)
    show_study(found, _tables(found), paths[:2], as_json=as_json)


def _asked(betas: str, targets: str | None, groups: str | None) -> dict[str, Any]:
    """Doses, targets and groups in the form that `tempo.boost` takes."""
    return {
        "betas": [_number(text, "--betas") for text in betas.split(",")],
        "targets": None if targets is None else [name.strip() for name in targets.split(",")],
        "groups": _groups(groups),
    }


def _groups(text: str | None) -> dict[str, list[str]]:
    """Heads by the name of their group, from `NAME=HEADS;NAME=HEADS`."""
    found: dict[str, list[str]] = {}
    for part in (text or "").split(";") if text else []:
        name, equals, heads = (each.strip() for each in part.partition("="))
        if not (name and equals) or name in found:
            raise InputError(
                f"expected --groups such as 'mine=L3H5,L4H1', each name once, got {part!r}"
            )
        found[name] = [head.strip() for head in heads.split(",") if head.strip()]
    return found


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        # `from None`: the Python error adds nothing for a reader of the command line.
        raise InputError(f"expected numbers in {option}, got {text!r}; such as -1,1") from None


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"expected a whole number in {option}, got {text!r}") from None


def _tables(found: "BoostFindings") -> Iterator[Table]:
    """The response to each dose, and the dose that restores the mass of a member alone."""
    from tempo_analysis.studies.boost.tables import response_table, restoring_table

    for grid in (response_table(found), restoring_table(found)):
        if grid.rows:
            keys = {column.key for column in grid.columns} - _IN_FILES
            yield grid_table(grid, keys)
