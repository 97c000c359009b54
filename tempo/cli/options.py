"""Options and arguments of the commands; options of a run come from the fields of `Options`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from tempo.errors import InputError
from tempo.prompts.suites import BUNDLED_SUITES, load_suite
from tempo.run.options import Options, make_options, read_config
from tempo.trace.run import Prompt

FLAG = " "
"""Metavar of a flag: a blank, because a flag takes no value."""

_argument: Any = partial(typer.Argument, show_default=False)
_output: Any = partial(typer.Option, rich_help_panel="Output")

Prompts = Annotated[list[str], _argument(metavar="PROMPT", help="Text to go on from.")]
OptionalPrompts = Annotated[
    list[str] | None, _argument(metavar="PROMPT", help="Text to go on from; or give --suite.")
]
RunFolder = Annotated[Path, _argument(metavar="RUN", help="Folder that --out named.")]
ModelName = Annotated[str, _argument(metavar="NAME", help="As `tempo models list` shows it.")]

_ROWS = f"Prompts: {', '.join(BUNDLED_SUITES)}, or a file of rows {{id, category, text}}."
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


def prompts_of(texts: list[str] | None, suite: str | None) -> list[str] | list[Prompt]:
    """Prompts from the arguments or from a suite.

    Raises:
        InputError: Both, neither, or a suite that cannot be read.
    """
    # Both or neither: neither has a sensible order of precedence.
    if bool(texts) == (suite is not None):
        got = "both" if texts else "neither"
        raise InputError(f"expected prompts or --suite, got {got}; for example --suite demo")
    return list(load_suite(suite)) if suite is not None else list(texts or [])


Command = Callable[..., None]

PANELS = {
    "Model": ("model", "revision", "dtype", "device", "device_map"),
    "Decoding": (
        *("policy", "arms", "paired", "alone", "select", "threshold", "max_width", "steps"),
        *("readout", "positions", "bias", "prune", "keep", "eos", "chat"),
    ),
    "Trace": ("capture", "layers", "heads", "values", "readouts", "budget"),
    "Random draws": ("seed",),
}
"""Every field of `Options`, by the title of its panel in the help, in the order shown."""

MODEL = PANELS["Model"]
STATISTICS = PANELS["Random draws"]
EVERYTHING = tuple(name for names in PANELS.values() for name in names)

_METAVARS = MappingProxyType({float: "NUMBER", int: "INTEGER", tuple: "NAME,NAME..."})
_OWN_METAVARS = MappingProxyType({"select": "RULE", "threshold": "NUMBER|SCHEDULE"})


def takes_options(
    *names: str, config: bool = False, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Command], Command]:
    """Give a command an option for each of these fields of `Options`.

    The command gets them as one validated `Options`, named `options`. Only values that the user
    gave are marked as set in it.

    Args:
        names: Fields of `Options`.
        config: Whether the command takes `--config` too.
        defaults: Defaults shown in the help where they differ from those of `Options`.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(context: Any, **values: Any) -> None:
            read = values.pop("config", None)
            chosen = {name: _plain(name, values.pop(name)) for name in names}
            typed = {name: value for name, value in chosen.items() if _is_given(context, name)}
            command(**values, options=_options(typed, read, names))

        # typer reads the signature to make options; the wrapper itself takes keywords only.
        run.__signature__ = _signature(command, names, config=config, defaults=defaults)  # pyright: ignore[reportAttributeAccessIssue]
        return run

    return decorate


def given(options: Options) -> dict[str, Any]:
    """Options set by the user, without the model, as keyword arguments of `tempo.generate`."""
    return options.model_dump(exclude_unset=True, exclude={"model"})


def _signature(
    command: Command, names: tuple[str, ...], *, config: bool, defaults: Mapping[str, Any]
) -> inspect.Signature:
    """The parameters of the command, with one for each field in place of `options`."""
    own = list(inspect.signature(command).parameters.values())
    place = [each.name for each in own].index("options")
    made = [_parameter(name, defaults) for name in names]
    made += [_keyword("config", Config, None)] if config else []
    return inspect.Signature([_CONTEXT, *own[:place], *made, *own[place + 1 :]])


def _options(typed: Mapping[str, Any], config: Path | None, names: tuple[str, ...]) -> Options:
    """Options of the config file, overridden by those of the command line."""
    read = {} if config is None else read_config(config)
    foreign = [name for name in read if name in Options.model_fields and name not in names]
    if foreign:
        raise InputError(
            f"expected options of this command in {config}, got {', '.join(foreign)}; leave it out"
        )
    return make_options({**read, **typed})


def _is_given(context: Any, name: str) -> bool:
    # A value equal to the default may have been typed: then it overrides the config file.
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _plain(name: str, value: Any) -> Any:
    # Options knows tuples; the command line has one text with commas.
    if isinstance(value, str) and _kind(name) is tuple:
        return tuple(part.strip() for part in value.split(","))
    return value


def _parameter(name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """A field as a parameter for typer; all but flags are text, which `Options` parses."""
    field = Options.model_fields[name]
    default = defaults.get(name, field.default)
    flag = f"--{name.replace('_', '-')}"
    panel = next(panel for panel, names in PANELS.items() if name in names)
    if _kind(name) is bool:
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}",
            help=field.description,
            metavar=FLAG,
            rich_help_panel=panel,
        )
        return _keyword(name, Annotated[bool, option], default)
    # One parser for all four faces (Python, command line, config file, manifest) gives one error
    # text.
    text = ",".join(default) if isinstance(default, tuple) else default
    option = typer.Option(
        flag, help=field.description, metavar=_metavar(name), rich_help_panel=panel
    )
    return _keyword(name, Annotated[str | None, option], None if text in (None, "") else str(text))


def _metavar(name: str) -> str:
    kind = _kind(name)
    if kind is Literal:
        return "|".join(get_args(Options.model_fields[name].annotation))
    return _OWN_METAVARS.get(name) or _METAVARS.get(kind, "TEXT")


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
