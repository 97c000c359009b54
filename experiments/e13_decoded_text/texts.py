"""Decoded texts as paths of tokens: extracted, with what their run claims, and rescored."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tempo.engine.decode import decode
from tempo.engine.state import DecodeContext, SequencePlan
from tempo.models.language_model import LanguageModel
from tempo.policy.positions import Depth
from tempo.policy.presets import Policy, greedy, isolated, posterior, tree, visible
from tempo.policy.readout import PerNode
from tempo.policy.selection import Choice, Forced, LogProbability, Select, Threshold, TopK
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import TREE

GREEDY, BEAM, NARROW, WIDE = "greedy", "beam", "tree", "wide-tree"
SUPERPOSED = ("isolated", "visible", "posterior")
BRANCHING = (BEAM, NARROW, WIDE)
ARMS = (GREEDY, BEAM, *SUPERPOSED, NARROW, WIDE)
TOGETHER = 128
"""Paths that are rescored together."""
Path = tuple[int, ...]
Steps = Float64[np.ndarray, " step"]


@dataclass(frozen=True, slots=True)
class Text:
    """What one arm made of one prompt.

    Attributes:
        paths: Tokens after the prompt, the best path first.
        claimed: For each path, log-probability of each token as the run chose it.
        table: The run itself.
        sequential: For each path, the same under a plain run of it.
        picked: Under a plain run that takes from every set the member it finds most probable; the
            best text that a choice member by member finds in the run.
    """

    paths: tuple[Path, ...]
    claimed: tuple[Steps, ...]
    table: SlotTable
    sequential: tuple[Steps, ...]
    picked: Steps


@dataclass(frozen=True, slots=True)
class Among(Select):
    """The most probable of given tokens, which differ from step to step."""

    sets: tuple[Path, ...]

    def select(self, log_probability: LogProbability, step: int, prompt_id: str = "") -> Choice:
        """The best of the step's tokens."""
        given = np.asarray(self.sets[step - 1], np.int64)
        token = given[[log_probability[given].argmax()]]
        return Choice(token, log_probability[token])


@dataclass(frozen=True, slots=True)
class Rules:
    """How long texts are and which tokens enter."""

    steps: int
    threshold: float
    max_width: int


def decoded(
    model: LanguageModel, prompts: Mapping[str, Path], rules: Rules
) -> dict[str, list[Text]]:
    """Every prompt under every arm; the beams are as many as the isolated run is wide."""
    tau, most = rules.threshold, {"max_width": rules.max_width}
    policies = {
        GREEDY: greedy(),
        "isolated": isolated(tau, **most),
        "visible": visible(tau, **most),
        "posterior": posterior(tau, **most),
        WIDE: tree(tau, **most),
    }
    plans = [_plan(*one, arm, policies[arm], rules) for arm in policies for one in prompts.items()]
    tables = _tables(model, plans)
    widths = [beams(tables["isolated", name]) for name in prompts]
    plans = [
        _plan(name, prompts[name], arm, _branching(select, n), rules)
        for name, n in zip(prompts, widths, strict=True)
        for arm, select in ((BEAM, TopK(n)), (NARROW, Threshold(tau, rules.max_width)))
    ]
    tables |= _tables(model, plans)
    found = {(arm, name): extracted(tables[arm, name], arm in BRANCHING) for arm, name in tables}
    wanted = {
        name: dict.fromkeys(path for arm in ARMS for path in found[arm, name][0])
        for name in prompts
    }
    known = rescored(model, prompts, wanted)
    picked = _picked(model, prompts, tables, rules)
    return {
        arm: [
            Text(
                *found[arm, name],
                tables[arm, name],
                tuple(known[name, path] for path in found[arm, name][0]),
                picked.get((arm, name), np.full(rules.steps, np.nan)),
            )
            for name in prompts
        ]
        for arm in ARMS
    }


def beams(table: SlotTable) -> int:
    """The mean width of a run's sets, to the nearest whole number."""
    return max(1, round((len(table) - table.n_prompt) / table.n_steps))


def extracted(table: SlotTable, branches: bool) -> tuple[tuple[Path, ...], tuple[Steps, ...]]:
    """Paths parent by parent, with the probabilities their tokens were chosen by.

    Args:
        branches: Take the path to every member of the last set. Where members have no children of
            their own there is one path, that of the top-ranked members.
    """
    ends = table.members(table.n_steps) if branches else table.members(table.n_steps)[:1]
    slots = [_slots_to(table, int(end)) for end in ends]
    logs = tuple(np.log(table.probability[one].astype(np.float64)) for one in slots)
    return tuple(tuple(table.token[one].tolist()) for one in slots), logs


def rescored(
    model: LanguageModel, prompts: Mapping[str, Path], paths: Mapping[str, Collection[Path]]
) -> dict[tuple[str, Path], Steps]:
    """Log-probability of every token of every path in a plain run, one token a step."""
    pairs = [(name, path) for name, some in paths.items() for path in some]
    found: dict[tuple[str, Path], Steps] = {}
    for start in range(0, len(pairs), TOGETHER):
        some = pairs[start : start + TOGETHER]
        plans = [
            SequencePlan(
                name,
                "plain",
                prompts[name],
                Policy(Forced(tuple((token,) for token in path))),
                len(path),
                "ignore",
            )
            for name, path in some
        ]
        for pair, decoding in zip(some, decode(DecodeContext(model), plans), strict=True):
            found[pair] = _chosen_with(decoding.table)
    return found


def _plan(name: str, ids: Path, arm: str, policy: Policy, rules: Rules) -> SequencePlan:
    return SequencePlan(name, arm, ids, policy, rules.steps, "ignore")


def _branching(select: Select, frontier: int) -> Policy:
    return Policy(select, Depth(), TREE, read=PerNode(frontier))


def _tables(
    model: LanguageModel, plans: Sequence[SequencePlan]
) -> dict[tuple[str, str], SlotTable]:
    decodings = decode(DecodeContext(model), plans)
    return {(one.plan.arm, one.plan.prompt_id): one.table for one in decodings}


def _picked(
    model: LanguageModel,
    prompts: Mapping[str, Path],
    tables: Mapping[tuple[str, str], SlotTable],
    rules: Rules,
) -> dict[tuple[str, str], Steps]:
    """Of the superposed arms: log-probabilities of the text picked member by member."""
    plans = [
        _plan(name, prompts[name], arm, Policy(Among(_sets(tables[arm, name]))), rules)
        for arm in SUPERPOSED
        for name in prompts
    ]
    return {key: _chosen_with(table) for key, table in _tables(model, plans).items()}


def _sets(table: SlotTable) -> tuple[Path, ...]:
    steps = range(1, table.n_steps + 1)
    return tuple(tuple(table.token[table.members(step)].tolist()) for step in steps)


def _chosen_with(table: SlotTable) -> Steps:
    """Log-probability of every generated token of a plain run."""
    return np.log(table.probability[table.step > 0].astype(np.float64))


def _slots_to(table: SlotTable, end: int) -> list[int]:
    """Generated slots from the first set to a member."""
    path = [end]
    while table.step[table.parent[path[0]]] > 0:
        path.insert(0, int(table.parent[path[0]]))
    return path
