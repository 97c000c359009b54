"""Feeds a trace's own tokens again under rules that differ in one thing."""

from collections.abc import Collection, Mapping, Sequence

from tempo.capture import Capture
from tempo.config import make_options
from tempo.errors import NoParallelSetsError, TwinError
from tempo.execution import check_found, decode_batch
from tempo.loading import Source, load_model
from tempo.model import LanguageModel
from tempo.policy.edits import Edit
from tempo.policy.override import Change, as_policy, parse_change
from tempo.policy.presets import Policy
from tempo.policy.serialize import rule_from
from tempo.recording import model_facts
from tempo.request import Request, check_edits
from tempo.trace.compare import changed_axes, check_axes, check_same_model
from tempo.trace.run import Prompt, Run
from tempo.trace.trace import Trace

Rules = Policy | Change | str


def replay(
    trace: Trace,
    *,
    policy: Rules | Mapping[str, Rules] | None = None,
    model: Source | None = None,
    axes: Collection[str] | None = None,
    edits: Sequence[Edit] = (),
) -> Trace | Run:
    """Feed the sets of a trace again under other rules, and make sure that one thing changed.

    Args:
        trace: The reference; its tokens and their probabilities are kept, set by set.
        policy: A `Policy` (its rule of selection and its pruning are not used), a twin by name
            (`visible`, `unique`, `offset:0.01`, `sequential`, `boost:0.5`, `duplicates:3`, ...),
            or a `tempo.policy.override.Change`; several, by a name each, decode together.
        model: The model that made the trace; loaded by its name there if not given.
        edits: From `tempo.edits`, made in every forward of the twins and in none of the reference;
            with edits alone, leave `policy` out.
        axes: In what the twins may differ, of `tempo.trace.compare.AXES`; if not given, in what the change
            says, and for a `Policy` in one axis.

    Returns:
        The twin; for several, a run of the reference and its twins.

    Raises:
        TwinError: The model has other weights, the trace has edits, or more changed than was to.
        NoParallelSetsError: The trace has no set of two or more, so no twin can differ.
    """
    loaded = load_model(trace.header.model["name"] if model is None else model)
    check_same_model(trace, model_facts(loaded))
    if trace.slots.width.max() < 2:
        raise NoParallelSetsError(
            f"expected a trace with a set of two or more members, got {trace.header.prompt_id!r} "
            "without one; lower the threshold"
        )
    if trace.header.run.get("edits"):
        raise TwinError(
            "expected a trace that was decoded without edits, got one with them: their arrays are "
            "not in it, so they cannot be made again; replay the trace that it was made from"
        )
    if policy is None and not edits:
        raise TwinError("expected a policy or edits that change something, got neither; give one")
    rules = Change() if policy is None else policy
    wanted = dict(rules) if isinstance(rules, Mapping) else {"twin": rules}
    changes = {name: _change(one) for name, one in wanted.items()}
    reference = rule_from(trace.header.policy)
    twins = _decode(loaded, trace, reference, changes, edits)
    for name, twin in twins.items():
        if axes is None and isinstance(wanted[name], Policy):
            _check_one(trace, twin)
        else:
            meant = changes[name].against(reference).axes if axes is None else axes
            check_axes(trace, twin, {*meant, *(["edits"] if edits else [])})
    return _run_of(trace, twins, changes) if isinstance(policy, Mapping) else twins["twin"]


def _run_of(trace: Trace, twins: Mapping[str, Trace], changes: Mapping[str, Change]) -> Run:
    prompt = Prompt(trace.header.prompt_id, trace.header.prompt)
    arms = {trace.header.arm: trace} | dict(twins)
    return Run(
        prompts=(prompt,),
        arms=tuple(arms),
        policies={name: one.header.policy for name, one in arms.items()},
        traces={(prompt.id, name): one for name, one in arms.items()},
        settings={
            "model_facts": trace.header.model,
            "replays": dict.fromkeys(changes, trace.header.arm),
            "axes": {name: sorted(change.axes) for name, change in changes.items()},
        },
    )


def _change(rules: Rules) -> Change:
    if isinstance(rules, str):
        return parse_change(rules)
    return as_policy(rules) if isinstance(rules, Policy) else rules


def _decode(
    loaded: LanguageModel,
    trace: Trace,
    reference: Policy,
    changes: Mapping[str, Change],
    edits: Sequence[Edit],
) -> dict[str, Trace]:
    """One batch of all twins, captured as the reference was."""
    slots, header = trace.slots, trace.header
    prompt = Prompt(header.prompt_id, header.prompt)
    ids = tuple(slots.token[: slots.n_prompt].tolist())
    options = make_options(
        {"model": loaded.name, "dtype": loaded.dtype, "steps": max(trace.n_steps, 1)}
    )
    request = Request(
        model=loaded,
        options=options,
        prompts=(prompt,),
        token_ids={prompt.id: ids},
        arms={header.arm: reference},
        pairs=(),
        replays={name: (header.arm, change) for name, change in changes.items()},
        edits=tuple(edits),
    )
    check_edits(request)
    plans = {(prompt.id, name): request.replay_plan((prompt.id, name), trace) for name in changes}
    for plan in plans.values():
        plan.policy.place.check(max(slots.position.max(), len(slots)), loaded.dtype)
    capture = Capture(trace.level, trace.layers, trace.heads)
    decoded = decode_batch(request, capture, plans)
    check_found(request, decoded)
    return {name: twin for (_, name), twin in decoded.items()}


def _check_one(trace: Trace, twin: Trace) -> None:
    found = changed_axes(trace, twin)
    if len(found) > 1:
        raise TwinError(
            f"expected one thing to change, got {', '.join(sorted(found))}; give axes=... if all "
            "of them were to"
        )
