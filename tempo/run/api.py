"""The functions `generate` and `compare`, and the requests that they execute."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model
from tempo.policy.edits import Edit
from tempo.policy.override import Change, Rules, as_change, as_policy
from tempo.policy.presets import PRESETS, Policy
from tempo.policy.selection import Greedy, MinP, Sample, Threshold, TopK, TopP
from tempo.run.batching import layout
from tempo.run.execute import OnStep, execute
from tempo.run.options import COMPARE_DEFAULTS, Options, in_words, make_options
from tempo.run.request import (
    PromptInput,
    Request,
    TraceKey,
    arm_name,
    is_single,
    make_request,
    prompts_from,
)
from tempo.trace.run import Run

DEFAULT_ARMS: tuple[str, ...] = COMPARE_DEFAULTS["arms"]
DEFAULT_POLICY = "isolated"
REPLAYS = {"visible@isolated": ("isolated", "visible")}
"""Arms that an unpaired `compare` adds: the second policy on the sets of the first.

Free arms choose different tokens, so their readouts cannot be compared; on fed sets they can.
"""
# Greedy decoding has no parallel sets: what it shows too is no effect of them.
NULL = "greedy"
_POLICY_OPTIONS = (
    *("select", "threshold", "max_width", "readout"),
    *("positions", "bias", "prune", "keep"),
)


def generate(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput] | Sequence[tuple[PromptInput, Policy | str]],
    *,
    policy: Policy | str | None = None,
    edits: Sequence[Edit] = (),
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnStep | None = None,
    **options: Any,
) -> Run:
    """Decode prompts in parallel sets and keep a trace of each.

    Args:
        model: A loaded model, or whatever `load_model` takes.
        prompts: A text, token ids, or a list of these; or (prompt, policy) pairs, decoded together.
        policy: A preset by name or a `Policy`; isolated if not given.
        edits: Edits from `tempo.edits`, made in every forward, that of the prompt included unless
            an edit names other steps. They are recorded in the trace.
        out: Folder for the run; in memory if not given.
        force: Replace a run that lies there.
        on_progress: Called after every step of every sequence.
        **options: Fields of `tempo.run.options.Options`: steps, threshold, max_width, readout,
            positions, eos, chat, capture, layers, heads, readouts, budget, dtype, device, ...
            Each as the command line writes it, or as lists, numbers and rules: `layers=[0, 3]`,
            `positions=0.01`, `select=TopK(3)`, `bias=[Boost(0.5)]`.

    Returns:
        A run with one trace for each prompt.

    Raises:
        TempoError: Something the caller can fix; nothing was decoded.

    Example:
        >>> trace = tempo.generate(model, "The cat sat on the", steps=10).trace()
        >>> run = tempo.generate(model, ["One text", "Another"], layers=[0, 3], out="runs/two")
    """
    request = generate_request(model, prompts, policy=policy, edits=edits, **options)
    return execute(request, layout(request), out=out, force=force, on_progress=on_progress)


def compare(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput],
    *,
    arms: Sequence[str | Policy] | Mapping[str, Rules] = DEFAULT_ARMS,
    paired: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnStep | None = None,
    **options: Any,
) -> Run:
    """Decode every prompt under every arm, batched together.

    Where isolated and visible are both compared, a further arm `visible@isolated` replays the sets
    of the isolated arm, so that readouts can be compared on identical tokens.

    With `paired`, the first arm decodes freely and all others are its twins: they are fed its sets
    and change one thing, `visible@isolated`; greedy decodes freely too, as the null. Every member
    of every set of the first arm is decoded alone as well (`Run.alone`), for the exact split of
    what a set does to the attention its members get, unless `alone=False`.

    Args:
        model: A loaded model, or whatever `load_model` takes.
        prompts: A text, token ids, or a list of these; `tempo.load_suite` has some.
        arms: Presets by name and policies, or a mapping with names of your own. With `paired`, from
            the second on also any twin `tempo.twins.parse_change` reads, such as `offset:0.01`,
            `duplicates:3`, `sequential` or `boost:0.5`, and by a name of your own a `Change` or a
            single rule, such as `Offset(0.01)`.
        paired: Feed every arm the sets of the first.
        out: As in `generate`.
        force: As in `generate`.
        on_progress: As in `generate`.
        **options: As in `generate`; `capture` is "auto" unless given.

    Returns:
        A run with one trace for each prompt and arm; `tempo.analyze` takes it.

    Raises:
        TempoError: Something the caller can fix; nothing was decoded.

    Example:
        >>> run = tempo.compare(model, tempo.load_suite("demo"), arms=["isolated", "greedy"])
        >>> twins = tempo.compare(model, texts, arms=["isolated", "offset:0.01"], paired=True)
    """
    request = compare_request(model, prompts, arms=arms, paired=paired, **options)
    return execute(request, layout(request), out=out, force=force, on_progress=on_progress)


def generate_request(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput] | Sequence[tuple[PromptInput, Policy | str]],
    *,
    policy: Policy | str | None = None,
    edits: Sequence[Edit] = (),
    **options: Any,
) -> Request:
    """The request that `generate` executes, after all checks."""
    if isinstance(policy, Policy):
        policy, options = _as_preset(policy, options)
    name = "custom" if isinstance(policy, Policy) else policy or DEFAULT_POLICY
    loaded, chosen = _model_and_options(model, {"policy": name} | options)
    items = _pairs(prompts, policy)
    texts, ids = prompts_from([item for item, _ in items])
    arms: dict[str, Policy] = {}
    pairs: list[TraceKey] = []
    for prompt, (_, wanted) in zip(texts, items, strict=True):
        name, rules = _named(wanted, chosen, arms, options)
        arms[name] = rules
        pairs.append((prompt.id, name))
    return make_request(loaded, chosen, texts, token_ids=ids, arms=arms, pairs=pairs, edits=edits)


def _as_preset(policy: Policy, options: dict[str, Any]) -> tuple[Policy | str, dict[str, Any]]:
    """A policy object as a preset name and options, where it equals a preset; else unchanged.

    So `policy=policies.visible(0.05)` is the same run as `policy="visible", threshold=0.05`.
    """
    name = arm_name(policy, ())
    # With an option beside it the policy object stays one, so that the clash is reported later.
    if name not in PRESETS or {*_POLICY_OPTIONS, "seed"} & set(options):
        return policy, options
    words = {} if name == NULL else {"select": policy.select}
    if not isinstance(policy.select, Greedy | Threshold | TopK | TopP | MinP | Sample):
        return policy, options
    # A tree ties its frontier to the largest width, which a Policy need not do.
    if make_options({"policy": name} | words).policy_of(name) != policy:
        return policy, options
    return name, options | words


def compare_request(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput],
    *,
    arms: Sequence[str | Policy] | Mapping[str, Rules] = DEFAULT_ARMS,
    paired: bool = False,
    **options: Any,
) -> Request:
    """The request that `compare` executes, after all checks."""
    # A string is a sequence too: its letters would be read as arms.
    if isinstance(arms, str):
        raise InputError(f"expected a list of arms, got the text {arms!r}; give ['isolated', ...]")
    named = arms if isinstance(arms, Mapping) else _named_arms(arms)
    # A name given twice is lost in the mapping; the lengths then differ.
    if len(arms) < 2 or len(named) != len(arms):
        raise InputError(f"expected at least two different arms, got {', '.join(named) or 'none'}")
    # Only preset names are options; policy objects are recorded in the manifest instead.
    presets = tuple(name for name, policy in named.items() if policy is None)
    given = {**COMPARE_DEFAULTS, "arms": presets, "paired": paired, **options}
    loaded, chosen = _model_and_options(model, given)
    texts, ids = prompts_from(prompts)
    if chosen.paired:
        free, replays = _paired(named, chosen)
        reference = next(iter(free)) if chosen.alone else None
        return make_request(
            loaded, chosen, texts, token_ids=ids, arms=free, replays=replays, alone=reference
        )
    policies = {name: _free_policy(name, policy, chosen) for name, policy in named.items()}
    replays = {
        name: (reference, as_policy(policies[arm]).against(policies[reference]))
        for name, (reference, arm) in REPLAYS.items()
        if reference in policies and arm in policies
    }
    return make_request(loaded, chosen, texts, token_ids=ids, arms=policies, replays=replays)


def _named_arms(arms: Sequence[str | Policy]) -> dict[str, Rules | None]:
    """Arms of a list, by name; a policy object gets the name of the preset it equals."""
    named: dict[str, Rules | None] = {}
    for one in arms:
        if not isinstance(cast(object, one), str | Policy):
            raise InputError(
                f"expected arms by name or as policies, got {type(one).__name__}; name it, as in "
                'arms={"mine": ...}'
            )
        if isinstance(one, str):
            named[one] = None
        else:
            named[arm_name(one, list(named))] = one
    return named


def _free_policy(name: str, given: Rules | None, options: Options) -> Policy:
    if given is None or isinstance(given, str):
        return options.policy_of(given or name)
    if not isinstance(given, Policy):
        kind = type(given).__name__
        raise InputError(f"expected a policy for {name!r}, got {kind}; give it with paired=True")
    return given


def _paired(
    named: Mapping[str, Rules | None], options: Options
) -> tuple[dict[str, Policy], dict[str, tuple[str, Change]]]:
    """Arms that decode freely, the reference first, and the twins that are fed its sets."""
    reference, *others = named
    policy = _free_policy(reference, named[reference], options)
    # Greedy has no sets of two; members of a tree cannot be fed without their parents.
    if isinstance(policy.select, Greedy) or policy.branches:
        raise InputError(
            f"expected a first arm whose sets the others can be fed, got {reference!r}; "
            "put isolated first"
        )
    free = {reference: policy} | {
        name: _free_policy(name, named[name], options) for name in others if name == NULL
    }
    twins = {
        # The name says whose sets were fed, so a twin is not taken for the freely decoded arm.
        f"{name}@{reference}": (reference, _change(name, named[name], policy))
        for name in others
        if name != NULL
    }
    if not twins:
        raise InputError(f"expected a twin beside {reference}, got none; add visible or unique")
    return free, twins


def _change(name: str, given: Rules | None, reference: Policy) -> Change:
    """The change of a twin; a twin that changes nothing is refused: its difference would be 0."""
    change = as_change(name if given is None else given).against(reference)
    if not change.axes:
        raise InputError(
            f"expected a twin that differs from the first arm, got {name!r}, which does the same; "
            "leave it out"
        )
    return change


def _model_and_options(model: Source, given: Mapping[str, Any]) -> tuple[LanguageModel, Options]:
    values = in_words(given)
    if isinstance(model, str | Path):
        options = make_options({"model": str(model)} | dict(values))
        # accelerate places the layers itself; a device beside the map would contradict it.
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
    # A loaded model decides these four; an option that says otherwise must not be recorded.
    facts = {
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": loaded.dtype,
        "device": str(loaded.device),
    }
    differing = {
        name: value for name, value in values.items() if name in facts and value != facts[name]
    }
    if differing:
        raise InputError(
            f"expected {', '.join(differing)} as the loaded model has it, got {differing}; load it "
            "so instead"
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
