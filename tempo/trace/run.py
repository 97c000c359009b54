"""A run: all traces of one command, by prompt and arm."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tempo.errors import InputError
from tempo.trace.glyphs import line_glyphs
from tempo.trace.notebook import MOST_ARMS, MOST_PROMPTS, run_markup
from tempo.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a run; `category` is empty where the user gave none."""

    id: str
    text: str
    category: str = ""


@dataclass(frozen=True)
class Run:
    """Traces of one command.

    Attributes:
        prompts: In input order.
        arms: Names of the arms, in the order given.
        policies: The policy of each arm, as recorded.
        traces: One trace for each (prompt id, arm) that was decoded; reading is lazy on disk.
        settings: The options the run was made with.
        folder: Folder of the run, None in memory.
        already_complete: The run was complete in its folder, and nothing was decoded.
    """

    prompts: tuple[Prompt, ...]
    arms: tuple[str, ...]
    policies: Mapping[str, Mapping[str, Any]]
    traces: Mapping[tuple[str, str], Trace] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    already_complete: bool = False

    def trace(self, prompt_id: str | None = None, arm: str | None = None) -> Trace:
        """The trace of one prompt under one arm; on disk, no other trace is opened.

        Args:
            prompt_id: May be left out where the run has one prompt.
            arm: May be left out where the run has one arm.

        Raises:
            InputError: No such prompt or arm, or several to choose from; the message lists them.

        Example:
            >>> tempo.generate(model, "The cat sat on the").trace()
            >>> run.trace("p0003", "isolated")
        """
        ids = [prompt.id for prompt in self.prompts]
        chosen = (_only(ids, prompt_id), _only(self.arms, arm))
        if chosen not in self.traces:
            given = [name for name in (prompt_id, arm) if name is not None]
            raise InputError(
                f"expected a prompt of {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''} and "
                f"an arm of {', '.join(self.arms)}, got {', '.join(map(repr, given)) or 'neither'}"
                f"; such as run.trace({ids[0]!r}, {self.arms[0]!r})"
            )
        return self.traces[chosen]

    def pairs(self, *arms: str) -> Iterator[tuple[Prompt, tuple[Trace, ...]]]:
        """Prompts decoded under all of these arms, with their traces in the order of the arms."""
        for prompt in self.prompts:
            # A prompt that lacks an arm is left out: comparisons are paired by prompt.
            if all((prompt.id, arm) in self.traces for arm in arms):
                yield prompt, tuple(self.traces[prompt.id, arm] for arm in arms)

    def alone(self, prompt_id: str) -> dict[tuple[int, int], Trace]:
        """Twins by (step, rank): in each, that member of that set has no siblings."""
        arm = f"alone@{self.settings.get('alone_of')}/"
        found: dict[tuple[int, int], Trace] = {}
        for one, name in self.traces:
            if one == prompt_id and name.startswith(arm):
                step, rank = name.removeprefix(arm).split(".")
                found[int(step), int(rank)] = self.traces[one, name]
        return found

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.traces.values())

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, number: int) -> Trace:
        # By its key: going through the values would open every trace of a folder before this one.
        return self.traces[list(self.traces)[number]]

    def __repr__(self) -> str:
        rows = [
            f"{prompt_id} {arm:>10}  {line_glyphs(trace.lattice(), longest=160)}"
            for prompt_id, traces in self._first()
            for arm, trace in traces.items()
        ]
        hidden = len(self.prompts) - MOST_PROMPTS
        rest = [f"and {hidden} more prompts"] if hidden > 0 else []
        head = f"Run({len(self.prompts)} prompts x {len(self.arms)} arms)"
        return "\n".join([head, *rows, *rest])

    def _repr_html_(self) -> str:
        rows = (
            (prompt_id, {arm: (trace.header, trace.slots) for arm, trace in traces.items()})
            for prompt_id, traces in self._first()
        )
        return run_markup(self.arms, rows, n_prompts=len(self.prompts))

    def _first(self) -> Iterator[tuple[str, dict[str, Trace]]]:
        """The first arms of the first prompts; only their traces are read."""
        for prompt in self.prompts[:MOST_PROMPTS]:
            pairs = ((arm, (prompt.id, arm)) for arm in self.arms[:MOST_ARMS])
            yield prompt.id, {arm: self.traces[key] for arm, key in pairs if key in self.traces}


def _only(names: Sequence[str], given: str | None) -> str:
    """The name given, or the only one there is; empty where there are several."""
    return given if given is not None else names[0] if len(names) == 1 else ""
