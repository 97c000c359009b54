"""Live display on stderr while sequences decode: the growing lattices, or a progress bar."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from tempo.cli.console import notes, visible
from tempo.engine.state import StepOutcome
from tempo.run.execute import OnStep
from tempo.run.request import TraceKey
from tempo.trace.trace import Trace


class Member(NamedTuple):
    """One member of a set: its text, its probability, and whether it was not pruned."""

    text: str
    probability: float
    alive: bool = True


BANDS = (
    (0.2, "#9a7fd1"),
    (0.4, "#4f8fd6"),
    (0.6, "#2aa198"),
    (0.8, "#5fa32c"),
    (1.0, "bold #d89b1d"),
)
"""Upper limit of a probability and its colour: viridis, but nothing too dark or too bright."""

_SYNTAX = "dim"


@dataclass(slots=True)
class Lattice:
    """A prompt and its sets, members by rank."""

    prompt: str
    sets: list[Sequence[Member]] = field(default_factory=list)

    def text(self, *, columns: int | None = None) -> Text:
        """One line, coloured by probability; if `columns` is given, cut on the left to fit."""
        line = Text(visible(self.prompt))
        for members in self.sets:
            line.append_text(_set_text(members))
        return line if columns is None else _tail(line, columns)


def lattice_of(trace: Trace) -> Lattice:
    """The lattice of a trace."""
    sets = [_members(trace, step) for step in range(1, trace.n_steps + 1)]
    return Lattice(trace.header.prompt, [*sets])


def legend() -> Text:
    """What the colours mean."""
    line = Text.assemble(("probability", _SYNTAX))
    for limit, style in BANDS:
        line.append("  ").append("■", style=style).append(f" to {limit:g}", style=_SYNTAX)
    return line


def style_of(probability: float) -> str:
    """Colour of a probability."""
    return next((style for limit, style in BANDS if probability < limit), BANDS[-1][1])


def _members(trace: Trace, step: int) -> list[Member]:
    slots = trace.members(step).tolist()
    probability = trace.slots.probability[slots].tolist()
    alive = trace.slots.alive[slots].tolist()
    return list(map(Member, map(trace.token_text, slots), probability, alive))


def _set_text(members: Sequence[Member]) -> Text:
    if len(members) == 1:
        return Text(visible(members[0].text), style=_style(members[0]))
    # A space that all members begin with is put before the bracket: `the [cat|dog]`.
    space = " " if all(member.text.startswith(" ") for member in members) else ""
    line = Text(space).append("[", style=_SYNTAX)
    for rank, member in enumerate(members):
        line.append("|" if rank else "", style=_SYNTAX)
        line.append(visible(member.text[len(space) :]), style=_style(member))
    return line.append("]", style=_SYNTAX)


def _style(member: Member) -> str:
    """Colour of a member; pruned members are struck through."""
    return f"{style_of(member.probability)}{'' if member.alive else ' strike'}"


def _tail(line: Text, columns: int) -> Text:
    """The end of a line that fits the columns, with a mark where it was cut."""
    if line.cell_len <= columns:
        return line
    # One column for the mark. Cells, not characters: CJK characters take two columns.
    start, room = len(line), columns - 1
    while (room := room - cell_len(line.plain[start - 1])) >= 0:
        start -= 1
    return Text.assemble(("…", _SYNTAX), line[start:])


@dataclass(slots=True)
class GrowingLattices:
    """The lattices of the sequences being decoded, drawn again at every refresh."""

    prompts: Mapping[str, str]
    token_text: Callable[[int], str]
    lattices: dict[TraceKey, Lattice] = field(default_factory=dict)

    def take(self, outcome: StepOutcome) -> None:
        """Add one step of one sequence."""
        table, pair = outcome.decoding.table, _pair(outcome)
        # Step 0 reads the prompt; it chooses nothing to show.
        if outcome.step == 0:
            self.lattices[pair] = Lattice(self.prompts[pair[0]])
            return
        slots = table.members(outcome.step)
        texts = [self.token_text(token) for token in table.token[slots].tolist()]
        members = list(map(Member, texts, table.probability[slots].tolist()))
        self.lattices[pair].sets.append(members)

    def draw(self, console: Console) -> Group:
        """The latest lattices that fit the terminal, one line each; a single one is wrapped."""
        # Two rows stay free for the legend and the cursor: a taller display would flicker.
        latest = list(self.lattices.items())[-max(console.height - 2, 1) :]
        if not latest:
            return Group()
        if len(self.lattices) == 1:
            lines = [latest[0][1].text(columns=console.width * max(console.height - 3, 1))]
        else:
            labels = [f"{prompt_id}  " for (prompt_id, _), _ in latest]
            room = console.width - max(map(len, labels))
            texts = [lattice.text(columns=room) for _, lattice in latest]
            pairs = zip(labels, texts, strict=True)
            lines = [Text.assemble((label, "dim"), text) for label, text in pairs]
        return Group(*lines, legend())


@dataclass(slots=True)
class StepCount:
    """Number of steps done, where batches decode one after another.

    Attributes:
        batches: The sequences of each batch, in the order they are decoded.
        steps: Largest number of steps of a sequence.
    """

    batches: Sequence[Sequence[TraceKey]]
    steps: int
    batch: int = 0
    _reached: dict[TraceKey, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Steps of all sequences."""
        return self.steps * sum(len(batch) for batch in self.batches)

    @property
    def done(self) -> int:
        """Steps done; sequences that ended early and earlier batches count with all steps."""
        before = self.steps * sum(len(batch) for batch in self.batches[: self.batch])
        if self.batch == len(self.batches):
            return before
        return before + sum(self._reached.get(pair, 0) for pair in self.batches[self.batch])

    def take(self, outcome: StepOutcome) -> None:
        """Count one step of one sequence."""
        pair = _pair(outcome)
        if self.batch == len(self.batches) or pair not in self.batches[self.batch]:
            # A resumed run skips finished batches, so the batch is found, not counted up. Members
            # decoded alone belong to none of them.
            numbers = (n for n, batch in enumerate(self.batches) if pair in batch)
            self.batch = next(numbers, len(self.batches))
        # A sequence that stopped counts with all its steps, so that the bar reaches its end.
        self._reached[pair] = self.steps if outcome.decoding.stopped else outcome.step


