"""Options of a command, made from the fields of `Options`: each is defined once, there."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from tempo.config import Options, make_options, read_config
from tempo.errors import InputError
from tempo.suites import BUNDLED

Command = Callable[..., None]

PANELS = {
    "Model": ("model", "revision", "dtype", "device", "device_map"),
    "Decoding": (
        *("policy", "arms", "threshold", "max_width", "steps"),
        *("readout", "positions", "eos", "chat"),
    ),
    "Trace": ("capture", "layers", "heads", "readouts", "budget"),
    "Statistics": ("seed",),
}
"""Every field of `Options`, in the order and under the title that the help gives it."""

MODEL = PANELS["Model"]
STATISTICS = PANELS["Statistics"]
EVERYTHING = tuple(name for names in PANELS.values() for name in names)

_METAVARS = MappingProxyType({float: "NUMBER", int: "INTEGER", tuple: "NAME,NAME..."})

Prompts = Annotated[
    list[str], typer.Argument(metavar="PROMPT...", help="Text to go on from.", show_default=False)
]
OptionalPrompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PROMPT...]", help="Text to go on from; or --suite.", show_default=False
    ),
]
Suite = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.jsonl",
        help=f"Prompts of a suite: {', '.join(BUNDLED)}, or rows {{id, category, text}}.",
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder that --out named.", show_default=False)
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A name that `tempo models list` shows.", show_default=False
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Keep the run here.", rich_help_panel="Output")
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace the run that lies there.", rich_help_panel="Output")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show what it would take, and do nothing.", rich_help_panel="Output"
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel="Output")
]
_Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="TOML with any of the options above, _ for -; the command line wins.",
        rich_help_panel="Output",
    ),
]


def takes_options(
    *names: str, config: bool = False, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Command], Command]:
    """Give a command an option for each of these fields of `Options`.

    The command gets them as one validated `Options`, named `options`, in which only what the user
    gave counts as set.

    Args:
        names: Fields of `Options`.
        config: Whether the command takes `--config` too.
        defaults: What the help shows where the command has other defaults than `Options`.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            read = values.pop("config", None)
            chosen = {name: _plain(name, values.pop(name)) for name in names}
            typed = {name: value for name, value in chosen.items() if _is_given(context, name)}
            command(**values, options=_options(typed, read, names))

        own = [
            each
            for each in inspect.signature(command).parameters.values()
            if each.name != "options"
        ]
        made = [_parameter(name, defaults) for name in names]
        made += [_keyword("config", _Config, None)] if config else []
        run.__signature__ = inspect.Signature([_CONTEXT, *own, *made])  # pyright: ignore[reportAttributeAccessIssue]
        return run

    return decorate


def given(options: Options) -> dict[str, Any]:
    """What the user set, apart from the model: keyword arguments of `tempo.generate` and others."""
    return options.model_dump(exclude_unset=True, exclude={"model"})


def _options(typed: Mapping[str, Any], config: Path | None, names: tuple[str, ...]) -> Options:
    """What the file says, overruled by what was typed."""
    read = {} if config is None else read_config(config)
    foreign = [name for name in read if name in Options.model_fields and name not in names]
    if foreign:
        raise InputError(
            f"expected options of this command in {config}, got {', '.join(foreign)}; leave it out"
        )
    return make_options({**read, **typed})


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str) and _kind(name) is tuple:
        return tuple(part.strip() for part in value.split(","))
    return value


def _parameter(name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """A field as a parameter that typer understands; all but flags are text for `Options` to read."""
    field = Options.model_fields[name]
    default = defaults.get(name, field.default)
    flag = f"--{name.replace('_', '-')}"
    panel = next(panel for panel, names in PANELS.items() if name in names)
    if _kind(name) is bool:
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}", help=field.description, rich_help_panel=panel
        )
        return _keyword(name, Annotated[bool, option], default)
    text = ",".join(default) if isinstance(default, tuple) else default
    option = typer.Option(
        flag, help=field.description, metavar=_metavar(name), rich_help_panel=panel
    )
    return _keyword(name, Annotated[str | None, option], None if text in (None, "") else str(text))


def _metavar(name: str) -> str:
    kind = _kind(name)
    if kind is Literal:
        return "|".join(get_args(Options.model_fields[name].annotation))
    return _METAVARS.get(kind, "TEXT")


def _kind(name: str) -> Any:
    annotation = Options.model_fields[name].annotation
    return get_origin(annotation) or annotation


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


_CONTEXT = inspect.Parameter(
    "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
)
