"""Runs commands of `tempo` as a user would, on a tiny model that lies in a folder."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner, Result

from tempo.cli.main import app
from tempo.testing.tiny import tiny_model

CAT = "The cat sat on the"
TEMPLATE = "{% for m in messages %}U: {{ m.content }}\n{% endfor %}A:"
_SCRATCH = TemporaryDirectory(prefix="tempo-models-")
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


@cache
def model_folder(family: str = "llama") -> str:
    """A tiny model with its tokenizer, saved once; "wide" is a llama with more tokens."""
    folder = Path(_SCRATCH.name) / family
    model = tiny_model("llama", vocab_size=300) if family == "wide" else tiny_model(family)
    assert model.tokenizer is not None
    model.tokenizer.chat_template = TEMPLATE
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def call(*arguments: object, **variables: str) -> Result:
    """Run a command inside this process."""
    environment = {"NO_COLOR": None, "FORCE_COLOR": None, "COLUMNS": None, **variables}
    result = CliRunner().invoke(app, [str(each) for each in arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def with_tiny(command: str, *arguments: object, **variables: str) -> Result:
    """Run `generate` or `compare` with the tiny model."""
    return call(command, *arguments, "--model", model_folder(), **variables)


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=_refuse)


def generated(*arguments: object) -> Any:
    """The only trace of `tempo generate --json`."""
    (trace,) = document(with_tiny("generate", *(arguments or ()), "--json"))["traces"]
    return trace


def refusal(result: Result) -> str:
    """The one line on stderr with which a command refuses."""
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("tempo: ")
    assert "Traceback" not in line
    return line


def plain(text: str) -> str:
    """Without colours."""
    return _STYLES.sub("", text)


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own, in which Ctrl-C works as in a terminal."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.argv[0] = 'tempo'; from tempo.cli import main; main()"
    )
    command = [sys.executable, "-c", program, *(str(each) for each in arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def stop(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """Send a signal to that process alone."""
    os.kill(process.pid, number)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")
