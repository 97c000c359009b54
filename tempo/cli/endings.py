"""How a command ends early: what the caller can fix, Ctrl-C, a reader that went away."""

import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from tempo.cli.screen import say
from tempo.errors import Interrupted, TempoError

READER_GONE = 1
USER_ERROR = 2
INTERRUPTED = 130


class Commands(TyperGroup):
    """Commands whose errors take one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what stopped it becomes an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except Interrupted as stop:
            _end(str(stop), INTERRUPTED)
        except KeyboardInterrupt:
            _end("stopped", INTERRUPTED)
        except TempoError as error:
            _end(str(error), USER_ERROR)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(READER_GONE) from None
        return result


def _end(line: str, code: int) -> NoReturn:
    say(f"tempo: {line}")
    raise typer.Exit(code) from None
