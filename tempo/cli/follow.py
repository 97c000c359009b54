"""The command `tempo follow`: one member of a parallel set through the layers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tempo.cli.options import Json, Replace, RunFolder, StudyOut
from tempo.cli.study import check_out, progress_line, save_to, show_study
from tempo.cli.tables import grid_table
from tempo.errors import InputError

if TYPE_CHECKING:
    from tempo.trace.run import Run
    from tempo.trace.trace import Trace
    from tempo_analysis.studies.follow.findings import Followed


_PANEL = "What to follow"
# A suite has hundreds of prompts; an error must stay one readable line.
_MOST_LISTED = 8

PromptId = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="ID",
        help="Prompt of the run; not needed where there is one.",
        rich_help_panel=_PANEL,
    ),
]
Arm = Annotated[
    str | None,
    typer.Option(
        metavar="ARM", help="Arm of the run; not needed where there is one.", rich_help_panel=_PANEL
    ),
]
Slot = Annotated[
    int | None,
    typer.Option(
        metavar="INTEGER",
        help="Slot of the member; if not given, the most attended one of the widest set.",
        rich_help_panel=_PANEL,
    ),
]
ModelOf = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="The model that made the run, where it lies elsewhere now.",
        rich_help_panel="Model",
    ),
]


def follow(
    run: RunFolder,
    *,
    prompt: PromptId = None,
    arm: Arm = None,
    slot: Slot = None,
    model: ModelOf = None,
    out: StudyOut = None,
    force: Replace = False,
    as_json: Json = False,
) -> None:
    """Follow one member of a parallel set through the layers of its model.

    For example: tempo follow runs/cat --out runs/cat-member
    """
    with progress_line("reading the run") as on_progress:
        from tempo.models.load import load_model
        from tempo.trace.run_folder import open_run
        from tempo_analysis.studies.follow.findings import Followed
        from tempo_analysis.studies.follow.measure import follow as ask

        check_out(Followed, out, force=force)
        trace = _chosen(open_run(run), prompt, arm)
        found = ask(
            trace,
            slot,
            # The dtype of the trace: in another one the replay would differ by more than rounding.
            model=None if model is None else load_model(model, dtype=trace.header.model["dtype"]),
            on_progress=on_progress,
        )
        paths = save_to(found, out, force=force)
    show_study(found, _tables(found), paths[:2], as_json=as_json)


def _chosen(run: "Run", prompt: str | None, arm: str | None) -> "Trace":
    """The trace of one prompt and arm.

    Raises:
        InputError: Several prompts or arms and none was named, or no such prompt or arm.
    """
    ids = [one.id for one in run.prompts]
    # No silent choice among several: the first prompt is no better than another.
    if prompt is None and len(ids) != 1:
        listed = ", ".join(ids[:_MOST_LISTED]) + (", ..." if len(ids) > _MOST_LISTED else "")
        raise InputError(f"expected one prompt, got {len(ids)} ({listed}); give --prompt")
    if arm is None and len(run.arms) != 1:
        raise InputError(
            f"expected one arm, got {len(run.arms)} ({', '.join(run.arms)}); give --arm"
        )
    return run.trace(ids[0] if prompt is None else prompt, arm)


def _tables(found: "Followed") -> Iterator[Table]:
    """A row for each slot."""
    from tempo_analysis.studies.follow.tables import slots_table

    yield grid_table(slots_table(found))
