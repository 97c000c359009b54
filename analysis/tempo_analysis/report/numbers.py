"""Numbers as a reader sees them: three digits, and a dash where there is none."""

import numpy as np

from tempo_analysis.stats.intervals import Interval

DASH = "\u2013"


def number(value: float) -> str:
    """Three significant digits; a dash where there are no data."""
    return f"{value:.3g}" if np.isfinite(value) else DASH


def stated(found: Interval) -> str:
    """A number with its interval, or alone where there is none."""
    # Estimates of fewer than 8 prompts have no limits; a pair of dashes would tell no more.
    return limits(found) if np.isfinite(found.low) else number(found.estimate)


def limits(found: Interval | None) -> str:
    """A number with its interval; dashes where there are none."""
    if found is None or not found.n:
        return DASH
    return f"{number(found.estimate)} ({number(found.low)} to {number(found.high)})"
