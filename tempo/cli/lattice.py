"""One decoded sequence in one line: ``The cat sat on the [couch|mat|floor] [.|,]``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from tempo.cli.glyphs import visible
from tempo.trace.trace import Trace


class Member(NamedTuple):
    """One member of a set: what it adds to the text, how probable it was, whether it lives."""

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
        """The line, coloured by probability; cut on the left to a number of columns."""
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
    space = " " if all(member.text.startswith(" ") for member in members) else ""
    line = Text(space).append("[", style=_SYNTAX)
    for rank, member in enumerate(members):
        line.append("|" if rank else "", style=_SYNTAX)
        line.append(visible(member.text[len(space) :]), style=_style(member))
    return line.append("]", style=_SYNTAX)


def _style(member: Member) -> str:
    """Its colour; the pruned are struck."""
    return f"{style_of(member.probability)}{'' if member.alive else ' strike'}"


def _tail(line: Text, columns: int) -> Text:
    """The end of a line that fits, marked where it was cut."""
    if line.cell_len <= columns:
        return line
    start, room = len(line), columns - 1
    while (room := room - cell_len(line.plain[start - 1])) >= 0:
        start -= 1
    return Text.assemble(("…", _SYNTAX), line[start:])
