"""The command `tempo report`: the page, tables and figures of a run."""

from tempo.cli.console import show_json
from tempo.cli.options import STATISTICS, Json, RunFolder, given, takes_options
from tempo.run.options import Options

# The run records its seed; a default of 0 shown in the help would be wrong.
THAT_OF_THE_RUN = {"seed": None}


@takes_options(*STATISTICS, defaults=THAT_OF_THE_RUN)
def report(run: RunFolder, *, options: Options, as_json: Json = False) -> None:
    """Measure a run: write report.html, report.md, results.json, tables/ and figures/."""
    from tempo.cli.documents import reported
    from tempo.cli.run_results import ask, keep_report, opened, show_paths

    found = opened(run, **given(options))
    paths = keep_report(found, ask(found), run)
    if as_json:
        show_json(reported(run, paths))
    else:
        show_paths(paths)
