"""Planted runs with twins: what a paired `compare` leaves, with known answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tempo.testing.planted import Pattern, planted_trace, planted_twins, uniform
from tempo.trace.run import Prompt, Run
from tempo.trace.trace import Trace

WIDTHS = (2, 1, 3, 1)
AXES = {"visible@isolated": ["relation"], "unique@isolated": ["positions"]}


def marked(run: Run) -> Run:
    """The run with the fingerprint of one model in every trace, as real traces have."""
    return replace(run, traces={key: with_fingerprint(one) for key, one in run.traces.items()})


def with_fingerprint(trace: Trace, fingerprint: str = "planted") -> Trace:
    model = dict(trace.header.model) | {"fingerprint": fingerprint}
    return replace(trace, header=replace(trace.header, model=model))


def paired_run(
    n_prompts: int = 9,
    *,
    widths: Sequence[int] = WIDTHS,
    rows: Pattern = uniform,
    twins: Mapping[str, Mapping[str, Any]] | None = None,
    greedy: bool = True,
    **plan: Any,
) -> Run:
    """An isolated arm, each member of its sets alone, its twins by name, and a greedy arm.

    Args:
        twins: For each twin, the keywords of `planted_trace` that differ from the reference.
        **plan: Keywords of `planted_trace` for every trace.
    """
    twins = {"visible@isolated": {"relation": "visible"}} if twins is None else twins
    prompts = tuple(Prompt(f"p{number:04d}", "planted", "") for number in range(n_prompts))
    traces: dict[tuple[str, str], Trace] = {}
    for seed, prompt in enumerate(prompts):
        own = {"seed": seed, "prompt_id": prompt.id, "rows": rows} | plan
        found = planted_twins(widths, **own)
        traces[prompt.id, "isolated"] = found.in_set
        tokens = found.in_set.slots.token.tolist()
        for name, changed in twins.items():
            fed = own | {"widths": widths, "tokens": tokens, "arm": name} | changed
            traces[prompt.id, name] = with_fingerprint(planted_trace(**fed))
        if greedy:
            plain = own | {"widths": (1,) * len(widths), "relation": "greedy", "arm": "greedy"}
            traces[prompt.id, "greedy"] = with_fingerprint(planted_trace(**plain))
        for (step, rank), twin in found.alone.items():
            traces[prompt.id, f"alone@isolated/{step:02d}.{rank}"] = twin
    arms = ("isolated", *(["greedy"] if greedy else []), *twins, "alone@isolated")
    policies = {
        arm: {"select": {"rule": "Greedy" if arm == "greedy" else "Forced"}} for arm in arms
    }
    settings = {
        "replays": dict.fromkeys(twins, "isolated"),
        "axes": {name: AXES[name] for name in twins if name in AXES},
        "alone_of": "isolated",
        "seed": 0,
    }
    return Run(prompts, arms, policies, traces, settings)
