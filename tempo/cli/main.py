"""The entry point: finds the command, runs it, and turns errors into exit codes."""

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from rich.text import Text
from typer.core import TyperGroup

from tempo.cli.console import notes, show, visible
from tempo.errors import Interrupted, TempoError

# 130 is 128 + SIGINT, as shells report it; 2 is the code of usage errors in click and most tools.
READER_GONE = 1
USER_ERROR = 2
INTERRUPTED = 130


class Home(NamedTuple):
    """The module of a command, and its line in `tempo --help`."""

    module: str
    summary: str


# The summaries stand here so that `tempo --help` imports no command: it has to answer in under half
# a second.
COMMANDS = MappingProxyType(
    {
        "generate": Home("generate", "Decode prompts in parallel sets and show them."),
        "compare": Home("compare", "Decode prompts under several policies and measure."),
        "analyze": Home("analyze", "Measure a run: every number, and results.json."),
        "report": Home("report", "Measure a run: results, a page, tables, figures."),
        "view": Home("view", "Open the page of a run in a browser."),
        "concepts": Home("concepts", "Find the heads that tell two sides of texts apart."),
        "heads": Home("heads", "Say what every attention head does."),
        "ablate": Home("ablate", "Take heads, values and edges out; say what that changes."),
        "boost": Home("boost", "Give parallel members more or less attention."),
        "follow": Home("follow", "Follow one parallel member through the layers."),
        "doctor": Home("doctor", "Check that a model does what the instrument assumes."),
        "models": Home("models", "List, fetch and find the models with a short name."),
    }
)


class Commands(TyperGroup):
    """Commands imported when they are called; their errors are printed as one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find the command that was called; help lists the others without importing them."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and _imported(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Run a command and turn its errors into exit codes."""
        try:
            result = super().invoke(ctx)
            # Here, where a closed pipe can be caught; at exit Python would print a traceback.
            sys.stdout.flush()
        except Interrupted as stop:
            _end(str(stop), INTERRUPTED)
        except KeyboardInterrupt:
            _end("stopped", INTERRUPTED)
        except TempoError as error:
            _end(str(error), USER_ERROR)
        except BrokenPipeError:
            # The reader (such as `head`) is gone. Python flushes stdout once more at exit: into
            # nothing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(READER_GONE) from None
        return result


def _imported(name: str) -> Any:
    """A command with its options: from a function, or a typer application with subcommands."""
    command = getattr(import_module(f"tempo.cli.{COMMANDS[name].module}"), name)
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name)(command)
    return typer.main.get_command(one)


def _end(line: str, code: int) -> NoReturn:
    notes().print(Text.assemble(("tempo:", "bold red"), " ", visible(line)), soft_wrap=True)
    raise typer.Exit(code) from None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def main() -> None:
    """Run the command line; characters that the stream cannot encode are escaped."""
    # Generated text has characters that a C or Latin-1 locale lacks; printing must not raise.
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
    # Placeholders: `resolve_command` replaces one by the imported command when it is called.
    app.command(_name, help=_place.summary)(lambda: None)
