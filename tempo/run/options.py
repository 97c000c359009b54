"""Options of a run: one model for Python, the command line, a config file and the manifest."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import index
from pathlib import Path
from sys import maxsize
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from tempo.errors import InputError
from tempo.policy.biases import BIASES, Bias, parse_bias
from tempo.policy.override import parse_change
from tempo.policy.positions import Offset, Place, parse_place
from tempo.policy.presets import PRESETS, Policy, preset
from tempo.policy.pruning import Prune, parse_prune
from tempo.policy.readout import READOUTS, Read, parse_readout
from tempo.policy.schedules import Constant, Schedule, parse_schedule
from tempo.policy.selection import (
    SELECTS,
    MinP,
    Sample,
    Select,
    Threshold,
    TopK,
    TopP,
    parse_select,
)
from tempo.policy.spelling import spell_number, spell_rule
from tempo.vocabulary import parse_numbers, spell_numbers

MAX_WIDTH = 8
"""Default of the largest set."""
# Decimal, as disks and `human` count; from small to large, which `spell_bytes` relies on.
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """Read a size such as ``2GB`` or ``500 MB``; decimal units.

    Raises:
        InputError: Not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"expected a size such as 2GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def spell_bytes(n_bytes: float | int) -> str:
    """Write a size as `parse_bytes` reads it, in the largest unit that it reaches.

    Raises:
        InputError: Not above 0.
    """
    if not n_bytes >= 1:
        raise InputError(f"expected a size of at least 1 byte, got {n_bytes}; such as 2GB")
    unit = next(unit for unit in reversed(_UNITS) if n_bytes >= _UNITS[unit])
    text = f"{spell_number(n_bytes / _UNITS[unit])}{unit}"
    # Rounding in the division may miss the size by a byte; then bytes are exact.
    return text if parse_bytes(text) == int(n_bytes) else f"{int(n_bytes)}B"


def _kind_of_threshold(value: Any) -> str:
    """Tag of a threshold: text that is not a number is a schedule."""
    try:
        float(value)
    except (TypeError, ValueError):
        return "schedule" if isinstance(value, str) else "number"
    return "number"


_Threshold = Annotated[
    Annotated[float, Field(gt=0, le=1), Tag("number")] | Annotated[str, Tag("schedule")],
    Discriminator(_kind_of_threshold),
]


