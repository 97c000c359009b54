"""Memory and storage that a run will need, and the batches and level that fit a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from tempo.errors import InputError
from tempo.policy.schedules import Schedule
from tempo.policy.selection import Forced, Greedy, MinP, Sample, Select, Threshold, TopK, TopP
from tempo.trace.store import SHARD_BYTES, SHARD_STEPS
from tempo.vocabulary import GROUPS, TOP_READOUT

PLANNING_WIDTH = 2.0
"""Mean set width assumed for storage; memory is planned for the largest width."""
MAX_BATCH = 64
"""Largest number of sequences in a batch; larger batches gain nothing from packing."""
# Bytes of a float32, in which rows are captured whatever the dtype of the model is.
_FLOAT = 4
# Estimate of the copies of a logit row alive at once: cast, log-softmax, readout, temporaries.
_LOGIT_COPIES = 6


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model and of what is captured of it.

    Attributes:
        item_bytes: Bytes of one number in the model's dtype.
        captured_layers: Layers kept in the trace.
        captured_heads: Query heads kept in the trace.
        values: Whether the norms of values are kept too.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    item_bytes: int
    captured_layers: int
    captured_heads: int
    values: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """One sequence to decode: its prompt and steps, the largest width of a set, what is kept."""

    n_prompt: int
    steps: int
    max_width: int
    level: str

    @property
    def n_slots(self) -> int:
        """Slots written at most."""
        return self.n_prompt + self.steps * self.max_width


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run needs.

    Attributes:
        level: The level of the traces.
        n_traces: Sequences to decode.
        batch_sizes: Sequences of each batch.
        kv_bytes: Keys and values of the largest batch, at most.
        peak_bytes: The largest batch with its rows, logits and unwritten shards, at most.
        trace_bytes: All traces together, for sets of `PLANNING_WIDTH` tokens on average.
        trace_bytes_at_most: The same if every set were as wide as it can be.
    """

    level: str
    n_traces: int
    batch_sizes: tuple[int, ...]
    kv_bytes: int
    peak_bytes: int
    trace_bytes: int
    trace_bytes_at_most: int


def largest_width(rule: Select) -> int:
    """The widest set that a rule can give."""
    match rule:
        case Threshold(tau, max_width):
            lowest = tau.lowest if isinstance(tau, Schedule) else tau
            # At most 1 / tau tokens can reach tau; rounding must not turn 10 into 9.
            return min(max_width, int(1 / lowest + 1e-9))
        case TopP(max_width=width) | MinP(max_width=width) | Sample(width) | TopK(width):
            return width
        case Forced(sets=sets):
            return max(len(members) for members in sets)
        case Greedy():
            return 1
        case _:
            raise AssertionError(f"no largest width known for {rule}")


def kv_bytes(shape: Shape, demand: Demand) -> int:
    """Bytes of the keys and values of one sequence."""
    return (
        # 2: keys and values. KV heads, not query heads: a group of query heads shares one.
        2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * shape.item_bytes * demand.n_slots
    )


def step_bytes(shape: Shape, *, level: str, n_queries: float | int, n_slots: float | int) -> float:
    """Bytes of one step in a trace."""
    rows = shape.captured_layers * shape.captured_heads * n_queries * _FLOAT
    # A weight for each slot; a query, and its part of the keys of the set; or a mass for each
    # group with the entropy and the maximum.
    per_row = {
        "weights": n_slots,
        "qk": shape.head_dim * (1 + shape.n_kv_heads / shape.captured_heads),
        "reduced": len(GROUPS) + 2,
    }[level]
    # And the logsumexp of every row, the packed visibility (a bit a cell), and the readout (an
    # int64 id and a float32 log-probability for each of its tokens).
    return rows * (per_row + 1 + shape.values) + n_queries * n_slots / 8 + TOP_READOUT * 12


