"""What is taken out at a token t, by name, and which passes and comparisons that needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from tempo.errors import InputError
from tempo.policy.edits import Edit, KnockOut, ReplaceHeadOutput, ValueZero
from tempo.vocabulary import Head
from tempo_analysis.studies.ablation.passes import Comparison

DEFAULT = ("head", "value:1", "value:1+2", "value:before", "value:through", "value:before:model")
SCOPES = ("heads", "layer", "model")
KINDS = ("head", "value", "edge")
REPLACEMENTS = ("zero", "mean", "resample")
CONTROL_DRAW, PLACE_DRAW, DONOR_DRAW = range(3)
"""What a draw is for: each has random numbers of its own."""
_FORMS = "head[:zero|mean|resample], value:OFFSETS[:SCOPE] or edge:OFFSETS[:SCOPE][:after]"


@dataclass(frozen=True, slots=True)
class Donors:
    """What stands in where a head is not held at zero.

    Attributes:
        means: Of every head over a text, [layer, head, channel]; None where no condition asks.
        rows: Head outputs of another prompt, [layer, query, head, channel]; likewise.
    """

    means: np.ndarray | None = None
    rows: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where one prompt is ablated.

    Attributes:
        heads: Heads that are listed.
        layers: Their layers.
        windows: Sliding window of every layer of the model, None where it sees everything.
        at: The token t.
    """

    heads: tuple[Head, ...]
    layers: tuple[int, ...]
    windows: tuple[int | None, ...]
    at: int
    donors: Donors = Donors()


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is taken out.

    Attributes:
        name: As the user wrote it.
        kind: "head", "value" or "edge".
        offsets: Distances from t, "before" for all tokens before it, "through" for t as well.
        scope: Whose values or edges: those of the listed heads, of all heads of their layers, or of
            all layers. A head condition has "heads".
        how: What stands in for a head: "zero", "mean" or "resample".
        softmax: Whether an edge goes "before" or "after" it.
    """

    name: str
    kind: str
    offsets: tuple[int, ...] | str = ()
    scope: str = "heads"
    how: str = "zero"
    softmax: str = "before"

    @property
    def reach(self) -> int:
        """The largest distance from t that it needs."""
        if isinstance(self.offsets, str):
            return int(self.offsets == "before")
        return max(self.offsets, default=0)

    def edits(self, target: Target) -> list[Edit]:
        """The condition as edits of one prompt."""
        if self.kind == "head":
            values = {"mean": target.donors.means, "resample": target.donors.rows}.get(self.how)
            return [
                ReplaceHeadOutput(
                    heads=target.heads, queries=[target.at], how=self.how, values=values
                )
            ]
        heads, layers = self._where(target)
        slots = self._slots(target.at)
        if self.kind == "value":
            return [ValueZero(heads=heads, layers=layers, slots=slots)]
        at = [target.at]
        return [KnockOut(heads=heads, layers=layers, slots=slots, queries=at, softmax=self.softmax)]

    def says(self) -> str:
        """In words."""
        if self.kind == "head":
            words = {
                "zero": "outputs of the listed heads at t zeroed",
                "mean": "outputs of the listed heads at t held at their means",
                "resample": "outputs of the listed heads at t taken from another prompt",
            }
            return words[self.how]
        whose = {
            "heads": "as the listed heads read them",
            "layer": "for all heads of the listed heads' layers",
            "model": "for all heads of all layers",
        }[self.scope]
        if self.kind == "value":
            return f"values {self._tokens()} zeroed {whose}, for every query"
        lost = (
            "others take their place" if self.softmax == "before" else "nothing takes their place"
        )
        return f"edges from t to the tokens {self._tokens()} taken out {whose}; {lost}"

    def _tokens(self) -> str:
        if self.offsets == "before":
            return "of all tokens before t"
        if self.offsets == "through":
            return "of all tokens up to t and t itself"
        return "at " + " and ".join("t" if o == 0 else f"t-{o}" for o in self.offsets)

    def _where(self, target: Target) -> tuple[Sequence[Head], Sequence[int]]:
        """Heads, and layers of which all heads are meant."""
        if self.scope == "heads":
            return target.heads, ()
        return (), target.layers if self.scope == "layer" else range(len(target.windows))

    def _slots(self, at: int) -> list[int]:
        if isinstance(self.offsets, str):
            return list(range(at + (self.offsets == "through")))
        return [at - offset for offset in self.offsets]


def parse_conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """Read conditions by name.

    Raises:
        InputError: One is not known, or stands twice.
    """
    found = tuple(parse_condition(name) for name in names)
    if not found or len({replace(one, name="") for one in found}) != len(found):
        raise InputError(
            f"expected different conditions, got {', '.join(names) or 'none'}; give some of "
            f"{_FORMS}"
        )
    return found


def parse_condition(name: str) -> Condition:
    """Read one condition, such as `head`, `head:mean`, `value:1+2` or `edge:1:heads:after`.

    Raises:
        InputError: It has none of these forms.
    """
    kind, *parts = name.strip().split(":")
    if kind == "head" and len(parts) < 2 and set(parts) <= set(REPLACEMENTS):
        return Condition(name, kind, how=parts[0] if parts else "zero")
    if kind in ("value", "edge") and parts:
        offsets, *rest = parts
        softmax = rest.pop() if kind == "edge" and rest[-1:] == ["after"] else "before"
        scope = rest.pop(0) if rest else "layer"
        if scope in SCOPES and not rest:
            return Condition(name, kind, _offsets(offsets, name), scope, softmax=softmax)
    raise InputError(f"expected a condition of the form {_FORMS}, got {name!r}; see tempo ablate")


def other_place(
    condition: Condition, target: Target, *, n_heads: int, seed: tuple[int, ...]
) -> Target | None:
    """Where a condition is its own control; None where there is no other place.

    A condition about heads goes to as many other heads of the same layers, one about layers to as
    many other layers that see as far back, both drawn at random.
    """
    draw = np.random.default_rng(seed)
    if condition.scope == "model":
        return None
    if condition.scope == "layer":
        layers = _other_layers(target, draw.permutation)
        heads = () if layers is None else tuple(Head(layer, 0) for layer in layers)
    else:
        heads = _other_heads(target, n_heads, draw.permutation)
        layers = target.layers
    if layers is None or heads is None:
        return None
    return Target(heads, tuple(layers), target.windows, target.at, target.donors)


def _other_layers(
    target: Target, permutation: Callable[[int], np.ndarray]
) -> tuple[int, ...] | None:
    """As many other layers of each window; None where there are too few."""
    found: list[int] = []
    for window in dict.fromkeys(target.windows[layer] for layer in target.layers):
        alike = {layer for layer, own in enumerate(target.windows) if own == window}
        wanted = len(alike & set(target.layers))
        drawn = _drawn(sorted(alike - set(target.layers)), wanted, permutation)
        if drawn is None:
            return None
        found += drawn
    return tuple(sorted(found))


def _other_heads(
    target: Target, n_heads: int, permutation: Callable[[int], np.ndarray]
) -> tuple[Head, ...] | None:
    """As many other heads of each layer; None where a layer has too few."""
    found: list[Head] = []
    for layer in target.layers:
        own = [head.head for head in target.heads if head.layer == layer]
        drawn = _drawn(sorted(set(range(n_heads)) - set(own)), len(own), permutation)
        if drawn is None:
            return None
        found += [Head(layer, head) for head in drawn]
    return tuple(found)


def _drawn(
    free: Sequence[int], n: int, permutation: Callable[[int], np.ndarray]
) -> list[int] | None:
    if len(free) < n:
        return None
    return sorted(free[place] for place in permutation(len(free))[:n].tolist())


def _offsets(text: str, name: str) -> tuple[int, ...] | str:
    if text in ("before", "through"):
        return text
    parts = text.split("+")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise InputError(
            f"expected offsets such as 1, 1+2, before or through in {name!r}, got {text!r}; an "
            "offset of 1 is the token before t"
        )
    return tuple(sorted(int(part) for part in parts))


@dataclass(frozen=True, slots=True)
class Part:
    """One condition, where it is asked for or in its control's place."""

    condition: Condition
    in_control: bool = False


Recipe = tuple[Part, ...]
"""What is done in one pass; the base has no part."""

BASE: Recipe = ()


def recipe(*conditions: Condition, in_control: bool = False) -> Recipe:
    """Conditions together; their names do not matter, so equal ones run once."""
    return tuple(Part(replace(one, name=""), in_control) for one in conditions)


def has_control(condition: Condition, target: Target, *, n_heads: int) -> bool:
    """Whether there is another place for a condition."""
    return other_place(condition, target, n_heads=n_heads, seed=(0,)) is not None


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
    """The six passes of one redundancy test, as `redundancy` names them."""
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
