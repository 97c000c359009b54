"""Decodes prompts under policies and keeps the traces: `generate`, `compare`, `plan`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tempo.config import COMPARE_DEFAULTS, Options, make_options
from tempo.errors import InputError
from tempo.execution import Watch, execute
from tempo.layout import layout
from tempo.loading import Source, load_model
from tempo.manifest import Run
from tempo.model import LanguageModel
from tempo.policies import Policy
from tempo.request import (
    Pair,
    PromptInput,
    Request,
    arm_name,
    is_single,
    make_request,
    prompts_from,
)

DEFAULT_ARMS: tuple[str, ...] = COMPARE_DEFAULTS["arms"]
DEFAULT_POLICY = "isolated"
REPLAYS = {"visible@isolated": ("isolated", "visible")}
"""Arms that `compare` adds: the second policy on the sets of the first, where both are compared."""
_POLICY_OPTIONS = ("threshold", "max_width", "readout", "positions")


def generate(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput] | Sequence[tuple[PromptInput, Policy | str]],
    *,
    policy: Policy | str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    watch: Watch | None = None,
    **options: Any,
) -> Run:
    """Decode prompts in parallel sets and keep a trace of each.

    Args:
        model: A loaded model, or whatever `load_model` takes.
        prompts: A text, token ids, or a list of these; or (prompt, policy) pairs, decoded together.
        policy: A preset by name or a `Policy`; isolated if not given.
        out: Folder for the run; in memory if not given.
        force: Replace a run that lies there.
        watch: Called after every step of every sequence.
        **options: Fields of `tempo.config.Options`: steps, threshold, max_width, readout,
            positions, eos, chat, capture, layers, heads, readouts, budget, dtype, device, ...

    Raises:
        TempoError: Something the caller can fix; nothing was decoded.
    """
    request = generate_request(model, prompts, policy=policy, **options)
    return execute(request, layout(request), out=out, force=force, watch=watch)


def compare(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput],
    *,
    arms: Sequence[str] | Mapping[str, Policy] = DEFAULT_ARMS,
    out: str | Path | None = None,
    force: bool = False,
    watch: Watch | None = None,
    **options: Any,
) -> Run:
    """Decode every prompt under every arm, batched together.

    Where isolated and visible are both compared, a further arm `visible@isolated` replays the sets
    of the isolated arm, so that readouts can be compared on identical tokens.

    Args:
        arms: Presets by name, or policies by a name of your own.

    Others as in `generate`; `capture` is "auto" unless given.

    Raises:
        TempoError: Something the caller can fix; nothing was decoded.
    """
    request = compare_request(model, prompts, arms=arms, **options)
    return execute(request, layout(request), out=out, force=force, watch=watch)


def generate_request(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput] | Sequence[tuple[PromptInput, Policy | str]],
    *,
    policy: Policy | str | None = None,
    **options: Any,
) -> Request:
    """What `generate` would decode, checked."""
    name = "custom" if isinstance(policy, Policy) else policy or DEFAULT_POLICY
    loaded, chosen = _model_and_options(model, {"policy": name} | options)
    items = _pairs(prompts, policy)
    texts, ids = prompts_from([item for item, _ in items])
    arms: dict[str, Policy] = {}
    pairs: list[Pair] = []
    for prompt, (_, wanted) in zip(texts, items, strict=True):
        name, rules = _named(wanted, chosen, arms, options)
        arms[name] = rules
        pairs.append((prompt.id, name))
    return make_request(loaded, chosen, texts, token_ids=ids, arms=arms, pairs=pairs)


def compare_request(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput],
    *,
    arms: Sequence[str] | Mapping[str, Policy] = DEFAULT_ARMS,
    **options: Any,
) -> Request:
    """What `compare` would decode, checked."""
    named = arms if isinstance(arms, Mapping) else dict.fromkeys(arms)
    if len(arms) < 2 or len(named) != len(arms):
        raise InputError(f"expected at least two different arms, got {', '.join(arms) or 'none'}")
    presets = tuple(name for name, policy in named.items() if policy is None)
    loaded, chosen = _model_and_options(model, {**COMPARE_DEFAULTS, "arms": presets, **options})
    policies = {name: policy or chosen.policy_of(name) for name, policy in named.items()}
    texts, ids = prompts_from(prompts)
    replays = {
        name: (reference, policies[arm])
        for name, (reference, arm) in REPLAYS.items()
        if reference in policies and arm in policies
    }
    return make_request(loaded, chosen, texts, token_ids=ids, arms=policies, replays=replays)


def _model_and_options(model: Source, values: Mapping[str, Any]) -> tuple[LanguageModel, Options]:
    if isinstance(model, str | Path):
        options = make_options({"model": str(model)} | dict(values))
        device = None if options.device_map else options.device
        loaded = load_model(
            model,
            dtype=options.dtype,
            device=device,
            device_map=options.device_map,
            revision=options.revision,
        )
        return loaded, options
    loaded = load_model(model)
    facts = {
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": loaded.dtype,
        "device": str(loaded.device),
    }
    asked = {
        name: value for name, value in values.items() if name in facts and value != facts[name]
    }
    if asked:
        raise InputError(
            f"expected {', '.join(asked)} as the loaded model has it, got {asked}; load it so "
            "instead"
        )
    return loaded, make_options(facts | dict(values))


def _pairs(prompts: Any, policy: Policy | str | None) -> list[tuple[PromptInput, Policy | str]]:
    if is_single(prompts):
        return [(prompts, policy or DEFAULT_POLICY)]
    paired = [
        isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Policy | str)
        for item in prompts
    ]
    if not any(paired):
        return [(item, policy or DEFAULT_POLICY) for item in prompts]
    if not all(paired) or policy is not None:
        raise InputError(
            "expected prompts, or (prompt, policy) pairs without a policy beside them, got both; "
            "give a policy to each"
        )
    return list(prompts)


def _named(
    wanted: Policy | str, options: Options, arms: Mapping[str, Policy], given: Mapping[str, Any]
) -> tuple[str, Policy]:
    if isinstance(wanted, str):
        return wanted, options.policy_of(wanted)
    clash = [name for name in _POLICY_OPTIONS if name in given]
    if clash:
        raise InputError(
            f"expected {', '.join(clash)} inside the Policy object, got it as an option too; "
            "leave one out"
        )
    known = [name for name, policy in arms.items() if policy == wanted]
    return (known[0] if known else arm_name(wanted, list(arms))), wanted
