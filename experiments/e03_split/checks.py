"""Checks of the split: two routes to the drift, layer 0, and heads weighted by what they give."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import tempo
from experiments.limits import alone_arm, largest
from experiments.standard import MODEL
from tempo.models.load import load_model
from tempo.policy.override import alone, members_of_sets
from tempo.policy.presets import preset
from tempo.trace.run import Prompt, Run
from tempo.trace.trace import Trace
from tempo_analysis.parallel.alone_pairs import rows_after
from tempo_analysis.parallel.set_effect import drift_from_scores, split_member

REFERENCES = ("without", "with")


@dataclass(frozen=True, slots=True)
class Agreement:
    """The drift from rows beside the drift from stored queries and keys, in nats.

    Attributes:
        n_prompts: Prompts that were decoded again and kept their tokens.
        n_other_tokens: Prompts whose tokens differ, which are left out.
        n_members: Members compared.
        n_values: Cells (layer, head, query) compared, both references counted.
        within_run: Largest difference where rows and scores come from the same decoding.
        across_runs: Largest difference between these scores and the rows that were split.
    """

    n_prompts: int
    n_other_tokens: int
    n_members: int
    n_values: int
    within_run: float
    across_runs: float


def agreement(run: Run, prompts: Sequence[Prompt], *, members: int) -> Agreement:
    """Decode some prompts of a run again, queries and keys kept, and compare both routes.

    Args:
        run: The paired run.
        prompts: Some of its prompts.
        members: How many of each prompt, from the first set on.
    """
    arm = alone_arm(run)
    again = decoded_again(run, prompts, members=members)
    within, across, n_values = [], [], 0
    for (prompt_id, *key), (in_set, twin) in again.items():
        step, rank = key
        rows = (run.trace(prompt_id, arm), run.alone(prompt_id)[step, rank])
        for reference in REFERENCES:
            where = {"step": step, "rank": rank, "reference": reference}
            scores = drift_from_scores(in_set, twin, **where)
            n_values += int((~np.isnan(scores)).sum())
            for pair, found in (((in_set, twin), within), (rows, across)):
                found.append(float(np.nanmax(np.abs(scores - split_member(*pair, **where).drift))))
    n_same = len({prompt_id for prompt_id, *_ in again})
    return Agreement(
        n_prompts=n_same,
        n_other_tokens=len(prompts) - n_same,
        n_members=len(again),
        n_values=n_values,
        within_run=largest(within),
        across_runs=largest(across),
    )


Key = tuple[str, int, int]


def decoded_again(
    run: Run, prompts: Sequence[Prompt], *, members: int
) -> dict[Key, tuple[Trace, Trace]]:
    """By (prompt id, step, rank): the sets, and that member alone, both with queries and keys.

    Prompts that choose other tokens than in the run, or that have no set, have no entry.
    """
    model, policy = load_model(MODEL), preset("isolated")
    freely = tempo.generate(model, list(prompts), policy=policy, capture="qk")
    traces = {trace.header.prompt_id: trace for trace in freely}
    found: dict[Key, tuple[Trace, Trace]] = {}
    for prompt in prompts:
        trace = traces[prompt.id]
        known = run.trace(prompt.id, alone_arm(run))
        if not np.array_equal(trace.slots.token, known.slots.token):
            continue
        for (step, rank), slot in list(members_of_sets(trace.slots).items())[:members]:
            fed = alone(trace.slots, policy, slot)
            (twin,) = tempo.generate(model, prompt, policy=fed, capture="qk", steps=step + 1)
            found[prompt.id, step, rank] = (trace, twin)
    return found


def layer_zero_drift(run: Run) -> tuple[float, float]:
    """Largest drift of any cell in layer 0: in first sets, and in all of them, in nats."""
    first, whole = [], []
    arm = alone_arm(run)
    for prompt, (trace,) in run.pairs(arm):
        keys = dict(_members(trace, run.alone(prompt.id)))
        for (step, rank), twin in keys.items():
            drift = split_member(trace, twin, step=step, rank=rank, reference="without").drift[0]
            if not np.isnan(drift).all():
                whole.append(float(np.nanmax(np.abs(drift))))
                first += [whole[-1]] if step == min(keys)[0] else []
    return largest(first), largest(whole)


def mass_weighted_drift(run: Run) -> list[float]:
    """For each prompt, the mean drift of cells weighted by the mass that the member gets there.

    The split counts every head alike, also one that gives a member almost nothing; this does not.
    The weight is the geometric mean of the masses in the set and alone: by one of them alone, cells
    where it is large by chance would count more, and drift towards the mean. NaN without a set.
    """
    arm = alone_arm(run)
    found = []
    for prompt, (trace,) in run.pairs(arm):
        top = bottom = 0.0
        for (step, rank), twin in _members(trace, run.alone(prompt.id)):
            drift = split_member(trace, twin, step=step, rank=rank, reference="without").drift
            masses = (
                rows.weights[..., int(rows.members[place])]
                for rows, place in ((rows_after(trace, step), rank), (rows_after(twin, step), 0))
            )
            weight = np.where(np.isnan(drift), 0.0, np.sqrt(np.prod(list(masses), axis=0)))
            top += float((weight * np.nan_to_num(drift)).sum())
            bottom += float(weight.sum())
        found.append(top / bottom if bottom else float("nan"))
    return found


def _members(
    trace: Trace, alone: Mapping[tuple[int, int], Trace]
) -> Iterator[tuple[tuple[int, int], Trace]]:
    """The members of sets that a step follows, with their twins."""
    return ((key, twin) for key, twin in sorted(alone.items()) if key[0] < trace.n_steps)
