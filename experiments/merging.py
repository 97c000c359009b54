"""Merges of a parallel set beside the exact mixture of its paths.

A fork is a prompt, a set of members and the tokens that are fed after it. Its paths, run one by
one, give the exact Bayesian mixture; a merge gives a readout from one sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.special import log_softmax, logsumexp

from experiments.soft_tokens import SoftToken, soft_log_probabilities
from tempo.engine.decode import decode
from tempo.engine.state import DecodeContext, SequencePlan, StepOutcome
from tempo.models.language_model import LanguageModel
from tempo.policy.biases import Bias, LogPosterior, LogWeight, MassNeutral, Scores
from tempo.policy.positions import Depth, Unique
from tempo.policy.presets import Policy
from tempo.policy.readout import PerNode, Posterior
from tempo.policy.selection import Choice, Forced, Greedy, LogProbability, Select, TopK
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import TREE, VISIBLE, Queries, Sees

REFERENCE = "isolated"
KV_MERGES = (
    *("isolated", "unique", "visible", "mass-neutral"),
    *("log-weight", "posterior", "oracle-posterior"),
)
EMBEDDING = "embedding"
BEST_PATH = "best-path"
TOP_PATH = "top-path"
UNIFORM = "uniform-mixture"
ARMS = (*KV_MERGES, EMBEDDING, BEST_PATH, TOP_PATH, UNIFORM)

Depths = Float64[np.ndarray, "depth vocab"]
Rows = Float64[np.ndarray, "*depth vocab"]
_LEAST = -60.0


@dataclass(frozen=True, slots=True)
class Fork:
    """A parallel set and what is fed after it.

    Attributes:
        prompt: Token ids before the set.
        members: Token ids of the set.
        log_weight: Log of each member's share before anything is fed; the shares sum to 1.
        follow: Tokens fed after the set, one at a time.
    """

    id: str
    prompt: tuple[int, ...]
    members: tuple[int, ...]
    log_weight: tuple[float, ...]
    follow: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Sets to feed, the members among them."""
        return 1 + len(self.follow)

    def single(self) -> Forced:
        """The set, then every token once."""
        follow = tuple((token,) for token in self.follow)
        return Forced((self.members, *follow), (self.log_weight, *((0.0,) for _ in follow)))

    def branching(self) -> Forced:
        """The set, then every token once after each member, under its own probabilities."""
        n = len(self.members)
        follow = tuple((token,) * n for token in self.follow)
        return Forced(
            (self.members, *follow), parents=((0,) * n, *(tuple(range(n)) for _ in follow))
        )


@dataclass(frozen=True, slots=True)
class Paths:
    """What every path of a fork predicts, run as a plain sequence.

    Attributes:
        rows: Log-probabilities after each path and `depth` tokens of the continuation.
        log_weight: Log of each path's share after them: Bayes' rule.
    """

    rows: Float64[np.ndarray, "depth path vocab"]
    log_weight: Float64[np.ndarray, "depth path"]

    def mixture(self) -> Depths:
        """Log of the exact Bayesian mixture at every depth."""
        return np.asarray(logsumexp(self.rows + self.log_weight[:, :, None], axis=1))

    def singles(self) -> dict[str, Depths]:
        """Following one path: the likeliest so far, or that of the first member; and all alike."""
        best = self.log_weight.argmax(1)
        together = np.asarray(logsumexp(self.rows, axis=1))
        return {
            BEST_PATH: self.rows[np.arange(len(best)), best],
            TOP_PATH: self.rows[:, 0],
            UNIFORM: together - np.log(self.rows.shape[1]),
        }


@dataclass(frozen=True, slots=True)
class TopThenGreedy(Select):
    """The k most probable tokens first, the most probable one from then on."""

    k: int

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The set of the step."""
        rule = TopK(self.k) if step == 1 else Greedy()
        return rule.select(log_probability, step, prompt_id)


@dataclass(frozen=True, slots=True)
class KnownPosterior(Bias):
    """Adds the log of each first member's weight, known from outside, to rows of later steps.

    Attributes:
        log_weight: For every step from the second on, that of each member of the first set.
    """

    log_weight: tuple[tuple[float, ...], ...]

    def scores(self, table: SlotTable, queries: Queries, visible: Sees) -> Scores:
        """The weight of the query's step."""
        total = np.zeros(visible.shape, np.float32)
        members = table.members(1)
        for row, step in enumerate(table.step[queries].tolist()):
            if step > 1:
                total[row, members] = np.maximum(self.log_weight[step - 2], _LEAST)
        return total


def exact_forks(
    model: LanguageModel, prompts: Mapping[str, tuple[int, ...]], *, width: int, depth: int
) -> tuple[list[Fork], list[Paths], list[Depths]]:
    """Each prompt's most probable tokens, and the greedy continuation under their exact mixture.

    Returns:
        The forks, their paths, and the mixture as the engine's own exact filter has it.
    """
    policy = Policy(TopThenGreedy(width), Depth(), TREE, read=Posterior(width))
    plans = [
        SequencePlan(name, "exact", ids, policy, 1 + depth, "ignore")
        for name, ids in prompts.items()
    ]
    tables, outcomes = _decoded(model, plans)
    forks = [_fork(plan, table) for plan, table in zip(plans, tables, strict=True)]
    paths = [_paths(fork, one) for fork, one in zip(forks, outcomes, strict=True)]
    return forks, paths, [_readouts(one) for one in outcomes]


