"""Feeds the sets of references again under a bias, and measures each prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float64

from tempo.engine.branch import Trunk, gone_on
from tempo.engine.capture import NOTHING, Capture
from tempo.engine.state import DecodeContext, StepOutcome
from tempo.errors import NumericalError
from tempo.policy.edits import Edit
from tempo.policy.presets import Policy
from tempo.policy.selection import Forced
from tempo.policy.slots import SlotTable
from tempo_analysis.parallel.diversity import distinct, effective_branches
from tempo_analysis.parallel.widths import repetition
from tempo_analysis.stats.averages import ByHead
from tempo_analysis.stats.distributions import FullReadout, kl_nats
from tempo_analysis.studies.boost.dose_response import FORCED, FREE
from tempo_analysis.studies.boost.plan import HeadMask, matched_slots, member_slots
from tempo_analysis.studies.boost.reference import Reference, mean_known, top_tokens

FROM_READOUTS = tuple(one.name for one in FORCED if one.name not in ("share", "log_ratio"))
"""Measures that are computed from readouts and need no attention rows."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceBatch:
    """References that are replayed together.

    Attributes:
        half: 0 or 1: the half of the prompts to which they belong.
        places: Index of each among all references.
        references: The references.
        trunk: Their prompts, already read.
    """

    half: int
    places: tuple[int, ...]
    references: tuple[Reference, ...]
    trunk: Trunk


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedPrompt:
    """One prompt under one bias.

    Attributes:
        values: By the names in `FROM_READOUTS`; NaN without data.
        share: Mean share of a row on members of earlier sets, over the rows that see one.
        matched: The same on the slots of the control.
        log_ratio: Mean log(mass of a member in its set / mass alone).
    """

    values: Mapping[str, float]
    share: ByHead
    matched: ByHead
    log_ratio: ByHead


@dataclass(slots=True)
class _Collected:
    """Values of the steps of one replay; arrays are [layer, head, query], one a step."""

    by_step: dict[str, list[float]] = field(default_factory=dict)
    share: list[np.ndarray] = field(default_factory=list)
    matched: list[np.ndarray] = field(default_factory=list)
    log_ratio: list[np.ndarray] = field(default_factory=list)

    def add(self, values: Mapping[str, float]) -> None:
        """Keep the values of one step."""
        for name, value in values.items():
            self.by_step.setdefault(name, []).append(value)


def read_references(batch: ReferenceBatch) -> None:
    """Feed the sets again without an edit and keep every readout that sees a set."""

    def keep(outcome: StepOutcome) -> None:
        one = batch.references[outcome.number]
        # Earlier steps see no set: no bias on members can change them.
        if outcome.step > one.first:
            one.readouts[outcome.step] = FullReadout(outcome.decoding.readout.log_probability)

    session = DecodeContext(batch.trunk.model, on_step=keep)
    gone_on(batch.trunk, [one.plan() for one in batch.references], session=session)


def replay_references(
    batch: ReferenceBatch, edits: Sequence[Edit], layers: Sequence[int]
) -> list[ReplayedPrompt]:
    """Feed the sets again under edits, and measure each prompt.

    Args:
        batch: The references.
        edits: Made in every forward pass.
        layers: Layers whose rows are captured; shares are NaN in the others.
    """
    model = batch.trunk.model
    found = [_Collected() for _ in batch.references]

    def take(outcome: StepOutcome) -> None:
        one = batch.references[outcome.number]
        if outcome.step > one.first:
            steps = found[outcome.number]
            steps.add(_compared(one, outcome))
            _read_rows(one, outcome, steps, layers)

    whole = Capture("weights", tuple(layers), tuple(range(model.n_heads)))
    # Rows are large; without layers only readouts are kept.
    capture = whole if layers else NOTHING
    session = DecodeContext(model, capture, on_step=take, edits=tuple(edits))
    gone_on(batch.trunk, [one.plan() for one in batch.references], session=session)
    shape = (model.n_layers, model.n_heads)
    return [_summary(steps, shape, layers) for steps in found]


def check_unchanged(batch: ReferenceBatch, edits: Sequence[Edit]) -> None:
    """Check that a bias of 0 leaves every readout unchanged, bit for bit.

    Raises:
        NumericalError: A readout changed.
    """

    def check(outcome: StepOutcome) -> None:
        one = batch.references[outcome.number]
        now = outcome.decoding.readout.log_probability
        # Bit for bit, without a tolerance: a bias of 0 must leave the path of computation as it is.
        if outcome.step > one.first and not np.array_equal(one.readouts[outcome.step].raw, now):
            raise NumericalError(
                f"expected readouts without change under a bias of 0, got others for prompt "
                f"{one.prompt_id!r} at step {outcome.step}; run again in float32 on one device"
            )

    session = DecodeContext(batch.trunk.model, on_step=check, edits=tuple(edits))
    gone_on(batch.trunk, [one.plan() for one in batch.references], session=session)


