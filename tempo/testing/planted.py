"""Planted traces: made without a model from a pattern, so that the right answer is known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from tempo.policy.selection import DROP_REASONS
from tempo.policy.slots import SLOT_COLUMNS, SlotTable, group_of, prompt_table
from tempo.trace.attention import entropy_nats, group_onehot
from tempo.trace.run import Prompt, Run
from tempo.trace.schema import Readout, TraceHeader, tensor_name, visible_name
from tempo.trace.trace import Trace
from tempo.vocabulary import GROUPS, PROMPT_STEP, SINK_SLOT, TOP_READOUT

PlantedRelation = Literal["isolated", "visible", "ordered", "greedy"]
# More than the tokens of any planted trace, so that all of them can be different.
VOCABULARY = 400
_PROMPT = "A planted prompt"


@dataclass(frozen=True, slots=True)
class PlantedPlace:
    """The input of a pattern: the queries of one step and all slots written so far.

    `group` is the index into `GROUPS` of every slot, seen from each query; `visible` leaves sliding
    windows aside; `seed` is the number of the prompt, for patterns that draw.
    """

    step: int
    table: SlotTable
    queries: Int[np.ndarray, " query"]
    visible: Bool[np.ndarray, "query slot"]
    group: Int[np.ndarray, "query slot"]
    n_layers: int
    n_heads: int
    seed: int

    def is_group(self, *names: str) -> Bool[np.ndarray, "query slot"]:
        """Slots in any of these groups."""
        return np.isin(self.group, [GROUPS.index(name) for name in names])


Pattern = Callable[[PlantedPlace], Float[np.ndarray, "..."]]
"""Weights before masking and scaling: `query slot`, or `layer head query slot`."""

ReadoutRule = Callable[[int, int], Float64[np.ndarray, " token"]]
"""The complete next-token distribution after a step, from the prompt's number and the step."""


def uniform(place: PlantedPlace) -> Float64[np.ndarray, "query slot"]:
    """The same weight on every visible slot."""
    return np.ones(place.visible.shape)


def favour_sets(factor: float) -> Pattern:
    """Slots of earlier sets get `factor` times the weight of every other slot."""

    def pattern(place: PlantedPlace) -> Float64[np.ndarray, "query slot"]:
        return np.where(place.is_group("earlier_sets"), factor, 1.0)

    return pattern


def with_sink(share: float, pattern: Pattern = uniform) -> Pattern:
    """Slot 0 gets this share of every row that sees other slots; the rest follows the pattern."""

    def sunk(place: PlantedPlace) -> Float[np.ndarray, "..."]:
        # Masked before the sum: a share of the visible slots, not of all.
        others = place.visible & (np.arange(len(place.table)) != SINK_SLOT)
        rest = pattern(place) * others
        total = rest.sum(-1, keepdims=True)
        scaled = rest / np.where(total > 0, total, 1) * (1 - share)
        scaled[..., SINK_SLOT] = share
        return scaled

    return sunk


def noisy(pattern: Pattern, spread: float) -> Pattern:
    """Every weight times the exponential of a normal draw, other for each prompt and head."""

    def drawn(place: PlantedPlace) -> Float64[np.ndarray, "layer head query slot"]:
        # Keyed by prompt and step: arms of one prompt get the same noise, as paired arms do.
        rng = np.random.default_rng((place.seed, place.step))
        shape = (place.n_layers, place.n_heads, *place.visible.shape)
        return pattern(place) * np.exp(rng.normal(0, spread, shape))

    return drawn


