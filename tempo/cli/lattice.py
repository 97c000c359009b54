"""One decoded sequence in one line: ``The cat sat on the [couch|mat|floor] [.|,]``."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

from tempo.cli.glyphs import visible
from tempo.trace import Trace

Member = tuple[str, float]
"""Text and probability."""

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
    return list(zip(map(trace.token_text, slots), probability, strict=True))


def _set_text(members: Sequence[Member]) -> Text:
    if len(members) == 1:
        return Text(visible(members[0][0]), style=style_of(members[0][1]))
    space = " " if all(text.startswith(" ") for text, _ in members) else ""
    line = Text(space).append("[", style=_SYNTAX)
    for rank, (text, probability) in enumerate(members):
        line.append("|" if rank else "", style=_SYNTAX)
        line.append(visible(text[len(space) :]), style=style_of(probability))
    return line.append("]", style=_SYNTAX)


def _tail(line: Text, columns: int) -> Text:
    """The end of a line that fits, marked where it was cut."""
    if line.cell_len <= columns:
        return line
    start, room = len(line), columns - 1
    while (room := room - cell_len(line.plain[start - 1])) >= 0:
        start -= 1
    return Text.assemble(("…", _SYNTAX), line[start:])