def over_heads(by_head: ByHead, heads: HeadMask) -> float:
    """Mean over some heads without NaN; NaN where nothing is known."""
    return float(mean_known(np.where(heads, by_head, np.nan).reshape(-1)))


def _compared(one: Reference, outcome: StepOutcome) -> dict[str, float]:
    """One readout compared with that of the same step without a bias."""
    step, table = outcome.step, one.table
    before, now = one.readouts[step], FullReadout(outcome.decoding.readout.log_probability)
    found = {
        "kl": float(kl_nats(before.log, now.log)),
        "top_1_changed": float(before.top() != now.top()),
        "log_entropy": _log(now.entropy_nats()),
    }
    if step < table.n_steps:  # the last readout chose no set
        after = table.token[table.members(step + 1)]
        # Members are in rank order, so the slice of one is the top member.
        found |= {"set_nll": -now.log_mass(after), "top_nll": -now.log_mass(after[:1])}
    # the mixture of paths is known for the first readout after a set was seen, and no other
    if step == one.first + 1:
        found["mixture_kl"] = float(kl_nats(one.mixture[0], now.log))
    return found


def _read_rows(
    one: Reference, outcome: StepOutcome, steps: _Collected, layers: Sequence[int]
) -> None:
    """Masses in the rows of one step, in the layers that are captured."""
    if not layers:
        return
    # float64 before sums over slots: differences between doses can be near float32 rounding.
    weights = outcome.tensors["weights"].astype(np.float64)
    table, step = one.table, outcome.step
    steps.share.append(weights[..., member_slots(table, step)].sum(-1))
    matched = matched_slots(table, step)
    if len(matched):
        steps.matched.append(weights[..., matched].sum(-1))
    if (step - 1, 1) in one.alone:  # the step before wrote a set: it has a second member
        steps.log_ratio.append(_log_ratios(one, weights, step - 1, layers))


def _log_ratios(
    one: Reference, weights: np.ndarray, step: int, layers: Sequence[int]
) -> Float64[np.ndarray, "layer head cell"]:
    """log(mass in the set / mass alone) of every member and query, in the captured layers."""
    members = one.table.members(step)
    # Masses alone cover every layer, the weights here only the captured ones.
    apart = np.stack([one.alone[step, rank].mass[list(layers)] for rank in range(len(members))], -1)
    inside = weights[..., members]
    # a weight of 0 is a slot outside a sliding window: no ratio there, and no log of 0
    known = (inside > 0) & (apart > 0)
    # A ratio, as logarithm: masses of heads differ by orders of magnitude, and gain and loss are
    # symmetric around 0. The difference of logarithms cannot underflow as the quotient can.
    logs = np.log(np.where(known, inside, 1.0)) - np.log(np.where(known, apart, 1.0))
    return np.where(known, logs, np.nan).reshape(*logs.shape[:2], -1)


def _summary(steps: _Collected, shape: tuple[int, int], layers: Sequence[int]) -> ReplayedPrompt:
    values = {name: _mean(steps.by_step.get(name, [])) for name in FROM_READOUTS}
    share, matched, ratio = (
        _by_head(one, shape, layers) for one in (steps.share, steps.matched, steps.log_ratio)
    )
    return ReplayedPrompt(values, share, matched, ratio)


def _by_head(rows: Sequence[np.ndarray], shape: tuple[int, int], layers: Sequence[int]) -> ByHead:
    """Mean over the rows of all steps; NaN in layers that were not captured."""
    found = np.full(shape, np.nan)
    if rows:
        # Rows of all steps count equally: concatenated, not a mean of the means of steps.
        found[list(layers)] = mean_known(np.concatenate(rows, -1))
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _log(value: float) -> float:
    return float(np.log(value)) if value > 0 else float("-inf")


FROM_TEXTS = tuple(one.name for one in FREE)


def decode_freely(
    batch: ReferenceBatch, policy: Policy, edits: Sequence[Edit], *, steps: int
) -> list[dict[str, float]]:
    """Decode every prompt freely under edits, and compute the measures of `FREE`.

    End-of-sequence tokens are not selected, so all texts have one length. The edits act during
    decoding only; the top path is then run again without them, one token a step.
    """
    model = batch.trunk.model
    plans = [replace(one.plan(), policy=policy, steps=steps) for one in batch.references]
    runs = gone_on(batch.trunk, plans, session=DecodeContext(model, edits=tuple(edits)))
    tables = [one.table for one in runs]
    # Scored by the model without the bias: a biased model would favour its own text.
    nll = _plain_nll(batch, tables)
    return [_described(table, one) for table, one in zip(tables, nll, strict=True)]


def _plain_nll(batch: ReferenceBatch, tables: Sequence[SlotTable]) -> list[float]:
    """Mean negative log probability of each top path in the plain model, in nats per token."""
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
        # NaN only for a set whose weights are all 0.
        "branches": float(np.nanmean(branches)),
        "repetition": repetition(path),
    }
