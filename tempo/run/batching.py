"""The layout of a run: what is captured of each arm, and which sequences decode together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tempo.engine.branch import Fork
from tempo.engine.capture import Capture
from tempo.engine.state import SequencePlan
from tempo.errors import InputError
from tempo.models.projections import output_projections
from tempo.policy.selection import Forced, Greedy
from tempo.run.budget import Demand, MemoryPlan, Shape, batches, choose_level, memory_plan
from tempo.run.options import parse_bytes
from tempo.run.request import Request, TraceKey
from tempo.vocabulary import parse_numbers


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that decode together.

    Attributes:
        replays: Whether the sequences are fed the sets of finished traces.
    """

    pairs: tuple[TraceKey, ...]
    capture: Capture
    replays: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The batches of a run, in order.

    Attributes:
        level: What is captured. In a reduced run the null arm and the arm of `alone` keep their
            full rows.
        rows: Capture of members decoded alone; without values.
    """

    level: str
    batches: tuple[Batch, ...]
    memory: MemoryPlan
    rows: Capture


def layout(request: Request) -> Layout:
    """Choose the level and the batches within the budget.

    Raises:
        InputError: The budget is too small, or layers or heads are not the model's.
        ModelError: Values are to be kept, and a layer has no plain output projection.
    """
    shape, layers, heads = _shape(request)
    values = request.options.values
    if values:
        # Raises for a layer without a plain output projection, before anything is decoded.
        output_projections(request.model, layers)
    budget_bytes = parse_bytes(request.options.budget)
    level = _level(request, shape, budget_bytes)
    pairs = _in_order(request, level)
    demands = [request.demand(pair, _level_of(request, pair, level)) for pair in pairs]
    made = [
        Batch(
            tuple(pairs[number] for number in group),
            Capture(demands[group[0]].level, layers, heads, values),
            replays=pairs[group[0]][1] in request.replays,
        )
        for group in _groups(request, shape, pairs, level=level, budget_bytes=budget_bytes)
    ]
    sizes = [[demands[pairs.index(pair)] for pair in batch.pairs] for batch in made]
    # Members alone are compared with their set row by row: reduced masses would not do.
    rows = Capture("qk" if level == "qk" else "weights", layers, heads)
    return Layout(level, tuple(made), memory_plan(shape, sizes, level=level), rows)


def fitting(request: Request, forks: Sequence[Fork]) -> list[list[Fork]]:
    """Groups of forks that start at the same step, each within the budget."""
    shape, _, _ = _shape(request)
    budget_bytes = parse_bytes(request.options.budget)
    made: list[list[Fork]] = []
    # Forks of one step leave their runs at the same moment, when all caches are at hand.
    for step in sorted({fork.step for fork in forks}):
        here = [fork for fork in forks if fork.step == step]
        demands = [_forced_demand(fork.plan) for fork in here]
        groups = batches(shape, demands, budget_bytes=budget_bytes)
        made += [[here[number] for number in group] for group in groups]
    return made


def _forced_demand(plan: SequencePlan) -> Demand:
    assert isinstance(plan.policy.select, Forced)
    widest = max(len(one) for one in plan.policy.select.sets[: plan.steps])
    return Demand(len(plan.token_ids), plan.steps, widest, "weights")


def _shape(request: Request) -> tuple[Shape, tuple[int, ...], tuple[int, ...]]:
    options, model = request.options, request.model
    layers = _chosen(options.layers, model.n_layers, what="layers")
    heads = _chosen(options.heads, model.n_heads, what="heads")
    shape = Shape(
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        item_bytes=model.hf.dtype.itemsize,
        captured_layers=len(layers),
        captured_heads=len(heads),
        values=request.options.values,
    )
    return shape, layers, heads


def _chosen(text: str | None, count: int, *, what: str) -> tuple[int, ...]:
    """The layers or heads to capture; all where None."""
    numbers = tuple(range(count)) if text is None else parse_numbers(text, what=what)
    if max(numbers) >= count:
        raise InputError(
            f"expected {what} from 0 to {count - 1}, got {text!r}; the model has no others"
        )
    return numbers


def _level(request: Request, shape: Shape, budget_bytes: int) -> str:
    if request.options.capture != "auto":
        return request.options.capture
    everything = (*request.pairs, *request.replay_pairs())
    demands = [request.demand(pair, "weights") for pair in everything]
    return choose_level(shape, demands, budget_bytes=budget_bytes)


def _level_of(request: Request, pair: TraceKey, level: str) -> str:
    """The level of one sequence.

    The null is labelled by the sets of other runs after decoding, and a set is compared with its
    members alone row by row; both need full rows.
    """
    is_null = pair[1] in request.arms and isinstance(request.arms[pair[1]].select, Greedy)
    needs_rows = is_null or pair[1] == request.alone
    return "weights" if needs_rows and request.options.capture == "auto" else level


def _in_order(request: Request, level: str) -> list[TraceKey]:
    """Sequences sorted by kind of batch; within a kind in the order of the request."""
    pairs = [*request.pairs, *request.replay_pairs()]
    # False sorts before True: what decodes freely comes before the replays, which are fed its sets.
    return sorted(
        pairs,
        key=lambda pair: (pair[1] in request.replays, _level_of(request, pair, level) != level),
    )


def _groups(
    request: Request, shape: Shape, pairs: Sequence[TraceKey], *, level: str, budget_bytes: int
) -> list[list[int]]:
    """Indices of the sequences of each batch; all of a batch have one level and one kind."""

    def kind(number: int) -> tuple[bool, str]:
        pair = pairs[number]
        return pair[1] in request.replays, _level_of(request, pair, level)

    made: list[list[int]] = []
    # groupby joins neighbours only, which `_in_order` has made of every kind.
    for (_, captured), members in groupby(range(len(pairs)), key=kind):
        numbers = list(members)
        demands = [request.demand(pairs[number], captured) for number in numbers]
        groups = batches(shape, demands, budget_bytes=budget_bytes)
        made += [[numbers[place] for place in group] for group in groups]
    return made
