"""The command `tempo generate`: decodes prompts in parallel sets."""

from collections import Counter

from rich.table import Table
from rich.text import Text

from tempo.cli.console import busy, is_terminal, say, show, show_json
from tempo.cli.options import EVERYTHING, DryRun, Force, Json, Out, Prompts, given, takes_options
from tempo.run.options import Options
from tempo.trace.run import Run

# The three options of a comparison.
_OPTIONS = tuple(name for name in EVERYTHING if name not in ("arms", "paired", "alone"))


@takes_options(*_OPTIONS, config=True)
def generate(
    prompts: Prompts,
    *,
    options: Options,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Decode prompts in parallel sets and show them; --out keeps the traces.

    For example: tempo generate "The cat sat on the" --threshold 0.05 --out runs/cat
    """
    with busy(f"loading {options.model}"):
        from tempo.cli.execution import decode_growing, say_complete, say_level, show_plan
        from tempo.run.api import generate_request
        from tempo.run.batching import layout

        request = generate_request(options.model, prompts, **given(options))
        planned = layout(request)
    say_level(request, planned)
    if dry_run:
        show_plan("generate", request, planned, as_json=as_json)
        return
    run = decode_growing(request, planned, out=out, force=force)
    if run.already_complete:
        say_complete(run, as_json=as_json)
    elif not as_json:
        _show_lattices(run)
        # On stderr, so that stdout holds the lattices only.
        say(_summary(run), style="dim")
    if as_json:
        from tempo.cli.documents import generated

        show_json(generated(run))


def _show_lattices(run: Run) -> None:
    """Show every sequence on stdout: wrapped in a terminal, on one line elsewhere."""
    from tempo.cli.live import lattice_of

    # A label only where there are several; one lattice can then be pasted as it is.
    labelled = [(Text(trace.header.prompt_id, "dim"), lattice_of(trace).text()) for trace in run]
    rows = labelled if len(run) > 1 else [(text,) for _, text in labelled]
    if is_terminal():
        table = Table.grid(padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*row)
        show(table)
    else:
        show(*(Text("  ").join(row) for row in rows))


def _summary(run: Run) -> str:
    """One line: number and width of the sets, why decoding ended, where the run is kept."""
    widths = [len(trace.members(step)) for trace in run for step in range(1, trace.n_steps + 1)]
    n_parallel = sum(width > 1 for width in widths)
    endings = ", ".join(Counter(trace.header.stopped for trace in run))
    sizes = f"{len(widths)} sets, {n_parallel} parallel, widest {max(widths, default=0)}"
    kept = (
        "not kept: --out FOLDER keeps the traces" if run.folder is None else f"kept in {run.folder}"
    )
    return f"{sizes}; ended by {endings}; {kept}"
