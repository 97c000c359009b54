"""Rules as plain JSON, so that a trace can say which policy made it."""

from dataclasses import fields, is_dataclass
from typing import Any


def describe(rule: Any) -> Any:
    """A rule as `{"rule": name, field: value, ...}`; tuples become lists, numbers stay."""
    if is_dataclass(rule):
        return {"rule": type(rule).__name__} | {
            item.name: describe(getattr(rule, item.name)) for item in fields(rule)
        }
    if isinstance(rule, tuple):
        return [describe(item) for item in rule]
    return rule
