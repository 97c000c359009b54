"""The prompts of a command: typed, or of a suite."""

from tempo.errors import InputError
from tempo.prompts.suites import load_suite
from tempo.trace.run import Prompt


def prompts_of(texts: list[str] | None, suite: str | None) -> list[str] | list[Prompt]:
    """The one of the two that was given.

    Raises:
        InputError: Both, neither, or a suite that cannot be read.
    """
    if bool(texts) == (suite is not None):
        got = "both" if texts else "neither"
        raise InputError(f"expected prompts or --suite, got {got}; for example --suite demo")
    return list(load_suite(suite)) if suite is not None else list(texts or [])
