"""The states of a first set's members and of the next queries, in the set and alone, by depth.

Depth 0 is the embedding, depth d the residual stream after d layers, the last before the final
norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.special import logsumexp

from tempo.causal.attribution import lens_logits
from tempo.models.hooks import watched_stream
from tempo.models.language_model import LanguageModel
from tempo.oracle import run_oracle
from tempo.policy.override import without_siblings
from tempo.policy.presets import isolated
from tempo.policy.slots import SlotTable
from tempo_analysis.stats.distributions import kl_nats, log_probabilities

FIRST, NEXT = 1, 2
States = Float32[np.ndarray, "depth slot channel"]
ByDepth = Float64[np.ndarray, "depth member"]


@dataclass(frozen=True, slots=True)
class Plain:
    """One forward over a slot table.

    Attributes:
        states: The residual stream, before the final norm also at the end.
        attention: Rows of every slot.
    """

    states: States
    attention: Float32[np.ndarray, "layer head query slot"]
    logits: Float32[np.ndarray, "slot vocab"]


@dataclass(frozen=True, slots=True)
class Sibling:
    """The first set of one prompt, followed through the layers, one column for each member.

    Attributes:
        own_change: Norm of the difference of a member's state in the set and alone, over its norm.
        attention_in_set: What each member gets from the queries of the next set, by layer.
        attention_alone: The same where it has no siblings.
        norm: Of the member's state.
        lens_own: KL in nats of what the member predicts in the end || its logit lens.
        lens_set: KL of the readout of the whole set || the member's logit lens.
        cosine: Of a next query's state after the set and after the member alone, mean over queries.
        norm_after_set: Of the next queries' states after the set, mean over queries.
        cosine_between: Of a next query's states after two different members alone, mean over pairs.
        nearest: For each next query, the member after which alone its last state is most alike.
        attended: For each next query, the member it attends to most.
        lens_error: Largest difference of a logit to the lens of the last state.
    """

    own_change: ByDepth
    attention_in_set: Float64[np.ndarray, "layer member"]
    attention_alone: Float64[np.ndarray, "layer member"]
    norm: ByDepth
    lens_own: ByDepth
    lens_set: ByDepth
    cosine: ByDepth
    norm_after_set: Float64[np.ndarray, " depth"]
    cosine_between: Float64[np.ndarray, " depth"]
    nearest: Int64[np.ndarray, " query"]
    attended: Int64[np.ndarray, " query"]
    lens_error: float


def sibling(model: LanguageModel, reference: SlotTable) -> Sibling:
    """Follow the members of a first set of two or more; the run goes on for at least one set."""
    table = reference.upto(int(np.sum(reference.step <= NEXT)))
    members, queries = table.members(FIRST), table.members(NEXT)
    together = plain(model, table)
    tables = [without_siblings(table, slot) for slot in members.tolist()]
    alone = [plain(model, one) for one in tables]
    own = np.stack([run.states[:, one.n_prompt] for run, one in zip(alone, tables, strict=True)], 1)
    after = np.stack([run.states[:, -len(queries) :] for run in alone], 1)
    in_set, after_set = together.states[:, members], together.states[:, queries]
    cosines = _cosine(after, after_set[:, None])
    rows = together.attention[:, :, queries][..., members].astype(np.float64)
    lenses = _lens_distances(model, table, together)
    return Sibling(
        own_change=_norm(in_set - own) / _norm(own),
        attention_in_set=rows.mean((1, 2)),
        attention_alone=np.stack([_attention(run, len(queries)) for run in alone], 1),
        norm=_norm(in_set),
        lens_own=lenses[0],
        lens_set=lenses[1],
        cosine=cosines.mean(-1),
        norm_after_set=_norm(after_set).mean(-1),
        cosine_between=_between(after),
        nearest=cosines[-1].argmax(0),
        attended=rows.mean((0, 1)).argmax(-1),
        lens_error=float(np.abs(lens_logits(model, in_set[-1]) - together.logits[members]).max()),
    )


def plain(model: LanguageModel, table: SlotTable) -> Plain:
    """One slow forward over a table, isolated."""
    with watched_stream(model) as depths:
        run = run_oracle(model, table, isolated())
    states = np.stack([depth[0].float().cpu().numpy() for depth in depths])
    return Plain(states, run.attention, run.logits)


def _lens_distances(
    model: LanguageModel, table: SlotTable, together: Plain
) -> tuple[ByDepth, ByDepth]:
    """KL of what each member and the whole set predict || the lens of the member, by depth."""
    members = table.members(FIRST)
    own = log_probabilities(together.logits[members])
    log_share = np.log(table.weight[members].astype(np.float64))
    whole = logsumexp(own + log_share[:, None], axis=0)
    found = np.empty((2, len(together.states), len(members)))
    for depth, states in enumerate(together.states[:, members]):
        seen = log_probabilities(lens_logits(model, states))
        for number, target in enumerate((own, whole)):
            found[number, depth] = kl_nats(target, seen)
    return found[0], found[1]


def _attention(run: Plain, n_queries: int) -> Float64[np.ndarray, " layer"]:
    """What the only member gets from the queries after it, which are the last slots."""
    n_slots = run.attention.shape[-1]
    rows = run.attention[:, :, n_slots - n_queries :, n_slots - n_queries - 1]
    return rows.astype(np.float64).mean((1, 2))


def _between(after: Float32[np.ndarray, "depth member query channel"]) -> np.ndarray:
    first, second = np.triu_indices(after.shape[1], 1)
    return _cosine(after[:, first], after[:, second]).mean((1, 2))


def _norm(states: np.ndarray) -> Float64[np.ndarray, "..."]:
    return np.linalg.norm(states.astype(np.float64), axis=-1)


def _cosine(first: np.ndarray, second: np.ndarray) -> Float64[np.ndarray, "..."]:
    product = (first.astype(np.float64) * second).sum(-1)
    return product / (_norm(first) * _norm(second))


def first_sets(tables: Sequence[SlotTable]) -> list[int]:
    """Places of the runs whose first set has two or more members and a successor."""
    return [
        place
        for place, table in enumerate(tables)
        if table.n_steps >= NEXT and len(table.members(FIRST)) >= 2
    ]
