"""A question that the data cannot answer, said in words instead of a number."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """A question that the data cannot answer, and why."""

    question: str
    arm: str
    reason: str