class Options(BaseModel):
    """Everything that determines a run, except its prompts.

    Fields are kept as the words of the command line, so that one configuration has one hash.
    """

    # An unknown key is an error: a misspelled option would silently be the default.
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("smollm2-135m", description="Preset, hub id, folder or .gguf file.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Weights and arithmetic."
    )
    device: str = Field("cpu", description="Torch device.")
    device_map: str | None = Field(None, description="How accelerate spreads the model, e.g. auto.")
    policy: str = Field("isolated", description=f"One of {', '.join(PRESETS)}.")
    arms: tuple[str, ...] = Field((), description="Policies to compare.")
    paired: bool = Field(
        False, description="Feed every arm the sets of the first; arms may then be any twin."
    )
    select: str = Field(
        "threshold", description=f"Which tokens enter the set: {', '.join(SELECTS)}."
    )
    alone: bool = Field(
        True, description="With --paired: decode every member without its siblings as well."
    )
    threshold: _Threshold | None = Field(
        0.1,
        description="Tokens with at least this probability enter the set: a number for all steps, "
        "linear:START:END:STEPS, bezier:START:CONTROL[:CONTROL]:END:STEPS or "
        "relu:START:KNEE:SLOPE:END.",
    )
    max_width: int = Field(MAX_WIDTH, ge=1, description="Largest set.")
    steps: int = Field(10, ge=1, description="Sets to choose and feed.")
    readout: str = Field("mixture", description=f"One of {', '.join(READOUTS)}.")
    positions: str | None = Field(
        None, description="shared, unique or offset:NUMBER; the policy's own if not given."
    )
    bias: str | None = Field(
        None, description=f"boost:NUMBER, {', '.join(BIASES)}, or several with a plus."
    )
    prune: str = Field("never", description="never, attention:NUMBER or attention-share:NUMBER.")
    keep: Literal["mask", "evict", "recompute"] = Field(
        "mask", description="What becomes of a pruned member and of what came after it."
    )
    eos: Literal["stop", "ignore"] = Field("stop", description="What an end of sequence does.")
    chat: bool = Field(False, description="Apply the tokenizer's chat template.")
    capture: Literal["auto", "weights", "qk", "reduced"] = Field(
        "weights", description="What to keep of every row."
    )
    layers: str | None = Field(
        None, description="Layers to capture, e.g. 0,3,10-14; all if not given."
    )
    heads: str | None = Field(
        None, description="Query heads to capture, e.g. 0-3; all if not given."
    )
    values: bool = Field(
        False, description="Keep the norm of each slot's value through the output projection."
    )
    readouts: Literal["top", "full"] = Field(
        "top", description="Keep the 256 best tokens of each readout, or all."
    )
    budget: str = Field(
        "2GB", description="Memory of a batch, and storage below which auto keeps weights."
    )
    seed: int = Field(
        0, ge=0, description="Seed of what sample draws, and of the bootstrap behind the intervals."
    )

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, name: str) -> str:
        if name not in (*PRESETS, "custom"):
            raise ValueError(f"expected a policy of {', '.join(PRESETS)}")
        return name

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("expected every arm once")
        return names

    @model_validator(mode="after")
    def _known_twins(self) -> "Options":
        for number, name in enumerate(self.arms):
            # The first arm decodes freely, so it has to be a policy; so does the null.
            if self.paired and number and name != "greedy":
                parse_change(name)
            elif name not in (*PRESETS, "custom"):
                raise InputError(
                    f"arms: expected a policy of {', '.join(PRESETS)}, got {name!r}; see --help"
                )
        return self

    # Before validation, as only then it is known which options were given at all.
    @model_validator(mode="before")
    @classmethod
    def _in_words(cls, values: Any) -> Any:
        """Convert rules to words; set the threshold to None if the selection uses none."""
        words = in_words(values)
        if words.get("select", "threshold") == "threshold" or "threshold" in words:
            return words
        return {**words, "threshold": None}

    @model_validator(mode="after")
    def _select_once(self) -> "Options":
        if self.select == "threshold" and self.threshold is None:
            raise InputError("expected a threshold, got none; for example 0.1")
        if self.select != "threshold" and self.threshold is not None:
            raise InputError(
                "expected a threshold with --select threshold only, got threshold "
                f"{self.threshold} with select {self.select!r}; leave one of them out"
            )
        self._select()
        own = {"greedy": "a choice of tokens itself", "custom": "which has its own"}
        if self.select != "threshold" and self.policy in own:
            raise InputError(
                f"expected no --select with policy {self.policy}, {own[self.policy]}, got "
                f"{self.select!r}; leave one of them out"
            )
        return self

    def _select(self) -> Select:
        """The selection rule of these options."""
        used = {} if self.threshold is None else {"threshold": self.threshold}
        return parse_select(self.select, max_width=self.max_width, seed=self.seed, **used)

    @field_validator("threshold", "readout", "positions", "bias", "prune")
    @classmethod
    def _spelled_rule(cls, text: float | str | None, info: Any) -> float | str | None:
        """The canonical words of a rule: `offset:0.010` and `offset:0.01` are one run."""
        if not isinstance(text, str):
            return text
        try:
            return spell_rule(_PARSERS[info.field_name](text))
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("select")
    @classmethod
    def _spelled_select(cls, text: str) -> str:
        # The width is checked later, against `max_width`; here no width is too large.
        return spell_rule(parse_select(text, max_width=maxsize))

    @field_validator("layers", "heads")
    @classmethod
    def _spelled_numbers(cls, text: str | None, info: Any) -> str | None:
        try:
            return text and spell_numbers(parse_numbers(text, what=info.field_name))
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("budget")
    @classmethod
    def _spelled_size(cls, text: str) -> str:
        try:
            return spell_bytes(parse_bytes(text))
        except InputError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _positions_once(self) -> "Options":
        names = self.arms or (self.policy,)
        if self.positions is not None and "unique" in names:
            raise ValueError(
                "expected positions with policies other than unique, which is a choice of "
                "positions itself, "
                f"got positions {self.positions!r} with unique; leave one of them out"
            )
        return self

    def policy_of(self, name: str) -> Policy:
        """The policy of an arm under these options."""
        chosen = preset(name, max_width=self.max_width, select=self._select())
        rules: dict[str, Any] = {}
        if self.positions is not None:
            rules["place"] = parse_place(self.positions)
        # Only a readout that was given: the default would replace the readout of a tree.
        if "readout" in self.model_fields_set:
            rules["read"] = self._read(chosen.read)
        if self.bias is not None:
            rules["bias"] = (*chosen.bias, *parse_bias(self.bias))
        # Greedy is the null: it has no members to prune.
        if name != "greedy":
            rules |= {"prune": parse_prune(self.prune), "keep": self.keep}
        return replace(chosen, **rules)

    def _read(self, own: Read) -> Read:
        """The chosen readout, with the frontier of the policy."""
        read: Any = parse_readout(self.readout)
        if read.children == "merged":
            return read
        if own.children == "merged":
            raise InputError(
                f"expected a readout of members that share their children, got {self.readout!r}; "
                "it goes with --policy tree"
            )
        return replace(read, frontier=self.max_width)


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "threshold": parse_schedule,
    "readout": parse_readout,
    "positions": parse_place,
    "bias": parse_bias,
    "prune": parse_prune,
}
_RULES: Mapping[str, tuple[type, str]] = {
    "select": (Select, 'such as TopK(3) or "top-k:3"'),
    "threshold": (Schedule, 'such as 0.1, Linear(0.3, 0.05, 10) or "linear:0.3:0.05:10"'),
    "readout": (Read, 'such as Product() or "product"'),
    "positions": (Place, 'such as 0.01, Offset(0.01) or "offset:0.01"'),
    "bias": (Bias, 'such as Boost(0.5), a list of biases, or "boost:0.5"'),
    "prune": (Prune, 'such as AttentionBelow(0.01) or "attention:0.01"'),
}
"""Options that accept a rule object: its class, and examples for the error message."""


