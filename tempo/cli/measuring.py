"""`tempo analyze` and `tempo report`, for what a run left behind."""

from tempo.cli.arguments import Json, RunFolder
from tempo.cli.options import STATISTICS, given, takes_options
from tempo.cli.screen import show_json
from tempo.run.options import Options

THAT_OF_THE_RUN = {"seed": None}


@takes_options(*STATISTICS, defaults=THAT_OF_THE_RUN)
def analyze(run: RunFolder, *, options: Options, as_json: Json = False) -> None:
    """Measure a run: write results.json and show every number."""
    from tempo.cli.findings import ask, opened, show_findings
    from tempo_analysis.parallel.report import write_results

    found = opened(run, **given(options))
    results = ask(found)
    path = write_results(results, run)
    show_findings(results, results.metrics, [path], as_json=as_json)


@takes_options(*STATISTICS, defaults=THAT_OF_THE_RUN)
def report(run: RunFolder, *, options: Options, as_json: Json = False) -> None:
    """Measure a run: write report.html, report.md, results.json, tables/ and figures/."""
    from tempo.cli.documents import reported
    from tempo.cli.findings import ask, keep_report, opened, show_paths

    found = opened(run, **given(options))
    paths = keep_report(found, ask(found), run)
    if as_json:
        show_json(reported(run, paths))
    else:
        show_paths(paths)
