"""Arguments and options of the commands that decide nothing about what a run contains."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tempo.prompts.suites import BUNDLED

FLAG = " "
"""In place of the name of a value: a flag takes none."""

_argument: Any = partial(typer.Argument, show_default=False)
_output: Any = partial(typer.Option, rich_help_panel="Output")

Prompts = Annotated[list[str], _argument(metavar="PROMPT", help="Text to go on from.")]
OptionalPrompts = Annotated[
    list[str] | None, _argument(metavar="PROMPT", help="Text to go on from; or give --suite.")
]
RunFolder = Annotated[Path, _argument(metavar="RUN", help="Folder that --out named.")]
ModelName = Annotated[str, _argument(metavar="NAME", help="As `tempo models list` shows it.")]

_ROWS = f"Prompts: {', '.join(BUNDLED)}, or a file of rows {{id, category, text}}."
Suite = Annotated[str | None, typer.Option(metavar="NAME|FILE.jsonl", help=_ROWS)]

_FILE = "TOML with options of this command, such as max_width = 4; the command line wins."
Config = Annotated[Path | None, typer.Option(metavar="FILE", help=_FILE)]

Out = Annotated[Path | None, _output(metavar="FOLDER", help="Keep the run here.")]
Force = Annotated[bool, _output("--force", metavar=FLAG, help="Replace a run that lies there.")]
DryRun = Annotated[bool, _output("--dry-run", metavar=FLAG, help="Show what it takes and stop.")]
Json = Annotated[bool, _output("--json", metavar=FLAG, help="One JSON document on stdout.")]

StudyOut = Annotated[
    Path | None,
    _output("--out", metavar="FOLDER", help="Write numbers, tables, figures and a page here."),
]
Replace = Annotated[bool, _output("--force", metavar=FLAG, help="Replace what it wrote there.")]