def random_readout(seed: int, step: int) -> Float64[np.ndarray, " token"]:
    """A peaked distribution over the planted vocabulary."""
    scores = np.random.default_rng((seed, step, 1)).normal(0, 3, VOCABULARY)
    return np.exp(scores) / np.exp(scores).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about a planted trace.

    `positions` are of the members of a set, `windows` in positions for each layer, `tokens` of all
    slots (drawn by `seed` where None), `words` the text of token ids, `top` the number of tokens
    kept of each readout, `dropped` rows of (step, token, probability, reason).
    """

    widths: Sequence[int] = (2, 1, 3)
    prompt_length: int = 5
    rows: Pattern = uniform
    relation: PlantedRelation = "isolated"
    n_layers: int = 2
    n_heads: int = 2
    positions: Literal["shared", "unique"] = "shared"
    level: Literal["weights", "qk", "reduced"] = "weights"
    windows: Sequence[int | None] | None = None
    tokens: Sequence[int] | None = None
    words: Mapping[int, str] = field(default_factory=dict)
    readouts: ReadoutRule = random_readout
    top: int = TOP_READOUT
    dropped: Sequence[tuple[int, int, float, str]] = ()
    stopped: str = "steps"
    seed: int = 0
    prompt_id: str = "p0000"
    arm: str = "isolated"


def planted_trace(**plan: Any) -> Trace:
    """A trace whose rows follow a pattern; the keywords are the fields of `Plan`."""
    return _build(Plan(**plan))


def planted_run(
    arms: Mapping[str, Mapping[str, Any]],
    *,
    n_prompts: int = 10,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Run:
    """Several prompts under several arms; an arm is the keywords of `planted_trace`.

    Prompt `i` has seed `i`; `widths` may be a function of it, for sets that differ.
    """
    prompts = tuple(Prompt(f"p{number:04d}", _PROMPT, "planted") for number in range(n_prompts))
    traces = {}
    for name, plan in arms.items():
        for number, prompt in enumerate(prompts):
            widths = plan.get("widths", Plan().widths)
            own = {"widths": widths(number) if callable(widths) else widths, "seed": number}
            own |= {"prompt_id": prompt.id, "arm": name}
            traces[prompt.id, name] = planted_trace(**(dict(plan) | own))
    policies = {name: _policy(str(plan.get("relation", "isolated"))) for name, plan in arms.items()}
    return Run(prompts, tuple(arms), policies, traces, settings)


def stored_readout(distribution: Float64[np.ndarray, " token"], top: int = TOP_READOUT) -> Readout:
    """A complete next-token distribution in the form in which a trace stores it."""
    # Stable: ties by token id, as in a real readout.
    order = np.argsort(-distribution, kind="stable")[:top]
    return Readout(
        token=order.astype(np.int64),
        log_probability=np.log(distribution[order]).astype(np.float32),
        tail_mass=float(np.delete(distribution, order).sum()),
        entropy_nats=float(entropy_nats(distribution[None])[0]),
    )


def _policy(relation: str) -> dict[str, Any]:
    select = "Greedy" if relation == "greedy" else "Threshold"
    return {"rule": "Policy", "select": {"rule": select}, "see": relation}


def _build(plan: Plan) -> Trace:
    assert plan.relation != "greedy" or set(plan.widths) <= {1}, "a greedy run has sets of width 1"
    table = _table(plan)
    tensors: dict[str, np.ndarray] = {}
    for step in range(len(plan.widths) + 1):
        piece = {f"slots/{name}": getattr(table, name)[table.step == step] for name in SLOT_COLUMNS}
        piece |= _choice(plan, step) | _rows(plan, table, step)
        tensors |= {tensor_name(step, name): array for name, array in piece.items()}
    return Trace(_header(plan, table), tensors)


def _table(plan: Plan) -> SlotTable:
    rng = np.random.default_rng(plan.seed)
    n_slots = plan.prompt_length + sum(plan.widths)
    drawn = rng.integers(0, VOCABULARY, n_slots)
    tokens = drawn if plan.tokens is None else np.asarray(plan.tokens)
    table = prompt_table(tokens[: plan.prompt_length].tolist())
    base = float(plan.prompt_length)
    for width in plan.widths:
        # Divided by the width, so that the probabilities of a set sum to at most 1.
        probability = np.sort(rng.uniform(0.1, 1, width))[::-1] / width
        offset = np.arange(width) if plan.positions == "unique" else np.zeros(width)
        table = table.with_set(
            token=tokens[len(table) : len(table) + width].astype(np.int64),
            position=(base + offset).astype(np.float32),
            probability=probability.astype(np.float32),
            weight=(probability / probability.sum()).astype(np.float32),
        )
        base += width if plan.positions == "unique" else 1
    return table


def _header(plan: Plan, table: SlotTable) -> TraceHeader:
    words = {int(token): plan.words.get(int(token), f" w{token}") for token in table.token}
    top = table.token[(table.step == PROMPT_STEP) | (table.rank == 0)]
    return TraceHeader(
        prompt_id=plan.prompt_id,
        arm=plan.arm,
        prompt=_PROMPT,
        level=plan.level,
        layers=tuple(range(plan.n_layers)),
        heads=tuple(range(plan.n_heads)),
        scaling=(1.0,) * plan.n_layers,
        window=tuple(plan.windows or (None,) * plan.n_layers),
        softcap=(None,) * plan.n_layers,
        sinks=None,
        model={"name": "planted", "queries_per_kv_head": 1, "dtype": "float32"},
        policy=_policy(plan.relation),
        tokens=words,
        text="".join(words[int(token)] for token in top),
        stopped=plan.stopped,
        last_step=len(plan.widths),
    )


def _choice(plan: Plan, step: int) -> dict[str, np.ndarray]:
    readout = stored_readout(plan.readouts(plan.seed, step), plan.top)
    dropped = [row for row in plan.dropped if row[0] == step]
    return {
        "readout/token": readout.token,
        "readout/log_probability": readout.log_probability,
        "readout/tail_mass": np.array([readout.tail_mass], np.float32),
        "readout/entropy_nats": np.array([readout.entropy_nats], np.float32),
        "margins": np.full(2, np.nan if step == PROMPT_STEP else 1.0, np.float32),
        "dropped/token": np.array([row[1] for row in dropped], np.int64),
        "dropped/probability": np.array([row[2] for row in dropped], np.float32),
        "dropped/reason": np.array([DROP_REASONS.index(row[3]) for row in dropped], np.int8),
    }


def _rows(plan: Plan, table: SlotTable, step: int) -> dict[str, np.ndarray]:
    seen = table.upto(int(np.searchsorted(table.step, step, side="right")))
    queries = seen.members(step)
    place = PlantedPlace(
        step=step,
        table=seen,
        queries=queries,
        visible=_visible(plan.relation, seen, queries),
        group=group_of(seen, queries),
        n_layers=plan.n_layers,
        n_heads=plan.n_heads,
        seed=plan.seed,
    )
    behind = seen.position[queries, None] - seen.position[None, :]
    windows = plan.windows or (None,) * plan.n_layers
    visible = np.stack([place.visible & (behind < (window or np.inf)) for window in windows])
    raw = np.broadcast_to(plan.rows(place), (plan.n_layers, plan.n_heads, *place.visible.shape))
    raw = np.where(visible[:, None], raw, 0.0)
    names = [visible_name(window) for window in windows]
    packed = dict(zip(names, np.packbits(visible, axis=-1), strict=True))
    return packed | _stored(plan, place, raw / raw.sum(-1, keepdims=True))


def _visible(
    relation: PlantedRelation, table: SlotTable, queries: Int[np.ndarray, " query"]
) -> Bool[np.ndarray, "query slot"]:
    slots, own = np.arange(len(table)), queries[:, None]
    causal = slots[None, :] <= own
    if table.step[queries[0]] == PROMPT_STEP or relation in ("ordered", "greedy"):
        return causal
    same_step = table.step[None, :] == table.step[own]
    earlier = causal & ~same_step
    return earlier | same_step if relation == "visible" else earlier | (slots[None, :] == own)


def _stored(
    plan: Plan, place: PlantedPlace, weights: Float64[np.ndarray, "layer head query slot"]
) -> dict[str, np.ndarray]:
    """The rows in the form of the chosen level."""
    # Weights are normalised already: a logsumexp of 0 makes raw scores their logarithms.
    lse = {"logsumexp": np.zeros(weights.shape[:-1], np.float32)}
    if plan.level == "weights":
        return lse | {"weights": weights.astype(np.float32)}
    if plan.level == "qk":
        # A large finite number, as -inf times the 0 of a key would be NaN.
        logs = np.log(weights, where=weights > 0, out=np.full_like(weights, -1e9))
        return lse | _queries_and_keys(plan, place, logs)
    mass = np.einsum("lhqs,qsg->lhqg", weights, group_onehot(place.group))
    return lse | {
        "group_mass": mass.astype(np.float32),
        "entropy_nats": entropy_nats(weights).astype(np.float32),
        "max_weight": weights.max(-1).astype(np.float32),
    }


def _queries_and_keys(
    plan: Plan, place: PlantedPlace, logs: Float64[np.ndarray, "layer head query slot"]
) -> dict[str, np.ndarray]:
    """One channel for each slot: keys are unit vectors, queries hold the log-weights."""
    n_channels = plan.prompt_length + sum(plan.widths)
    unwritten = n_channels - logs.shape[-1]
    q = np.pad(logs, [(0, 0)] * 3 + [(0, unwritten)]).astype(np.float32)
    k = np.eye(n_channels, dtype=np.float32)[place.queries]
    return {"q": q, "k": np.tile(k, (plan.n_layers, plan.n_heads, 1, 1))}


_ROWS = ("weights", "logsumexp", "q", "visible/full")


@dataclass(frozen=True, slots=True)
class Twins:
    """A run with its sets, and the twin of each member by (step, rank)."""

    in_set: Trace
    alone: Mapping[tuple[int, int], Trace]

    def of_set(self, step: int) -> list[Trace]:
        """The twins of one set, in rank order."""
        return [trace for (number, _), trace in sorted(self.alone.items()) if number == step]


def by_token(spread: float = 1.0, *, seed: int = 0) -> Pattern:
    """A score for each pair of tokens, a normal draw for each layer and head: independent odds."""

    @cache
    def weights(n_layers: int, n_heads: int) -> Float64[np.ndarray, "layer head token token"]:
        shape = (n_layers, n_heads, VOCABULARY, VOCABULARY)
        return np.exp(np.random.default_rng(seed).normal(0, spread, shape))

    def pattern(place: PlantedPlace) -> Float64[np.ndarray, "layer head query slot"]:
        token = place.table.token
        drawn = weights(place.n_layers, place.n_heads)
        return drawn[:, :, token[place.queries][:, None], token[None, :]]

    return pattern


def both(first: Pattern, second: Pattern) -> Pattern:
    """Scores added up: the product of two patterns."""

    def product(place: PlantedPlace) -> Float[np.ndarray, "..."]:
        return first(place) * second(place)

    return product


def pull_to_sink(factor: float) -> Pattern:
    """Slot 0 weighs `factor` times as much for the queries right after a set of width >= 2."""

    def pattern(place: PlantedPlace) -> Float64[np.ndarray, "query slot"]:
        follows_set = len(place.table.members(place.step - 1)) >= 2 and place.step > 1
        sink = np.arange(len(place.table)) == SINK_SLOT
        return np.where(sink & follows_set, factor, 1.0) * np.ones(place.visible.shape)

    return pattern


def planted_twins(
    widths: Sequence[int] = (2, 1, 3, 1),
    *,
    prompt_length: int = 5,
    rows: Pattern = uniform,
    seed: int = 0,
    **plan: Any,
) -> Twins:
    """A run of shared positions and its twins, which hold rows at the step after the set only.

    All tokens of the run are distinct. The other keywords are fields of `planted.Plan`.
    """
    n_slots = prompt_length + sum(widths)
    tokens = np.random.default_rng(seed).permutation(VOCABULARY)[:n_slots].tolist()
    plan |= {"prompt_length": prompt_length, "rows": rows, "seed": seed}
    in_set = _marked(planted_trace(widths=widths, tokens=tokens, **plan))
    alone = {
        (step, rank): _alone_plan(in_set, step, rank, plan)
        for step, width in enumerate(widths, 1)
        if width >= 2 and step < len(widths)
        for rank in range(width)
    }
    return Twins(in_set, alone)


def _alone_plan(in_set: Trace, step: int, rank: int, plan: Mapping[str, Any]) -> Trace:
    table = in_set.slots
    siblings: Int64[np.ndarray, " sibling"] = np.delete(table.members(step), rank)
    widths = np.bincount(table.step)[1:].tolist()
    widths[step - 1] = 1
    tokens = np.delete(table.token, siblings).tolist()
    return _only_rows(_marked(planted_trace(widths=widths, tokens=tokens, **plan)), step + 1)


def _only_rows(trace: Trace, step: int) -> Trace:
    """The trace with attention at one step only; slots, keys and choices stay."""
    others = [other for other in range(PROMPT_STEP, trace.n_steps + 1) if other != step]
    dropped = {tensor_name(other, name) for other in others for name in _ROWS}
    return replace(trace, tensors={n: t for n, t in trace.tensors.items() if n not in dropped})


def _marked(trace: Trace) -> Trace:
    """The trace with the fingerprint that every planted model shares."""
    model = dict(trace.header.model) | {"fingerprint": "planted"}
    return replace(trace, header=replace(trace.header, model=model))
