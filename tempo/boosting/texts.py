"""Decodes freely under a bias, and asks the plain model what it thinks of the text."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from analysis.boost.doses import FREE
from tempo.boosting.reference import top_tokens
from tempo.boosting.replays import Batch
from tempo.engine.branch import gone_on
from tempo.engine.state import DecodeContext
from tempo.policy.edits import Edit
from tempo.policy.presets import Policy
from tempo.policy.selection import Forced
from tempo.policy.slots import SlotTable
from tempo_analysis.parallel.diversity import distinct, effective_branches
from tempo_analysis.parallel.widths import repetition

MEASURES = tuple(one.name for one in FREE)


def texts(
    batch: Batch, policy: Policy, edits: Sequence[Edit], *, steps: int
) -> list[dict[str, float]]:
    """The measures of `FREE` of every prompt; no end of sequence is chosen, so lengths are equal.

    The bias acts while the text is decoded. Its top path is run again alone, one token a step,
    in the model as it is.
    """
    model = batch.trunk.model
    plans = [replace(one.plan(), policy=policy, steps=steps) for one in batch.references]
    runs = gone_on(batch.trunk, plans, session=DecodeContext(model, edits=tuple(edits)))
    tables = [one.table for one in runs]
    nll = _plain_nll(batch, tables)
    return [_described(table, one) for table, one in zip(tables, nll, strict=True)]


def _plain_nll(batch: Batch, tables: Sequence[SlotTable]) -> list[float]:
    """Nats per token of each top path."""
    plans = [
        replace(
            one.plan(),
            policy=Policy(Forced(tuple((token,) for token in top_tokens(table)))),
            steps=table.n_steps,
        )
        for one, table in zip(batch.references, tables, strict=True)
    ]
    runs = gone_on(batch.trunk, plans, session=DecodeContext(batch.trunk.model))
    taken = [one.table.probability[one.table.step > 0].astype(np.float64) for one in runs]
    return [float(-np.log(one).mean()) for one in taken]


def _described(table: SlotTable, nll: float) -> dict[str, float]:
    path = np.asarray(top_tokens(table), np.int64)
    sets = (table.weight[table.members(step)] for step in range(1, table.n_steps + 1))
    branches: Float64[np.ndarray, " step"] = np.array([effective_branches(one) for one in sets])
    return {
        "path_nll": nll,
        "distinct_2": distinct([path], 2),
        "branches": float(np.nanmean(branches)),
        "repetition": repetition(path),
    }