def standing_bytes(shape: Shape) -> int:
    """Bytes that every batch needs besides its sequences: the matrices for value norms."""
    heads = shape.captured_layers * shape.captured_heads * shape.values
    return heads * shape.head_dim**2 * _FLOAT


def trace_bytes(shape: Shape, demand: Demand, *, width: float | int) -> int:
    """Bytes of one trace if every set has this width, but at most the largest possible."""
    n_prompt, level, mean = demand.n_prompt, demand.level, min(width, demand.max_width)
    total = step_bytes(shape, level=level, n_queries=n_prompt, n_slots=n_prompt)
    for step in range(1, demand.steps + 1):
        # Rows grow with every set, so storage is quadratic in the steps: hence the loop.
        total += step_bytes(shape, level=level, n_queries=mean, n_slots=n_prompt + step * mean)
    return int(total)


def working_bytes(shape: Shape, demand: Demand) -> int:
    """Memory of one sequence in a batch: cache, one step's rows and logits, unwritten shard."""
    width, n_prompt, level = demand.max_width, demand.n_prompt, demand.level
    prompt = step_bytes(shape, level=level, n_queries=n_prompt, n_slots=n_prompt)
    step = step_bytes(shape, level=level, n_queries=width, n_slots=demand.n_slots)
    logits = width * shape.vocab_size * _FLOAT * _LOGIT_COPIES
    # A shard is written when it has enough steps or enough bytes, whichever comes first.
    unwritten = min(prompt + SHARD_STEPS * step, SHARD_BYTES)
    return int(kv_bytes(shape, demand) + max(prompt, step) + unwritten + logits)


def choose_level(shape: Shape, demands: Sequence[Demand], *, budget_bytes: int) -> str:
    """`weights` if such traces are expected to stay within the budget, else `reduced`."""
    expected = sum(trace_bytes(shape, demand, width=PLANNING_WIDTH) for demand in demands)
    return "weights" if expected <= budget_bytes else "reduced"


def batches(
    shape: Shape, demands: Sequence[Demand], *, budget_bytes: int
) -> tuple[tuple[int, ...], ...]:
    """Indices of the sequences of each batch, in order, each batch within the budget.

    Raises:
        InputError: One sequence alone needs more.
    """
    made: list[list[int]] = [[]]
    used = standing = standing_bytes(shape)
    for number, demand in enumerate(demands):
        needed = working_bytes(shape, demand)
        if standing + needed > budget_bytes:
            raise InputError(
                f"expected a budget of at least {human(standing + needed)} for a prompt of "
                f"{demand.n_prompt} tokens at level {demand.level}, got {human(budget_bytes)}; "
                "raise --budget, or use --capture reduced or fewer --layers"
            )
        # Filled in the given order, not sorted by size: traces then appear in the order of the
        # prompts.
        if made[-1] and (used + needed > budget_bytes or len(made[-1]) == MAX_BATCH):
            made.append([])
            used = standing
        made[-1].append(number)
        used += needed
    return tuple(tuple(batch) for batch in made)


def memory_plan(shape: Shape, groups: Sequence[Sequence[Demand]], *, level: str) -> MemoryPlan:
    """Memory and storage of batches of these sequences; nothing is allocated."""
    everything = [demand for group in groups for demand in group]

    def traces(width: float | int) -> int:
        return sum(trace_bytes(shape, demand, width=width) for demand in everything)

    return MemoryPlan(
        level=level,
        n_traces=len(everything),
        batch_sizes=tuple(len(group) for group in groups),
        kv_bytes=max(sum(kv_bytes(shape, demand) for demand in group) for group in groups),
        peak_bytes=standing_bytes(shape)
        + max(sum(working_bytes(shape, demand) for demand in group) for group in groups),
        trace_bytes=traces(PLANNING_WIDTH),
        trace_bytes_at_most=traces(float("inf")),
    )


def human(n_bytes: float | int) -> str:
    """A size with its unit; units are powers of 1000."""
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