def exact_paths(model: LanguageModel, forks: Sequence[Fork]) -> list[Paths]:
    """All paths of every fork; in a tree each node equals the plain run of its path."""
    plans = [
        _plan(fork, "paths", Policy(fork.branching(), Depth(), TREE, read=PerNode(64)))
        for fork in forks
    ]
    _, outcomes = _decoded(model, plans)
    return [_paths(fork, one) for fork, one in zip(forks, outcomes, strict=True)]


def merges(
    model: LanguageModel, forks: Sequence[Fork], paths: Sequence[Paths]
) -> tuple[list[dict[str, Depths]], list[tuple[str, str, SlotTable]]]:
    """The readouts of every merge of every fork, and the slot tables they were made from."""
    plans = [
        _plan(fork, arm, policy)
        for fork, one in zip(forks, paths, strict=True)
        for arm, policy in policies(fork, one).items()
    ]
    tables, outcomes = _decoded(model, plans)
    found: dict[str, dict[str, Depths]] = {fork.id: {} for fork in forks}
    for plan, one in zip(plans, outcomes, strict=True):
        found[plan.prompt_id][plan.arm] = _readouts(one)
    for fork, one in zip(forks, paths, strict=True):
        found[fork.id] |= {EMBEDDING: embedding_merge(model, fork)} | one.singles()
    named = [(p.prompt_id, p.arm, table) for p, table in zip(plans, tables, strict=True)]
    return [found[fork.id] for fork in forks], named


def policies(fork: Fork, paths: Paths) -> dict[str, Policy]:
    """The KV merges by name."""
    sets = fork.single()
    known = tuple(tuple(row) for row in paths.log_weight[1:].tolist())
    rules = (
        Policy(sets),
        Policy(sets, place=Unique()),
        Policy(sets, see=VISIBLE),
        Policy(sets, bias=(MassNeutral(),)),
        Policy(sets, bias=(LogWeight(),)),
        Policy(sets, bias=(LogPosterior(),)),
        Policy(sets, bias=(KnownPosterior(known),)),
    )
    return dict(zip(KV_MERGES, rules, strict=True))


def embedding_merge(model: LanguageModel, fork: Fork) -> Depths:
    """One slot with the weighted mean of the members' embeddings."""
    soft = SoftToken(fork.members, tuple(np.exp(fork.log_weight).tolist()))
    slots = [*fork.prompt, soft, *fork.follow]
    return _normalised(soft_log_probabilities(model, slots, last=fork.steps))


def _fork(plan: SequencePlan, table: SlotTable) -> Fork:
    first = table.members(1)
    logs = np.log(table.probability[first].astype(np.float64))
    follow = [set(table.token[table.members(step)].tolist()) for step in range(2, plan.steps + 1)]
    assert all(len(tokens) == 1 for tokens in follow)
    return Fork(
        id=plan.prompt_id,
        prompt=plan.token_ids,
        members=tuple(table.token[first].tolist()),
        log_weight=tuple((logs - logsumexp(logs)).tolist()),
        follow=tuple(token for tokens in follow for token in tokens),
    )


def _paths(fork: Fork, outcomes: Sequence[StepOutcome]) -> Paths:
    rows = np.stack([_rows_by_member(one) for one in outcomes])
    given = [rows[depth, :, token] for depth, token in enumerate(fork.follow)]
    evidence = np.cumsum([np.asarray(fork.log_weight), *given], axis=0)
    return Paths(rows, log_softmax(evidence, axis=-1))


def _readouts(outcomes: Sequence[StepOutcome]) -> Depths:
    """The readout after the set and after every token behind it."""
    return _normalised(np.stack([one.decoding.readout.log_probability for one in outcomes]))


def _normalised(log_probability: Float32[np.ndarray, "depth vocab"]) -> Depths:
    """In float64, summing to 1 to its precision."""
    rows = log_probability.astype(np.float64)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def _rows_by_member(outcome: StepOutcome) -> Float64[np.ndarray, "path vocab"]:
    """What each path predicts, in the order of the members it came from."""
    table = outcome.decoding.table
    came_from = table.members(outcome.step)
    while (table.step[came_from] > 1).any():
        came_from = table.parent[came_from]
    order = torch.from_numpy(came_from.argsort()).to(outcome.logits.device)
    return outcome.logits[order].double().log_softmax(-1).cpu().numpy()


def _plan(fork: Fork, arm: str, policy: Policy) -> SequencePlan:
    return SequencePlan(fork.id, arm, fork.prompt, policy, fork.steps, "ignore")


def _decoded(
    model: LanguageModel, plans: Sequence[SequencePlan]
) -> tuple[list[SlotTable], list[list[StepOutcome]]]:
    """The final tables, and every outcome but that of the prompt."""
    kept: list[list[StepOutcome]] = [[] for _ in plans]

    def keep(outcome: StepOutcome) -> None:
        if outcome.step:
            kept[outcome.number].append(outcome)

    decodings = decode(DecodeContext(model, on_step=keep), plans)
    return [one.table for one in decodings], kept
