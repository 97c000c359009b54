"""The command `tempo analyze`: measures a run and writes `results.json`."""

from tempo.cli.options import STATISTICS, Json, RunFolder, given, takes_options
from tempo.cli.report import THAT_OF_THE_RUN
from tempo.run.options import Options


@takes_options(*STATISTICS, defaults=THAT_OF_THE_RUN)
def analyze(run: RunFolder, *, options: Options, as_json: Json = False) -> None:
    """Measure a run: write results.json and show every number."""
    # Imported here, so that `tempo analyze --help` does not load the analysis.
    from tempo.cli.run_results import ask, opened, show_findings

    found = opened(run, **given(options))
    results = ask(found)
    path = results.save_document(run)
    show_findings(results, results.metrics, [path], as_json=as_json)
