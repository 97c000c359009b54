"""Conditions, each named by what it removes at t, and the passes and comparisons they need."""

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
CONTROL_DRAW, TOKEN_DRAW, DONOR_DRAW = range(3)
"""Keys of the random draws: a generator is seeded by (seed, key, number of the prompt), so that no
two draws share random numbers and adding a condition changes no other draw."""
_FORMS = "head[:zero|mean|resample], value:OFFSETS[:SCOPE] or edge:OFFSETS[:SCOPE][:after]"


@dataclass(frozen=True, slots=True)
class Donors:
    """Replacement outputs of heads, for `head:mean` and `head:resample`.

    Attributes:
        means: Mean output of every head, [layer, head, channel]; None if no condition needs it.
        rows: Head outputs of another prompt, [layer, query, head, channel]; None if not needed.
    """

    means: np.ndarray | None = None
    rows: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class AblationTarget:
    """Where one prompt is ablated.

    Attributes:
        heads: The listed heads.
        layers: Layers of these heads.
        windows: Sliding window of every layer of the model; None means full attention.
        at: Index of the token t.
        donors: Replacement outputs for heads that are not set to zero.
    """

    heads: tuple[Head, ...]
    layers: tuple[int, ...]
    windows: tuple[int | None, ...]
    at: int
    donors: Donors = Donors()


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition: what is removed in a pass.

    Attributes:
        name: As the user wrote it.
        kind: "head", "value" or "edge".
        offsets: Distances from t, "before" for all tokens before it, "through" for t as well.
        scope: Whose values or edges: those of the listed heads, of all heads of their layers, or of
            all layers. A head condition has "heads".
        how: What replaces the output of a head: "zero", "mean" or "resample".
        softmax: Whether an edge is removed "before" or "after" the softmax.
    """

    name: str
    kind: str
    offsets: tuple[int, ...] | str = ()
    scope: str = "heads"
    how: str = "zero"
    softmax: str = "before"

    @property
    def reach(self) -> int:
        """Number of tokens that t must have before it."""
        if isinstance(self.offsets, str):
            # "through" works at the first token too: it removes at least t itself
            return int(self.offsets == "before")
        return max(self.offsets, default=0)

    def edits(self, target: AblationTarget) -> list[Edit]:
        """The condition as edits of one prompt, for `tempo.causal.forward`."""
        if self.kind == "head":
            # .get is None for "zero", which needs no replacement.
            values = {"mean": target.donors.means, "resample": target.donors.rows}.get(self.how)
            return [
                ReplaceHeadOutput(
                    heads=target.heads, queries=[target.at], how=self.how, values=values
                )
            ]
        heads, layers = self._where(target)
        slots = self._slots(target.at)
        if self.kind == "value":
            # For every query that reads the value; an edge, below, is removed for t only.
            return [ValueZero(heads=heads, layers=layers, slots=slots)]
        at = [target.at]
        return [KnockOut(heads=heads, layers=layers, slots=slots, queries=at, softmax=self.softmax)]

    def describe(self) -> str:
        """The condition in words, for the facts of the document."""
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

    def _where(self, target: AblationTarget) -> tuple[Sequence[Head], Sequence[int]]:
        """Single heads, and layers of which every head is meant."""
        if self.scope == "heads":
            return target.heads, ()
        # windows has one entry for each layer, so its length is the number of layers.
        return (), target.layers if self.scope == "layer" else range(len(target.windows))

    def _slots(self, at: int) -> list[int]:
        if isinstance(self.offsets, str):
            # slots 0 to t-1 for "before", 0 to t for "through"
            return list(range(at + (self.offsets == "through")))
        return [at - offset for offset in self.offsets]


def parse_conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """Read several conditions.

    Raises:
        InputError: A name is unknown, there is none, or two mean the same condition.
    """
    found = tuple(parse_condition(name) for name in names)
    # compared without names: `head` and `head:zero` are one condition
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
        # `after` comes last, so what is then left of `rest` can only be the scope
        softmax = rest.pop() if kind == "edge" and rest[-1:] == ["after"] else "before"
        # As in the published experiments, a value is removed for all heads of its layer.
        scope = rest.pop(0) if rest else "layer"
        if scope in SCOPES and not rest:
            return Condition(name, kind, _offsets(offsets, name), scope, softmax=softmax)
    raise InputError(f"expected a condition of the form {_FORMS}, got {name!r}; see tempo ablate")


def control_target(
    condition: Condition, target: AblationTarget, *, n_heads: int, seed: tuple[int, ...]
) -> AblationTarget | None:
    """Draw the place where a condition serves as its own control.

    A condition on heads moves to as many other heads of the same layers; one on layers moves to as
    many other layers with the same sliding windows.

    Args:
        condition: The condition to move.
        target: Its own place.
        n_heads: Heads of each layer of the model.
        seed: Of the draw.

    Returns:
        The target of the control, or None if the model has no such place.
    """
    draw = np.random.default_rng(seed)
    # All heads of all layers: there is no other place to compare with.
    if condition.scope == "model":
        return None
    if condition.scope == "layer":
        layers = _other_layers(target, draw.permutation)
        # only the layers are read for this scope; head 0 marks each of them
        heads = () if layers is None else tuple(Head(layer, 0) for layer in layers)
    else:
        heads = _other_heads(target, n_heads, draw.permutation)
        layers = target.layers
    if layers is None or heads is None:
        return None
    return AblationTarget(heads, tuple(layers), target.windows, target.at, target.donors)


def _other_layers(
    target: AblationTarget, permutation: Callable[[int], np.ndarray]
) -> tuple[int, ...] | None:
    """As many other layers of each sliding window; None if there are too few."""
    found: list[int] = []
    for window in dict.fromkeys(target.windows[layer] for layer in target.layers):
        # The same window, since a layer that cannot see the token is no control for one that can.
        alike = {layer for layer, own in enumerate(target.windows) if own == window}
        wanted = len(alike & set(target.layers))
        drawn = _drawn(sorted(alike - set(target.layers)), wanted, permutation)
        if drawn is None:
            return None
        found += drawn
    return tuple(sorted(found))


def _other_heads(
    target: AblationTarget, n_heads: int, permutation: Callable[[int], np.ndarray]
) -> tuple[Head, ...] | None:
    """As many other heads of each layer; None if a layer has too few."""
    found: list[Head] = []
    # In the same layers: the effect of an edit depends on depth, whatever the head does.
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
    # Sorted, so that an edit depends on which places were drawn and not on their order.
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
class PlacedCondition:
    """One condition, at the listed heads or at the place of its control."""

    condition: Condition
    in_control: bool = False


PassSpec = tuple[PlacedCondition, ...]
"""The conditions that act together in one forward pass; none in the base pass."""

BASE: PassSpec = ()


def pass_spec(*conditions: Condition, in_control: bool = False) -> PassSpec:
    """Conditions that act together; names are dropped, so that equal passes run only once."""
    return tuple(PlacedCondition(replace(one, name=""), in_control) for one in conditions)


def has_control(condition: Condition, target: AblationTarget, *, n_heads: int) -> bool:
    """Whether a condition has a place for its control."""
    # any seed will do: whether there are enough heads or layers does not depend on the draw
    return control_target(condition, target, n_heads=n_heads, seed=(0,)) is not None


_Output = TypeVar("_Output")

SWEEPS = {"all heads": "layer", "listed heads": "heads"}
"""Scope of the values that a sweep removes, by its name in tables."""
CONTROL = "control of "
_HEAD, _VALUE, _OWN_VALUE = (parse_condition(name) for name in ("head", "value:1", "value:1:heads"))


@dataclass(frozen=True, slots=True)
class AblationPlan:
    """The passes and comparisons that are made for every prompt.

    In the redundancy test and the sweep, A removes the outputs of heads and B a value before t; the
    question is whether A has already removed what B removes.

    Attributes:
        heads: The listed heads.
        conditions: Every condition.
        controlled: Conditions that have a control.
        other_heads: Whether the layers have as many other heads as are listed.
        redundancy: Whether to run the redundancy test, with the value of the token before t as B.
        sweep: Largest offset of the sweep; 0 for none.
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
        """Number of tokens that t must have before it."""
        needed = [one.reach for one in self.conditions]
        # Redundancy and sweep begin at offset 1: they need one token before t.
        return max([*needed, int(self.redundancy or self.sweep > 0)])

    def controls(self) -> dict[str, str]:
        """Name of the control of each condition that has one."""
        return {one.name: f"{CONTROL}{one.name}" for one in self.controlled}

    def comparisons(self) -> list[Comparison]:
        """Every condition and every control, each compared with the base."""
        # Controls against the base too, so that a condition and its control have one reference.
        names = [*(one.name for one in self.conditions), *self.controls().values()]
        return [Comparison("base", name) for name in names]

    def describe(self) -> dict[str, str]:
        """Every compared pass in words, by name."""
        found = {"base": "nothing"} | {one.name: one.describe() for one in self.conditions}
        for one in self.controlled:
            place = "in as many other layers" if one.scope == "layer" else "in as many other heads"
            found[f"{CONTROL}{one.name}"] = f"the same {place}, drawn for each prompt"
        return found

    def pass_specs(self, at: int) -> dict[str, PassSpec]:
        """Every pass of a prompt, by name.

        Args:
            at: Index of t; the sweep leaves out offsets that reach before the first token.
        """
        found = {"base": BASE} | {one.name: pass_spec(one) for one in self.conditions}
        found |= {
            f"{CONTROL}{one.name}": pass_spec(one, in_control=True) for one in self.controlled
        }
        for name in self.redundancy_names():
            found |= _redundancy(name)
        for whose, scope in SWEEPS.items():
            # From 1, as in the published sweep: B is about tokens before t.
            for offset in range(1, min(self.sweep, at) + 1):
                own = pass_spec(parse_condition(f"value:{offset}:{scope}"))
                found |= {
                    f"B {whose} {offset}": own,
                    f"AB {whose} {offset}": pass_spec(_HEAD) + own,
                }
        # A has no offset, so a sweep needs it once.
        return found | ({"A": pass_spec(_HEAD)} if self.sweep else {})

    def redundancy_names(self) -> tuple[str, ...]:
        """Names of the redundancy tests, each by what A removes."""
        if not self.redundancy:
            return ()
        return ("head", f"{CONTROL}head") if self.other_heads else ("head",)


def redundancy_passes(passes: Mapping[str, _Output], name: str) -> dict[str, _Output]:
    """The six passes of one redundancy test, by the names in `redundancy.PASSES`."""
    own = {each: passes[f"{name} {each}"] for each in _redundancy(name, prefixed=False)}
    return {"base": passes["base"]} | own


def _redundancy(name: str, *, prefixed: bool = True) -> dict[str, PassSpec]:
    # only A moves to the other heads in the control; B is the same value in both tests
    a = pass_spec(_HEAD, in_control=name.startswith(CONTROL))
    all_values, listed = pass_spec(_VALUE), pass_spec(_OWN_VALUE)
    found = {
        "A": a,
        "B_all": all_values,
        "B_listed": listed,
        "AB_all": a + all_values,
        "AB_listed": a + listed,
    }
    return {f"{name} {each}" if prefixed else each: one for each, one in found.items()}
