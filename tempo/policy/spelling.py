"""Rules as words of the command line: the inverse of the `parse_` functions.

A rule is recorded by its words, so a run given with rule objects and one given with words are the
same run, with the same configuration hash.
"""

from collections.abc import Sequence
from typing import Any

from tempo.errors import InputError
from tempo.policy.biases import BIASES, Bias, Boost
from tempo.policy.positions import Depth, Offset, Place, Shared, Swapped, Unique
from tempo.policy.pruning import AttentionBelow, Never, Prune
from tempo.policy.readout import READOUTS, Read
from tempo.policy.schedules import Bezier, Constant, Linear, ReLU, Schedule
from tempo.policy.selection import MinP, Sample, Select, Threshold, TopK, TopP

Rule = Select | Schedule | Place | Bias | Read | Prune | Sequence[Bias]


def spell_rule(rule: Rule) -> str:
    """The words from which `parse_select`, `parse_place`, ... make this rule.

    A selection is spelled without its largest width and its seed, which are options of their own.

    Raises:
        InputError: No words mean this rule: it belongs in a `Policy`.

    Example:
        >>> spell_rule(Offset(0.01))
        'offset:0.01'
    """
    match rule:
        case Select():
            words = _select(rule)
        case Schedule():
            words = _schedule(rule)
        case Place():
            words = _place(rule)
        case Prune():
            words = _prune(rule)
        case Read():
            words = next((name for name, one in READOUTS.items() if type(one) is type(rule)), None)
        case Bias():
            words = _bias(rule)
        case _:
            words = "+".join(spell_rule(one) for one in rule)
    if words is None:
        raise InputError(
            f"expected a rule that the command line has words for, got {type(rule).__name__}; "
            "put it in a tempo.Policy"
        )
    return words


def spell_number(value: float | int) -> str:
    """A number that reads back as the same float, without a needless `.0`."""
    number = float(value)
    # Below 1e15 an integer is exact in float64; repr is the shortest text that reads back equal.
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _joined(name: str, *values: float | int) -> str:
    return ":".join([name, *(spell_number(value) for value in values)])


def _select(rule: Select) -> str | None:
    match rule:
        case Threshold():
            return "threshold"
        case TopK(k):
            return _joined("top-k", k)
        case TopP(p):
            return _joined("top-p", p)
        case MinP(ratio):
            return _joined("min-p", ratio)
        case Sample(width, temperature):
            return _joined("sample", width, *([temperature] if temperature != 1 else []))
        case _:
            return None


def _schedule(rule: Schedule) -> str | None:
    match rule:
        case Constant(value):
            return spell_number(value)
        case Linear(start, end, steps):
            return _joined("linear", start, end, steps)
        case Bezier(start, control, end, steps):
            return _joined("bezier", start, *control, end, steps)
        case ReLU(start, knee, slope, end):
            return _joined("relu", start, knee, slope, end)
        case _:
            return None


def _place(rule: Place) -> str | None:
    match rule:
        case Shared():
            return "shared"
        case Unique():
            return "unique"
        case Depth():
            return "depth"
        case Offset(delta):
            return _joined("offset", delta)
        case Swapped(place):
            return f"swapped-{spell_rule(place)}"
        case _:
            return None


def _prune(rule: Prune) -> str | None:
    match rule:
        case Never():
            return "never"
        case AttentionBelow(level, relative):
            return _joined("attention-share" if relative else "attention", level)
        case _:
            return None


def _bias(rule: Bias) -> str | None:
    # `own_set` has no word: such a boost is refused.
    if isinstance(rule, Boost) and not rule.own_set:
        return _joined("boost", rule.beta)
    known: dict[Any, str] = {one: name for name, one in BIASES.items()}
    return known.get(rule)
