"""The runs that experiments read: the standard suite, all of it or a few."""

from pathlib import Path
from typing import Any

import tempo
from tempo.prompts.suites import load_suite
from tempo.trace.run import Prompt, Run

MODEL = "smollm2-135m"
RUNS = Path("runs/findings")
QUICK_EVERY = 15
"""A quick try takes every fifteenth prompt: eight of them, the fewest with an interval."""
PAIRED = ("isolated", "visible", "ordered", "unique", "greedy")


def prompts(quick: bool) -> list[Prompt]:
    """Prompts of the standard suite."""
    return list(load_suite("standard"))[:: QUICK_EVERY if quick else 1]


def compared(name: str, arms: tuple[str, ...], *, quick: bool, **options: Any) -> Run:
    """A run of these arms; found again where another experiment has made the same one."""
    out = RUNS / (f"{name}-quick" if quick else name)
    return tempo.compare(MODEL, prompts(quick), arms=list(arms), out=out, **options)


def paired_run(*, quick: bool) -> Run:
    """The paired run that several experiments read: twins, members alone, values."""
    return compared("paired", PAIRED, quick=quick, paired=True, capture="weights", values=True)
