"""`tempo heads`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from tempo.cli.arguments import FLAG, Force, Json
from tempo.cli.options import MODEL, STATISTICS, given, takes_options
from tempo.cli.screen import busy, say, show
from tempo.errors import OutputError
from tempo.run.options import Options
from tempo.trace.store import disk_errors

Roles = Annotated[
    str | None, typer.Option(metavar="ROLE,ROLE...", help="Some of the roles; all unless given.")
]
Corpus = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Text to read; Python's own help topics unless given."),
]
Sequences = Annotated[int, typer.Option(metavar="INTEGER", help="Sequences of each kind.")]
Length = Annotated[int, typer.Option(metavar="INTEGER", help="Tokens of a text.")]
Against = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A second model, asked the same.")
]
Effects = Annotated[
    bool, typer.Option("--effects/--no-effects", metavar=FLAG, help="Silence heads with a role.")
]
HeadsOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Keep heads.json, tables, figures and a page here; or beside a run.",
        rich_help_panel="Output",
    ),
]


@takes_options(*MODEL, *STATISTICS)
def heads(
    *,
    options: Options,
    roles: Roles = None,
    corpus: Corpus = None,
    sequences: Sequences = 64,
    length: Length = 128,
    against: Against = None,
    effects: Effects = True,
    out: HeadsOut = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Say what every attention head does, each score beside its chance value and its null.

    For example: tempo heads --roles induction,previous_token --out runs/heads
    """
    _check_free(out, force=force)
    with busy(f"loading {options.model}"):
        from tempo.models.load import load_model
        from tempo_analysis.studies.heads.measure import heads as ask

        settings = given(options)
        seed = settings.pop("seed", options.seed)
        models = [load_model(options.model, **settings)]
        settings.pop("revision", None)  # that of the first model
        models += [load_model(against, **settings)] if against else []
    wanted = None if roles is None else [role.strip() for role in roles.split(",")]
    asked: dict[str, Any] = {"roles": wanted, "corpus": corpus, "n": sequences, "length": length}
    asked |= {"seed": seed, "effects": effects}
    found = [ask(model, on_pass=_saying(model.name), **asked) for model in models]
    from tempo.cli.census import keep, show_census, show_comparison, show_document

    if as_json:
        show_document(found)
    else:
        for census in found:
            show_census(census)
    if against and not as_json:
        show_comparison(found)
    paths = [] if out is None else keep(found, out)
    if not as_json:
        show(*(Text(str(path)) for path in paths))


def _check_free(out: Path | None, *, force: bool) -> None:
    """Refuse before hours of work what would be refused after them."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise OutputError(f"expected a folder at {out}, got a file; give another --out")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if (out / "heads.json").exists() and not force:
        raise OutputError(
            f"expected a folder without heads.json, got one at {out}; give another --out, or "
            "--force to replace it"
        )


def _saying(name: str) -> Any:
    return lambda doing: say(f"{name}: {doing}", style="dim")
