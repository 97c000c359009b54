"""References of a biased run: the same sets without a bias, and each member alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float64

from tempo.engine.branch import TOGETHER, Fork, PromptIds, Trunk, decode_forks, gone_on
from tempo.engine.capture import Capture
from tempo.engine.decode import decode
from tempo.engine.state import DecodeContext, SequencePlan, StepOutcome
from tempo.models.language_model import LanguageModel
from tempo.policy.override import alone, forced, members_of_sets
from tempo.policy.presets import Policy, isolated
from tempo.policy.selection import Forced
from tempo.policy.slots import SlotTable
from tempo_analysis.parallel.alone_pairs import Cells
from tempo_analysis.stats.distributions import FullReadout, mixed
from tempo_analysis.studies.boost.dose_matching import odds_law_log_ratio

SMALLEST_SET = 2
_REFERENCE = "isolated"


@dataclass(frozen=True, slots=True)
class AloneMasses:
    """Attention of the queries of the next set when a member has no siblings.

    Attributes:
        mass: On the member.
        others: On members of other sets.
    """

    mass: Cells
    others: Cells


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """One prompt, decoded freely without a bias.

    Attributes:
        prompt_id: Of the prompt.
        table: Its slots.
        first: Step of the first set of two or more members; another step follows it.
        alone: Each member of such sets without its siblings, by (step, rank).
        mixture: Empty, or one distribution: plain runs of all paths through the first set and the
            next one, mixed by the probabilities of the paths.
        readouts: By step, from the first step that sees a set.
    """

    prompt_id: str
    table: SlotTable
    first: int
    alone: dict[tuple[int, int], AloneMasses] = field(default_factory=dict)
    mixture: list[Float64[np.ndarray, " vocab"]] = field(default_factory=list)
    readouts: dict[int, FullReadout] = field(default_factory=dict)

    @property
    def ids(self) -> PromptIds:
        """Token ids of the prompt."""
        return tuple(self.table.token[: self.table.n_prompt].tolist())

    def plan(self) -> SequencePlan:
        """Plan of a run that feeds the same sets again."""
        # Forced sets: tokens stay the same under every bias, so that only attention changes.
        policy = Policy(forced(self.table))
        return SequencePlan(
            self.prompt_id, _REFERENCE, self.ids, policy, self.table.n_steps, "ignore"
        )

    def wide_steps(self) -> list[int]:
        """Steps of sets of two or more members that another step follows."""
        # Without the last step: no later row sees its set.
        steps = range(self.first, self.table.n_steps)
        return [step for step in steps if len(self.table.members(step)) >= SMALLEST_SET]


def decoded(
    model: LanguageModel, prompts: Sequence[tuple[str, PromptIds]], policy: Policy, *, steps: int
) -> tuple[list[Reference], dict[str, str]]:
    """Decode every prompt freely without a bias.

    Returns:
        References of the prompts with a set of two or more that a step follows, and the reason why
        each of the other prompts has none.
    """
    found: list[Reference] = []
    refused: dict[str, str] = {}
    for start in range(0, len(prompts), TOGETHER):
        plans = [
            SequencePlan(name, _REFERENCE, ids, policy, steps, "ignore")
            for name, ids in prompts[start : start + TOGETHER]
        ]
        for plan, one in zip(plans, decode(DecodeContext(model), plans), strict=True):
            # a slot of rank 1 is a second member: its step wrote a set of two or more
            wide = one.table.step[one.table.rank == 1]
            # Slots are in order of their steps, so wide[0] is the first such step.
            if len(wide) and wide[0] < one.table.n_steps:
                found.append(Reference(plan.prompt_id, one.table, int(wide[0])))
            else:
                refused[plan.prompt_id] = (
                    f"no set of two or more members with a step after it in {one.table.n_steps} "
                    "steps"
                )
    return found, refused


def add_alone(model: LanguageModel, references: Sequence[Reference]) -> None:
    """Decode every member without its siblings and keep the attention of the next set."""
    own: list[tuple[int, int, int]] = []
    forks: list[Fork] = []
    for number, one in enumerate(references):
        for (step, rank), slot in members_of_sets(one.table).items():
            policy = alone(one.table, isolated(), slot)
            # only the step after the set is needed, so the run ends and is captured there
            plan = replace(one.plan(), policy=policy, steps=step + 1, capture_from_step=step + 1)
            forks.append(Fork(len(forks), number, step, plan))
            # Keyed by rank: the slot number of a member changes once its siblings are absent.
            own.append((number, step, rank))

    def keep(outcome: StepOutcome) -> None:
        number, step, rank = own[outcome.number]
        # The rows of the next set are queries on this member; its own row has no sibling either
        # way.
        if outcome.step == step + 1:
            one = references[number]
            one.alone[step, rank] = _alone_rows(one.table, outcome, step)

    layers, heads = range(model.n_layers), range(model.n_heads)
    session = DecodeContext(model, Capture("weights", tuple(layers), tuple(heads)), on_step=keep)
    decode_forks(session, [one.plan() for one in references], list(_together(forks)))


def add_mixtures(trunk: Trunk, references: Sequence[Reference]) -> None:
    """Run every path through the first set and the next one alone, and mix the predictions."""
    paths = [(n, path) for n, one in enumerate(references) for path in _paths(one)]
    weights: dict[int, list[float]] = {}
    rows: dict[int, list[Float64[np.ndarray, " vocab"]]] = {}
    for start in range(0, len(paths), TOGETHER):
        some = paths[start : start + TOGETHER]
        plans = [
            replace(references[n].plan(), policy=Policy(_single(path)), steps=len(path))
            for n, path in some
        ]
        runs = gone_on(trunk, plans, session=DecodeContext(trunk.model), of=[n for n, _ in some])
        for (n, _), run in zip(some, runs, strict=True):
            # Prompt slots, of step 0, are common to all paths and cancel in the weights.
            taken = run.table.probability[run.table.step > 0].astype(np.float64)
            # log probability of the path, generated tokens only
            weights.setdefault(n, []).append(float(np.log(taken).sum()))
            rows.setdefault(n, []).append(FullReadout(run.readout.log_probability).log)
    for n, one in enumerate(references):
        one.mixture.append(mixed(np.array(weights[n]), np.stack(rows[n])))


def odds_law_by_head(
    one: Reference, betas: Sequence[float]
) -> Float64[np.ndarray, "beta layer head"]:
    """Mean over members and queries of log(mass in the set / mass alone) by the odds law."""
    sums: list[Float64[np.ndarray, "beta layer head _"]] = []
    for step in one.wide_steps():
        twins = [one.alone[step, rank] for rank in range(len(one.table.members(step)))]
        mass, others = (np.stack([getattr(t, name) for t in twins]) for name in ("mass", "others"))
        cells = np.stack([odds_law_log_ratio(beta, mass, others) for beta in betas])
        # [beta, member, layer, head, query] to [beta, layer, head, member and query]
        moved = np.moveaxis(cells, 1, -2)
        sums.append(moved.reshape(*moved.shape[:3], -1))
    return mean_known(np.concatenate(sums, -1))


def mean_known(values: Float64[np.ndarray, "*cell item"]) -> Float64[np.ndarray, "*cell"]:
    """Mean over the last axis without NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    # Not nanmean: it warns where nothing is known, which is regular here (sliding windows).
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def top_tokens(table: SlotTable) -> tuple[int, ...]:
    """The top-ranked member of every set."""
    return tuple(table.token[(table.rank == 0) & (table.step > 0)].tolist())