@contextmanager
def growing(lattices: GrowingLattices) -> Generator[OnStep]:
    """Show lattices live where stderr is a terminal."""
    console = notes()
    if not _is_alive(console):
        # A dumb terminal cannot move the cursor: each refresh would print a new copy.
        yield _look_away
        return
    live = Live(
        console=console,
        get_renderable=lambda: lattices.draw(console),
        refresh_per_second=12,
        transient=True,
        vertical_overflow="crop",
    )
    with live:
        yield lattices.take


@contextmanager
def counting(count: StepCount) -> Generator[OnStep]:
    """Show a bar where stderr is a terminal.

    Members decoded alone come last; their number depends on the sets, so they are not counted.
    """
    console = notes()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(complete_style="#2aa198", finished_style="#5fa32c"),
        MofNCompleteColumn(),
        TextColumn("steps, batch {task.fields[batch]} of {task.fields[batches]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not _is_alive(console)) as bar:
        task = bar.add_task("decoding", total=count.total, batch=1, batches=len(count.batches))

        def take(outcome: StepOutcome) -> None:
            count.take(outcome)
            number = min(count.batch + 1, len(count.batches))
            what = "decoding" if count.batch < len(count.batches) else "decoding members alone"
            bar.update(task, completed=count.done, batch=number, description=what)

        yield take


def _pair(outcome: StepOutcome) -> TraceKey:
    return outcome.decoding.plan.prompt_id, outcome.decoding.plan.arm


def _is_alive(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _look_away(_: StepOutcome) -> None:
    """Ignore the step."""