def in_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options with lists, numbers and rules as the words that the command line takes.

    Values that are words already, or have no words, are unchanged.

    Raises:
        InputError: A rule without words, one of another kind, or one that contradicts an option
            beside it.
    """
    words = {name: _word(name, value) for name, value in values.items()}
    if isinstance(values.get("select"), Select):
        beside = _beside_select(values["select"])
        for name, value in beside.items():
            if name in words and words[name] != value:
                raise InputError(
                    f"expected one {name}, got {words[name]!r} beside a selection with {value!r}; "
                    "leave one out"
                )
        words |= beside
    read, widest = values.get("readout"), words.get("max_width", MAX_WIDTH)
    if isinstance(read, Read) and read.children != "merged" and read.frontier != widest:
        raise InputError(
            f"expected a readout with a frontier of max_width, {widest}, got {read.frontier}; "
            f"give max_width={read.frontier} as well"
        )
    return words


def _word(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    # Compared by module name: this module must not import torch.
    if name in ("dtype", "device") and type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    if name in ("layers", "heads"):
        return _number_words(name, value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "budget" and is_number:
        return spell_bytes(value)
    if name not in _RULES or (name == "threshold" and is_number):
        return value
    if name == "threshold" and isinstance(value, Constant):
        return float(value.value)
    if name == "positions" and is_number:
        return spell_rule(Offset(value))
    kind, such_as = _RULES[name]
    several: Any = value if name == "bias" and isinstance(value, list | tuple) else [value]
    if not several or not all(isinstance(one, kind) for one in several):
        raise InputError(f"{name}: expected a rule {such_as}, got {value!r}; write one of these")
    return "+".join(spell_rule(one) for one in several)


def _number_words(name: str, value: Any) -> str:
    numbers = [value] if isinstance(value, int) else value
    try:
        indices = [index(one) for one in numbers]
    except TypeError:
        indices = []
    # bool is an int in Python: layers=True would mean layer 1.
    if not indices or min(indices) < 0 or isinstance(value, bool):
        raise InputError(
            f'{name}: expected numbers such as [0, 3], range(10, 15) or "0,3,10-14", got '
            f"{value!r}; count from 0"
        )
    return spell_numbers(indices)


def _beside_select(rule: Select) -> dict[str, Any]:
    """Options that a selection object determines: threshold, largest width, seed."""
    match rule:
        case Threshold(tau, max_width):
            return {"threshold": _word("threshold", tau), "max_width": max_width}
        case TopP(max_width=max_width) | MinP(max_width=max_width):
            return {"max_width": max_width}
        case Sample(width, seed=seed):
            return {"seed": seed} | ({"max_width": width} if width > MAX_WIDTH else {})
        case TopK(k) if k > MAX_WIDTH:
            return {"max_width": k}
        case _:
            return {}


COMPARE_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"arms": ("isolated", "visible", "unique", "greedy"), "capture": "auto"}
)
"""Defaults of `compare` that differ from those of `Options`."""


def make_options(values: Mapping[str, Any]) -> Options:
    """Options from plain values.

    Raises:
        InputError: An unknown key or a value out of range; the message names each.
    """
    try:
        # pydantic reports all problems at once, so that the user corrects them in one go.
        return Options(**values)
    except ValidationError as error:
        raise InputError("; ".join(_problem(item, values) for item in error.errors())) from None


def _problem(item: Any, values: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"][:1]) or "options"
    if item["type"] == "extra_forbidden":
        return f"expected an option of {', '.join(Options.model_fields)}, got {key!r}"
    # pydantic puts words of its own before a message.
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    text = message if message.startswith("expected") else f"expected {message}"
    return f"{key}: {text}, got {values.get(key)!r}" if ", got " not in text else f"{key}: {text}"


def read_config(path: Path) -> dict[str, Any]:
    """Values in a TOML config file, with the keys of `Options`.

    Raises:
        InputError: The file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"expected a config file at {path}, got nothing there; check --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(
            f"expected TOML in {path}, got {error}; write lines such as steps = 10"
        ) from None
