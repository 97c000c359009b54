"""Twins: replays that are fed the tokens of a run and change one rule.

A twin is a change of the rules or sets of a reference. What really differs is determined from the
two traces afterwards.
"""

from dataclasses import dataclass, replace

import numpy as np

from tempo.errors import InputError
from tempo.policy.biases import BIASES, Bias, parse_bias
from tempo.policy.positions import Given, Place, Swapped, Unique, parse_place
from tempo.policy.presets import PRESETS, Policy, preset
from tempo.policy.readout import Read
from tempo.policy.selection import Forced
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import ORDERED, Relation


@dataclass(frozen=True, slots=True)
class Change:
    """Rules of a twin that differ from its reference; None where they are the same.

    Attributes:
        copies: Every set becomes this many copies of its top-ranked member.
    """

    place: Place | None = None
    see: Relation | None = None
    bias: tuple[Bias, ...] | None = None
    read: Read | None = None
    copies: int | None = None

    def __post_init__(self) -> None:
        if self.copies is not None and self.copies < 1:
            raise InputError(f"expected at least 1 copy, got {self.copies}; such as duplicates:3")

    def against(self, policy: Policy) -> "Change":
        """The change without the rules that the reference has already."""
        same = [name for name in _RULES if getattr(self, name) == getattr(policy, name)]
        return replace(self, **dict.fromkeys(same))

    def apply(self, reference: SlotTable, policy: Policy) -> Policy:
        """The policy that feeds the sets of a reference under the changed rules."""
        changed = {name: getattr(self, name) for name in _RULES if getattr(self, name) is not None}
        sets = forced(reference)
        sets = sets if self.copies is None else _copied(sets, self.copies)
        return replace(policy, select=sets, **changed)

    @property
    def axes(self) -> frozenset[str]:
        """The axes that may differ."""
        named = {
            "positions": self.place,
            "relation": self.see,
            "bias": self.bias,
            "tokens": self.copies,
            # Copies divide the weight of the member among them; another readout changes
            # all weights.
            "weights": self.copies or self.read,
        }
        return frozenset(axis for axis, value in named.items() if value is not None)


_RULES = ("place", "see", "bias", "read")


def as_policy(policy: Policy) -> Change:
    """The change to the rules of another policy, except selection and pruning.

    Raises:
        InputError: The policy is a tree, which cannot be fed the sets of another policy.
    """
    if policy.branches:
        raise InputError(
            "expected a policy that can be fed the sets of another, got a tree; leave it out of "
            "the twins"
        )
    return Change(place=policy.place, see=policy.see, bias=policy.bias, read=policy.read)


Rules = Policy | Change | Place | Relation | Bias | Read | str
"""What a twin changes: a policy, a `Change`, one rule, or a twin by name."""


def as_change(rules: Rules) -> Change:
    """The change that a policy, a single rule or a twin's name means.

    Raises:
        InputError: None of these, or a policy that cannot be fed the sets of another.
    """
    match rules:
        case str():
            return parse_change(rules)
        case Policy():
            return as_policy(rules)
        case Change():
            return rules
        case Place():
            return Change(place=rules)
        case Relation():
            return Change(see=rules)
        case Bias():
            return Change(bias=(rules,))
        case Read():
            return Change(read=rules)


def parse_change(text: str) -> Change:
    """Read a twin's name, several joined with a plus.

    A preset; `sequential` (ordered, positions of their own: plain causal text); `swapped` (own
    positions, the lowest rank first); `offset:0.01`; `boost:0.5`, `log-weight`, `mass-neutral`,
    `posterior`; `duplicates:3`.

    Raises:
        InputError: None of these.
    """
    change = Change()
    for part in text.split("+"):
        one = _parse_one(part)
        given = {name: getattr(one, name) for name in (*_RULES, "copies")}
        # Biases add up; of every other rule the last one named counts.
        if change.bias is not None and one.bias is not None:
            given["bias"] = change.bias + one.bias
        change = replace(change, **{k: value for k, value in given.items() if value is not None})
    return change


def forced(reference: SlotTable) -> Forced:
    """The selection rule that feeds the sets of a reference with their recorded weights."""
    members = [reference.members(step) for step in range(1, reference.n_steps + 1)]
    # A forced token can have probability 0; its log is -inf and its share 0.
    with np.errstate(divide="ignore"):
        logs = [np.log(reference.probability[one]) for one in members]
    return Forced(
        tuple(tuple(reference.token[one].tolist()) for one in members),
        tuple(tuple(one.tolist()) for one in logs),
    )


def alone(reference: SlotTable, policy: Policy, slot: int) -> Policy:
    """The policy that leaves out the siblings of one member and changes nothing else."""
    left = without_siblings(reference, slot)
    # Positions are given one by one: under `Unique` a missing sibling would move all later sets.
    places = [left.position[left.members(step)] for step in range(1, left.n_steps + 1)]
    return replace(
        policy, select=forced(left), place=Given(tuple(tuple(one.tolist()) for one in places))
    )


def without_siblings(table: SlotTable, slot: int) -> SlotTable:
    """The table without the siblings of one member; all other rows are the same."""
    siblings = (table.step == table.step[slot]) & (np.arange(len(table)) != slot)
    return table.mark_pruned(np.flatnonzero(siblings).tolist(), 0).without_pruned()


def members_of_sets(reference: SlotTable) -> dict[tuple[int, int], int]:
    """Slots by (step, rank) of all members of sets of two or more, without the last set.

    No later set reads the last one, so its members have no effect to measure.
    """
    return {
        (step, rank): int(slot)
        for step in range(1, reference.n_steps)
        if len(reference.members(step)) >= 2
        for rank, slot in enumerate(reference.members(step))
    }


def _parse_one(text: str) -> Change:
    name, _, number = text.partition(":")
    if text == "sequential":
        return Change(place=Unique(), see=ORDERED)
    if text == "swapped":
        return Change(place=Swapped(Unique()))
    if name in ("offset", "shared"):
        return Change(place=parse_place(text))
    if name == "boost" or text in BIASES:
        return Change(bias=parse_bias(text))
    if name == "duplicates" and number.isdecimal():
        return Change(copies=int(number))
    if text in PRESETS and text != "greedy":
        rules = as_policy(preset(text))
        # A preset named as a twin changes positions and visibility only: one cause for each
        # difference.
        return replace(rules, bias=None, read=None)
    raise InputError(
        "expected a twin such as visible, ordered, unique, sequential, swapped, offset:0.01, "
        f"boost:0.5, log-weight, mass-neutral or duplicates:3, got {text!r}"
    )


def _copied(sets: Forced, copies: int) -> Forced:
    assert sets.log_probabilities is not None
    return Forced(
        tuple((one[0],) * copies for one in sets.sets),
        # Equal log-probabilities give equal shares; the readout renormalises them.
        tuple((one[0],) * copies for one in sets.log_probabilities),
    )
