"""Schedules: thresholds as functions of the step, which counts from 1.

Every value lies in (0, 1]. The first and last value are exactly the numbers given, and after its
last step a schedule keeps the last value.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from tempo.errors import InputError

FORMS = (
    "linear:START:END:STEPS, bezier:START:CONTROL[:CONTROL]:END:STEPS or relu:START:KNEE:SLOPE:END"
)


class Schedule(ABC):
    """A threshold for each step."""

    @abstractmethod
    def at(self, step: int) -> float:
        """The threshold of a step; steps count from 1."""

    @property
    @abstractmethod
    def lowest(self) -> float:
        """A threshold that no step goes below."""


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The same at every step."""

    value: float | int

    def __post_init__(self) -> None:
        check_threshold(self.value)

    def at(self, step: int) -> float:
        """The value."""
        return float(self.value)

    @property
    def lowest(self) -> float:
        """The value."""
        return float(self.value)


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    """A straight line from `start` at step 1 to `end` at step `steps`."""

    start: float | int
    end: float | int
    steps: int

    def __post_init__(self) -> None:
        check_threshold(self.start, self.end)
        _check_steps(self.steps)

    def at(self, step: int) -> float:
        """Linear interpolation up to the last step, then the end value."""
        return _curve((self.start, self.end), _share(step, self.steps))

    @property
    def lowest(self) -> float:
        """The lower end."""
        return float(min(self.start, self.end))


@dataclass(frozen=True, slots=True)
class Bezier(Schedule):
    """A Bezier curve from `start` at step 1 to `end` at step `steps`.

    Only the threshold bends: the curve's parameter grows evenly with the step.

    Attributes:
        control: Thresholds that pull the curve: one makes it quadratic, two make it cubic.
    """

    start: float | int
    control: tuple[float | int, ...]
    end: float | int
    steps: int

    def __post_init__(self) -> None:
        check_threshold(self.start, *self.control, self.end)
        if len(self.control) not in (1, 2):
            raise InputError(
                f"expected one control value (quadratic) or two (cubic), got {len(self.control)}; "
                "for example bezier:0.3:0.05:0.05:10"
            )
        _check_steps(self.steps)

    def at(self, step: int) -> float:
        """The curve up to the last step, then the end value."""
        return _curve((self.start, *self.control, self.end), _share(step, self.steps))

    @property
    def lowest(self) -> float:
        """The lowest of its points: a bound, as a Bezier curve lies in their convex hull."""
        return float(min(self.start, *self.control, self.end))


@dataclass(frozen=True, slots=True)
class ReLU(Schedule):
    """`start` up to and at step `knee`, then `slope` more at each step, up or down to `end`."""

    start: float | int
    knee: int
    slope: float | int
    end: float | int

    def __post_init__(self) -> None:
        check_threshold(self.start, self.end)
        if self.knee < 1:
            raise InputError(
                f"expected a knee at step 1 or later, got {self.knee}; "
                "for example relu:0.3:5:-0.05:0.05"
            )
        rises = self.slope > 0 and self.end >= self.start
        falls = self.slope < 0 and self.end <= self.start
        if not (isfinite(self.slope) and (rises or falls)):
            raise InputError(
                f"expected a slope that leads from {self.start:g} to {self.end:g}, got "
                f"{self.slope:g}; for example relu:0.3:5:-0.05:0.05"
            )

    def at(self, step: int) -> float:
        """Constant up to the knee, then linear, then the end value."""
        value = self.start + self.slope * max(0, step - self.knee)
        return float(min(value, self.end) if self.slope > 0 else max(value, self.end))

    @property
    def lowest(self) -> float:
        """The lower of start and end."""
        return float(min(self.start, self.end))


def parse_schedule(text: str) -> Schedule:
    """Read a number, which is constant, or one of `FORMS`.

    Raises:
        InputError: Neither, or a value out of its range.
    """
    name, *parts = text.strip().split(":")
    try:
        match name, parts:
            case "linear", [start, end, steps]:
                return Linear(float(start), float(end), int(steps))
            case "bezier", [start, *control, end, steps] if len(control) in (1, 2):
                values = tuple(float(value) for value in control)
                return Bezier(float(start), values, float(end), int(steps))
            case "relu", [start, knee, slope, end]:
                return ReLU(float(start), int(knee), float(slope), float(end))
            case _:
                return Constant(float(text))
    except ValueError:
        raise InputError(f"expected a valid number such as 0.1, or {FORMS}, got {text!r}") from None


def check_threshold(*values: float | int) -> None:
    """Refuse values that are not thresholds.

    Raises:
        InputError: One of the values is not above 0 and at most 1.
    """
    for value in values:
        if not 0 < value <= 1:
            raise InputError(
                f"expected a threshold above 0 and at most 1, got {value}; for example 0.1"
            )


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise InputError(
            f"expected a schedule of at least 2 steps, its start and its end, got {steps}; "
            "give a number where the threshold stays the same"
        )


def _share(step: int, steps: int) -> float:
    """Progress of a schedule: 0 at step 1, 1 at the last step and after it."""
    # steps - 1 intervals lie between `steps` values, so the last step is at exactly 1.
    return min(max(step - 1, 0), steps - 1) / (steps - 1)


def _curve(points: tuple[float | int, ...], share: float) -> float:
    """De Casteljau's construction; two points make a line. Rounding does not leave their range."""
    left = list(points)
    while len(left) > 1:
        left = [a * (1 - share) + b * share for a, b in pairwise(left)]
    return float(min(max(left[0], min(points)), max(points)))
