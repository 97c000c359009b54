"""The command `tempo compare`: decodes prompts under several policies and measures them."""

from tempo.cli.console import busy
from tempo.cli.options import (
    EVERYTHING,
    DryRun,
    Force,
    Json,
    OptionalPrompts,
    Out,
    Suite,
    given,
    prompts_of,
    takes_options,
)
from tempo.run.options import COMPARE_DEFAULTS, Options

# `--arms` takes the place of `--policy`.
_OPTIONS = tuple(name for name in EVERYTHING if name != "policy")


@takes_options(*_OPTIONS, config=True, defaults=COMPARE_DEFAULTS)
def compare(
    prompts: OptionalPrompts = None,
    *,
    suite: Suite = None,
    options: Options,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Decode every prompt under every arm, and measure what parallel tokens do.

    For example: tempo compare --suite demo --arms isolated,visible,greedy --out runs/demo
    """
    chosen = prompts_of(prompts, suite)
    # Imports that need torch stand behind the spinner: the reader sees what takes the time.
    with busy(f"loading {options.model}"):
        from tempo.cli.execution import decode_counting, say_complete, say_level, show_plan
        from tempo.run.api import compare_request
        from tempo.run.batching import layout

        request = compare_request(options.model, chosen, **given(options))
        planned = layout(request)
    # Reported before decoding: with `auto` the budget decides the level, not the user.
    say_level(request, planned)
    if dry_run:
        show_plan("compare", request, planned, as_json=as_json)
        return
    run = decode_counting(request, planned, out=out, force=force)
    if run.already_complete:
        say_complete(run, as_json=as_json)
    # The analysis is imported only now; a dry run or a refusal does not need it.
    from tempo.cli.run_results import conclude

    conclude(run, as_json=as_json)
