"""Ctrl-C ends a run between two steps, so that what is written is whole."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tempo.errors import Interrupted

OnStep = Callable[[Any], None]
"""As in `tempo.run.execute`, which imports torch; a run is measured without."""


@contextmanager
def interruptible(on_step: OnStep, message: str) -> Generator[OnStep]:
    """Hold Ctrl-C back until the end of the step; a second one does not wait.

    Args:
        on_step: Called after every step.
        message: What to say when the run was stopped.

    Raises:
        Interrupted: It was stopped.
    """
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def take(outcome: Any) -> None:
        on_step(outcome)
        if asked:
            raise KeyboardInterrupt

    with stopping(message), _handled(ask):
        yield take
        if asked:
            raise KeyboardInterrupt


@contextmanager
def stopping(message: str) -> Generator[None]:
    """Say what remains when Ctrl-C stops what is done inside.

    Raises:
        Interrupted: It was stopped.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message) from None


@contextmanager
def _handled(handler: Any) -> Generator[None]:
    """Handle SIGINT so, unless it is to be ignored, as in a background job of a shell."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
