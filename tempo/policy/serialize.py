"""Rules and edits as plain JSON values for traces, and rules read back from them."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from types import ModuleType
from typing import Any

import numpy as np

from tempo.errors import CorruptTraceError
from tempo.policy import (
    biases,
    positions,
    presets,
    pruning,
    readout,
    schedules,
    selection,
    visibility,
)
from tempo.policy.edits import Edit, ReplaceHeadOutput
from tempo.vocabulary import head_of

# Every module that holds rules: a recorded rule is found by the name of its class.
_ROOMS: tuple[ModuleType, ...] = (
    *(biases, positions, presets, pruning),
    *(readout, schedules, selection, visibility),
)


def rule_to_dict(rule: Any) -> Any:
    """A rule as `{"rule": name, field: value, ...}`; tuples become lists, numbers are unchanged."""
    if is_dataclass(rule):
        return {"rule": type(rule).__name__} | {
            item.name: rule_to_dict(getattr(rule, item.name)) for item in fields(rule)
        }
    if isinstance(rule, tuple):
        return [rule_to_dict(item) for item in rule]
    return rule


def rule_from_dict(description: Any) -> Any:
    """The rule that `rule_to_dict` wrote.

    Raises:
        CorruptTraceError: No such rule, or other fields than it has.
    """
    if isinstance(description, list):
        return tuple(rule_from_dict(item) for item in description)
    if not isinstance(description, Mapping):
        return description
    values = {name: rule_from_dict(value) for name, value in description.items() if name != "rule"}
    name = description.get("rule")
    found = [getattr(room, str(name)) for room in _ROOMS if hasattr(room, str(name))]
    try:
        return found[0](**values)
    except (IndexError, TypeError) as error:
        raise CorruptTraceError(
            f"expected a rule of this version of tempo, got {name!r} with {sorted(values)}; "
            "read it with the version that wrote it"
        ) from error


def edit_to_dict(edit: Edit) -> Mapping[str, Any]:
    """An edit as plain values, for the record; arrays by their shape and SHA-256."""
    fields = {name: getattr(edit, name) for name in type(edit).__dataclass_fields__}
    plain = {name: _recorded(value) for name, value in fields.items() if value is not None}
    # Traces of format 1 know the replacement of head outputs by its first name.
    name = "HeadOutput" if isinstance(edit, ReplaceHeadOutput) else type(edit).__name__
    return {"edit": name} | plain


def _recorded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # The digest identifies a large array; the trace stays small but cannot repeat the edit.
        digest = sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"shape": list(value.shape), "sha256": digest}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str | int | float):
        return value
    return [str(head_of(each)) if isinstance(each, tuple) else _recorded(each) for each in value]
