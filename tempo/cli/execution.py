"""Decodes a checked request and shows its progress."""

from contextlib import AbstractContextManager
from pathlib import Path

from rich.text import Text

from tempo.cli.console import say, show, show_json
from tempo.cli.documents import planned
from tempo.cli.interrupts import interruptible
from tempo.cli.live import GrowingLattices, StepCount, counting, growing
from tempo.cli.tables import plan_table
from tempo.run.batching import Layout
from tempo.run.budget import human
from tempo.run.execute import OnStep, execute
from tempo.run.recorder import text_of
from tempo.run.request import Request
from tempo.trace.run import Run


def show_plan(command: str, request: Request, layout: Layout, *, as_json: bool) -> None:
    """Show the memory and storage that the run would need."""
    if as_json:
        show_json(planned(command, request.options.model, layout.memory))
    else:
        show(plan_table(layout.memory))


def say_level(request: Request, layout: Layout) -> None:
    """Report the chosen capture level, if the budget chose it."""
    if request.options.capture == "auto":
        expected = human(layout.memory.trace_bytes)
        reason = f"about {expected} of traces, budget {request.options.budget}"
        say(f"capture: {layout.level} ({reason})", style="dim")


def say_complete(run: Run, *, as_json: bool) -> None:
    """Report that nothing was decoded: on stdout, unless a document is printed there."""
    line = f"already complete: {run.folder}"
    if as_json:
        say(line)
    else:
        show(Text(line))


def decode_growing(request: Request, layout: Layout, *, out: Path | None, force: bool) -> Run:
    """Decode, and show the sets as they are chosen."""
    prompts = {prompt.id: prompt.text for prompt in request.prompts}
    lattices = GrowingLattices(prompts, lambda token: text_of(request.model, token))
    return _decode(request, layout, growing(lattices), out, force=force)


def decode_counting(request: Request, layout: Layout, *, out: Path | None, force: bool) -> Run:
    """Decode, and show the number of steps done."""
    count = StepCount(tuple(batch.pairs for batch in layout.batches), request.options.steps)
    return _decode(request, layout, counting(count), out, force=force)


def _decode(
    request: Request,
    layout: Layout,
    view: AbstractContextManager[OnStep],
    out: Path | None,
    *,
    force: bool,
) -> Run:
    # The view is the outer context: an interrupt closes it before the message is printed.
    with view as on_step, interruptible(on_step, _remains(out)) as take:
        return execute(request, layout, out=out, force=force, on_progress=take)


def _remains(out: Path | None) -> str:
    """Message of an interrupted run: what is kept and how to continue."""
    if out is None:
        return "stopped; nothing is kept without --out FOLDER"
    return (
        f"stopped; {out} can be read up to the last whole step, "
        "and the same command goes on from there"
    )
