"""The commands under one roof."""

import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from tempo.cli.comparing import compare
from tempo.cli.diagnosing import doctor
from tempo.cli.endings import Commands
from tempo.cli.generating import generate
from tempo.cli.measuring import analyze, report
from tempo.cli.naming import list_models, print_path, pull
from tempo.cli.screen import show

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
models = typer.Typer(no_args_is_help=True, help="Models with a short name: list, fetch, find.")


def main() -> None:
    """Run the command line; unprintable characters are escaped where the encoding lacks them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tempo")


def _print_version(wanted: bool) -> None:
    if wanted:
        show(f"tempo {version('tempo-decoding')}")
        raise typer.Exit()


@app.callback()
def tempo(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """The instrument for parallel decoding: decode, record, measure."""


app.command()(generate)
app.command()(compare)
app.command()(analyze)
app.command()(report)
app.command()(doctor)
app.add_typer(models, name="models")
models.command("list")(list_models)
models.command("pull")(pull)
models.command("path")(print_path)
