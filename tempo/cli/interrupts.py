"""Ctrl-C ends a run between two steps, so that every written step is complete."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tempo.errors import Interrupted

OnStep = Callable[[Any], None]
"""As in `tempo.run.execute`, but without its import of torch, which analysis does not need."""


@contextmanager
def interruptible(on_step: OnStep, message: str) -> Generator[OnStep]:
    """Delay Ctrl-C until the end of the step; a second one stops at once.

    Args:
        on_step: Called after every step.
        message: Text of the error when the run was stopped.

    Raises:
        Interrupted: It was stopped.
    """
    asked = False

    # A handler runs between two bytecodes, also inside a write: raising there could leave half a
    # step.
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
        # A signal after the last step has no step left to end at, hence the check below.
        yield take
        if asked:
            raise KeyboardInterrupt


@contextmanager
def stopping(message: str) -> Generator[None]:
    """Turn Ctrl-C inside the block into an error with a message.

    Raises:
        Interrupted: It was stopped.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message) from None


@contextmanager
def _handled(handler: Any) -> Generator[None]:
    """Install a SIGINT handler, unless SIGINT is ignored, as in a background job of a shell."""
    before = signal.getsignal(signal.SIGINT)
    # Overwriting would let a Ctrl-C meant for a foreground program stop this run.
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
