"""The commands under one roof."""

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from tempo.cli.roof import COMMANDS, Commands
from tempo.cli.screen import show

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def main() -> None:
    """Run the command line; what an encoding lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tempo")


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        show(f"tempo {version('tempo-decoding')}")
        raise typer.Exit()
    return wanted


@app.callback()
def tempo(
    _: Annotated[
        bool,
        typer.Option(
            "--version", metavar=" ", is_eager=True, callback=_print_version, help="Print it."
        ),
    ] = False,
) -> None:
    """The instrument for parallel decoding: decode, record, measure."""


for _name, _place in COMMANDS.items():
    app.command(_name, help=_place.summary)(lambda: None)
