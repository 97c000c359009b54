"""The commands `tempo models list`, `pull` and `path`: models with a short name."""

import typer
from rich.text import Text

from tempo.cli.console import notes, say, show, show_json
from tempo.cli.options import Json, ModelName
from tempo.models.registry import listing, path
from tempo.models.registry import pull as pull_model

models = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Models with a short name: list, fetch, find."
)


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """The named models, and which are installed."""
    from tempo.cli.documents import named
    from tempo.cli.tables import models_table

    if as_json:
        show_json(named(listing()))
    else:
        show(models_table(listing()))


@models.command("pull")
def pull(name: ModelName) -> None:
    """Fetch a model, check it, unpack it; print its folder."""
    console = notes()
    if console.is_terminal:
        with console.status(Text(f"looking for {name}")) as status:
            folder = pull_model(name, progress=lambda doing: status.update(Text(doing)))
    else:
        # In a log file a spinner would be noise: each phase is one line.
        folder = pull_model(name, progress=say)
    show(Text(str(folder)))


@models.command("path")
def print_path(name: ModelName) -> None:
    """Print the folder of an installed model, which `from_pretrained` can load."""
    show(Text(str(path(name))))
