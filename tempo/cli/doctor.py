"""The command `tempo doctor`: checks that a model does what tempo assumes."""

import typer
from rich.text import Text

from tempo.cli.console import busy, show, show_json
from tempo.cli.options import MODEL, Json, given, takes_options
from tempo.run.options import Options

# Not 2, the code of a user error: a script can tell a failed check from a bad option.
FOUND_A_FAULT = 1


@takes_options(*MODEL)
def doctor(*, options: Options, as_json: Json = False) -> None:
    """Check that a model does what the instrument assumes."""
    with busy(f"examining {options.model}"):
        from tempo.cli.documents import diagnosed
        from tempo.cli.tables import checks_table
        from tempo.doctor import diagnose
        from tempo.models.load import load_model

        diagnosis = diagnose(load_model(options.model, **given(options)))
    if as_json:
        show_json(diagnosed(options.model, diagnosis))
    else:
        show(checks_table(diagnosis.checks), Text(diagnosis.summary))
    if not diagnosis.healthy:
        raise typer.Exit(FOUND_A_FAULT)