def _paths(one: Reference) -> list[tuple[int, ...]]:
    """Every path of tokens to a member of the set after the first set of two or more."""
    # Steps count from 1. Sets before the first wide one have one member, so one path leads to it.
    before = top_tokens(one.table)[: one.first - 1]
    first, after = (
        one.table.token[one.table.members(step)].tolist() for step in (one.first, one.first + 1)
    )
    return [(*before, here, there) for here in first for there in after]


def _single(path: Iterable[int]) -> Forced:
    return Forced(tuple((token,) for token in path))


def _alone_rows(table: SlotTable, outcome: StepOutcome, step: int) -> AloneMasses:
    """Masses in the rows of the step after a member that is alone in its set."""
    ours = outcome.decoding.table
    weights = outcome.tensors["weights"].astype(np.float64)
    # which steps wrote sets is known from the reference; in our own table this set has one member
    wide = set(table.step[table.rank == 1].tolist()) - {step}
    others = np.isin(ours.step, list(wide)) & (ours.step <= step)
    return AloneMasses(
        # sum(-1) of the one member removes the slot axis.
        mass=weights[..., ours.members(step)].sum(-1),
        others=weights[..., np.flatnonzero(others)].sum(-1),
    )


def _together(forks: Sequence[Fork]) -> Iterator[list[Fork]]:
    """Batches of at most `TOGETHER` forks that leave their trunk at the same step."""
    # decode_forks needs groups of one step: those leave their trunks in one forward pass.
    by_step = {step: [f for f in forks if f.step == step] for step in {f.step for f in forks}}
    for same in by_step.values():
        for start in range(0, len(same), TOGETHER):
            yield same[start : start + TOGETHER]
