"""Which passes an ablation runs on every prompt, by name, and which of them are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from analysis.ablation.passes import Comparison
from tempo.ablating.conditions import Condition, parse_condition
from tempo.ablating.running import BASE, Recipe, recipe
from tempo.vocabulary import Head

_Each = TypeVar("_Each")

SWEEPS = {"all heads": "layer", "listed heads": "heads"}
"""Whose values a sweep takes out, by what a reader calls it."""
CONTROL = "control of "
_HEAD, _VALUE, _OWN_VALUE = (parse_condition(name) for name in ("head", "value:1", "value:1:heads"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of every prompt.

    Attributes:
        heads: Heads that are listed.
        controlled: Those of the conditions that have another place to be their control.
        other_heads: Whether their layers have as many other heads.
        redundancy: Whether the head condition is held against the value of the token before t.
        sweep: Largest offset of the sweep; 0 is none.
    """

    heads: tuple[Head, ...]
    conditions: tuple[Condition, ...]
    controlled: tuple[Condition, ...]
    other_heads: bool
    redundancy: bool
    sweep: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the listed heads."""
        return tuple(sorted({head.layer for head in self.heads}))

    @property
    def reach(self) -> int:
        """Tokens that t must have before it."""
        needed = [one.reach for one in self.conditions]
        return max([*needed, int(self.redundancy or self.sweep > 0)])

    def controls(self) -> dict[str, str]:
        """Condition to the name of its control."""
        return {one.name: f"{CONTROL}{one.name}" for one in self.controlled}

    def comparisons(self) -> list[Comparison]:
        """Every condition and every control against the base."""
        names = [*(one.name for one in self.conditions), *self.controls().values()]
        return [Comparison("base", name) for name in names]

    def says(self) -> dict[str, str]:
        """Every compared pass in words."""
        found = {"base": "nothing"} | {one.name: one.says() for one in self.conditions}
        for one in self.controlled:
            place = "in as many other layers" if one.scope == "layer" else "in as many other heads"
            found[f"{CONTROL}{one.name}"] = f"the same {place}, drawn for each prompt"
        return found

    def recipes(self, at: int) -> dict[str, Recipe]:
        """Every pass of a prompt whose t is here."""
        found = {"base": BASE} | {one.name: recipe(one) for one in self.conditions}
        found |= {f"{CONTROL}{one.name}": recipe(one, in_control=True) for one in self.controlled}
        for name in self.redundancy_names():
            found |= _redundancy(name)
        for whose, scope in SWEEPS.items():
            for offset in range(1, min(self.sweep, at) + 1):
                own = recipe(parse_condition(f"value:{offset}:{scope}"))
                found |= {f"B {whose} {offset}": own, f"AB {whose} {offset}": recipe(_HEAD) + own}
        return found | ({"A": recipe(_HEAD)} if self.sweep else {})

    def redundancy_names(self) -> tuple[str, ...]:
        """What A is in each redundancy test."""
        if not self.redundancy:
            return ()
        return ("head", f"{CONTROL}head") if self.other_heads else ("head",)


def redundancy_passes(passes: Mapping[str, _Each], name: str) -> dict[str, _Each]:
    """The six passes of one redundancy test, as `analysis.ablation.redundancy` names them."""
    own = {each: passes[f"{name} {each}"] for each in _redundancy(name, prefixed=False)}
    return {"base": passes["base"]} | own


def _redundancy(name: str, *, prefixed: bool = True) -> dict[str, Recipe]:
    a = recipe(_HEAD, in_control=name.startswith(CONTROL))
    all_values, listed = recipe(_VALUE), recipe(_OWN_VALUE)
    found = {
        "A": a,
        "B_all": all_values,
        "B_listed": listed,
        "AB_all": a + all_values,
        "AB_listed": a + listed,
    }
    return {f"{name} {each}" if prefixed else each: one for each, one in found.items()}
