"""Traces as HTML for a notebook: offline, no script, styles inline, every text escaped.

No assumption is made about the page around it: text and lines take the colour of the notebook,
light or dark. A cell with its own background also sets the text colour of highest contrast.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tempo.policy.slots import SlotTable
from tempo.trace.glyphs import line_glyphs, token_glyphs
from tempo.trace.schema import TraceHeader
from tempo.vocabulary import NEVER_DIED, SINK_SLOT

# A notebook stores its outputs in the file, so what is shown is bounded.
MOST_STEPS = 24
MOST_MEMBERS = 12
MOST_PROMPT_SLOTS = 40
MOST_PROMPTS = 6
MOST_ARMS = 6
STEPS_IN_LINE, MEMBERS_IN_LINE = 8, 4
"""Sets of a run, and members of each, that are shown of one trace."""

_VIRIDIS = (
    *("440154", "471365", "482475", "463480", "414487", "3b528b", "355f8d"),
    *("2f6c8e", "2a788e", "25848e", "21918c", "1e9c89", "22a884", "2fb47c"),
    *("44bf70", "5ec962", "7ad151", "9bd93c", "bddf26", "dfe318", "fde725"),
)
_UNKNOWN = "cccccc"
_CELL = "padding:2px 6px;text-align:left;vertical-align:top;border:none"
# Notebooks style every second row of tables; each cell overrides that.
_PLAIN = f"{_CELL};background:transparent;color:inherit"
_NUMBER = "font-size:smaller"
_TABLE = "border-collapse:separate;border-spacing:3px;margin:4px 0;font-size:13px;color:inherit"
_SCROLL = "overflow-x:auto;max-width:100%;color:inherit;scrollbar-color:currentColor transparent"
_MONO = "font-family:monospace;white-space:pre"
_CHIP = f"{_MONO};display:inline-block;padding:1px 4px"
_BESIDE = ";border-left:1px solid"
_FRAME = "display:inline-block;border:1px solid currentColor;margin:1px 2px"
_SINK = "outline:2px solid currentColor;outline-offset:-1px;padding:0 3px"


@dataclass(frozen=True, slots=True)
class _Style:
    """A background and the text colour, black or white, with the higher contrast on it."""

    background: str
    text: str


def trace_markup(header: TraceHeader, slots: SlotTable) -> str:
    """The lattice of a trace: prompt, sets in columns, members coloured by probability.

    Later steps, further members and the middle of a long prompt are counted, not shown.
    """
    shown = range(1, min(slots.n_steps, MOST_STEPS) + 1)
    left_out = slots.n_steps - len(shown)
    rest = f"<p>{left_out} later steps are not shown.</p>" if left_out else ""
    lattice = _lattice(header, slots, shown) if shown else "<p>No set was written.</p>"
    facts, prompt = _facts(header, slots), _prompt(header, slots)
    name = f"Trace {header.prompt_id}, {header.arm}"
    return _region(name, f"<p>{facts}</p><p>{prompt}</p>{lattice}{rest}")


def run_markup(
    arms: Sequence[str],
    rows: Iterable[tuple[str, Mapping[str, tuple[TraceHeader, SlotTable]]]],
    *,
    n_prompts: int,
) -> str:
    """The first prompts of a run, a line for each arm; `rows` holds (prompt id, traces by arm)."""
    shown = [*rows]
    names = list(arms[:MOST_ARMS])
    body = "".join(_run_rows(prompt_id, traces, names) for prompt_id, traces in shown)
    left_out = [
        f"{n} more {name}{'s' if n > 1 else ''}"
        for n, name in ((n_prompts - len(shown), "prompt"), (len(arms) - len(names), "arm"))
        if n > 0
    ]
    rest = f"<p>Not shown: {' and '.join(left_out)}.</p>" if left_out else ""
    head = _head_row(["prompt", "arm", "sets"])
    title = f"Run of {n_prompts} prompts and {len(arms)} arms"
    table = f'<table style="{_TABLE}"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return _region(title, f"<p>{title}: {_line(', '.join(arms))}</p>{table}{rest}")


def probability_style(probability: float) -> _Style:
    """Viridis at a probability; grey where there is none."""
    if not np.isfinite(probability):
        return _Style(f"#{_UNKNOWN}", "#000")
    # Interpolated in sRGB between 21 stops, which follows matplotlib's viridis closely.
    stops = np.array([list(bytes.fromhex(stop)) for stop in _VIRIDIS], np.float64)
    at = np.linspace(0, 1, len(stops))
    rgb = [round(float(np.interp(probability, at, stops[:, channel]))) for channel in range(3)]
    bright = luminance(rgb)
    # The contrast ratios of WCAG 2.2 with white text and with black text.
    is_dark = (1.05 / (bright + 0.05)) > ((bright + 0.05) / 0.05)
    return _Style("#" + bytes(rgb).hex(), "#fff" if is_dark else "#000")


def luminance(rgb: Sequence[int]) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    channel = np.asarray(rgb, np.float64) / 255
    # The sRGB transfer function, and then the luminance weights of its three primaries.
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _line(text: str) -> str:
    return escape(line_glyphs(text))


def _isolated(text: str) -> str:
    """Text whose direction does not affect its neighbours; a leading space stays on the left."""
    return f'<bdi dir="ltr">{escape(text)}</bdi>'


def _region(label: str, content: str) -> str:
    """A block that scrolls sideways, by keyboard too."""
    name = escape(line_glyphs(label, longest=120))
    return f'<div role="region" tabindex="0" aria-label="{name}" style="{_SCROLL}">{content}</div>'


def _facts(header: TraceHeader, slots: SlotTable) -> str:
    n_sets, n_dead = slots.n_steps, int((slots.died_at_step != NEVER_DIED).sum())
    widths = np.bincount(slots.step)[1:]
    widest = f", the widest of {widths.max()}" if len(widths) else ""
    facts = [
        f"{n_sets} set{'' if n_sets == 1 else 's'}{widest}",
        f"{len(slots)} slots" + (f", {n_dead} pruned" if n_dead else ""),
        f"{len(header.layers)} layers x {len(header.heads)} heads",
        f"level {header.level}",
        f"stopped: {header.stopped}",
        f"model {header.model.get('name', 'unknown')}",
    ]
    return f"<b>{_line(f'{header.prompt_id}, {header.arm}')}</b>: {_line('; '.join(facts))}"


def _text(header: TraceHeader, slots: SlotTable, slot: int) -> str:
    return header.tokens[int(slots.token[slot])]


def _prompt(header: TraceHeader, slots: SlotTable) -> str:
    """Tokens of the prompt, slot 0 in a frame; the middle of a long one is counted."""
    n = slots.n_prompt
    # A quarter from the start, where the sink is, the rest from the end, which decoding continues.
    first = range(min(n, MOST_PROMPT_SLOTS // 4))
    last = range(max(len(first), n - (MOST_PROMPT_SLOTS - len(first))), n)
    n_hidden = n - len(first) - len(last)
    gap = f" \u2026 {n_hidden} slots \u2026 " if n_hidden else ""
    before, after = (
        "".join(_prompt_token(header, slots, s) for s in part) for part in (first, last)
    )
    return f'<span style="{_MONO};white-space:pre-wrap">{before}{gap}{after}</span>'


def _prompt_token(header: TraceHeader, slots: SlotTable, slot: int) -> str:
    # The sink gets a frame: it takes much attention in most heads whatever its token is.
    if slot != SINK_SLOT:
        return _isolated(line_glyphs(_text(header, slots, slot), longest=60))
    shown = escape(token_glyphs(_text(header, slots, slot), longest=40))
    return (
        f'<bdi dir="ltr" style="{_SINK}" title="slot 0, where the attention sink is">{shown}</bdi>'
    )


def _lattice(header: TraceHeader, slots: SlotTable, steps: range) -> str:
    sets = [slots.members(step).tolist() for step in steps]
    height = min(max(map(len, sets)), MOST_MEMBERS)
    rows = "".join(
        f'<tr style="background:transparent">{_rank_cell(rank)}'
        + "".join(
            _member(header, slots, one[rank]) if rank < len(one) else _empty() for one in sets
        )
        + "</tr>"
        for rank in range(height)
    )
    more = ""
    if any(len(one) > height for one in sets):
        hidden = [f"+{len(one) - height}" if len(one) > height else "" for one in sets]
        cells = "".join(f'<td style="{_PLAIN}">{each}</td>' for each in hidden)
        more = f'<tr style="background:transparent"><th style="{_PLAIN}">more</th>{cells}</tr>'
    head = _head_row(["rank", *(f"step {step}" for step in steps)])
    return f'<table style="{_TABLE}"><thead>{head}</thead><tbody>{rows}{more}</tbody></table>'


def _head_row(names: Sequence[str]) -> str:
    cells = "".join(
        f'<th scope="col" style="{_PLAIN};white-space:nowrap">{name}</th>' for name in names
    )
    return f'<tr style="background:transparent">{cells}</tr>'


def _rank_cell(rank: int) -> str:
    return f'<th scope="row" style="{_PLAIN};font-weight:normal">{rank}</th>'


def _empty() -> str:
    return f'<td style="{_PLAIN}"></td>'


def _member(header: TraceHeader, slots: SlotTable, slot: int) -> str:
    """One member: its token and its probability on the colour of that probability."""
    probability = float(slots.probability[slot])
    style = probability_style(probability)
    known = f"{probability:.2f}" if np.isfinite(probability) else "\u2013"
    colours = f"background:{style.background};color:{style.text}"
    return (
        f'<td style="{_CELL};{colours}" title="{_title(header, slots, slot)}">'
        f'<span style="{_MONO}">{_struck(header, slots, slot)}</span><br>'
        f'<span style="{_NUMBER}">{known}</span></td>'
    )


def _struck(header: TraceHeader, slots: SlotTable, slot: int) -> str:
    """The token, struck out where it was pruned."""
    token = _isolated(token_glyphs(_text(header, slots, slot)))
    return token if slots.died_at_step[slot] == NEVER_DIED else f"<s>{token}</s>"


def _title(header: TraceHeader, slots: SlotTable, slot: int) -> str:
    died = int(slots.died_at_step[slot])
    facts = f": slot {slot}, position {slots.position[slot]:g}"
    facts += "" if died == NEVER_DIED else f", pruned after step {died}"
    return escape(token_glyphs(_text(header, slots, slot), longest=60)) + facts


def _run_rows(
    prompt_id: str, traces: Mapping[str, tuple[TraceHeader, SlotTable]], arms: Sequence[str]
) -> str:
    cells = []
    for number, arm in enumerate(arms):
        sets = _sets_in_line(*traces[arm]) if arm in traces else "not decoded"
        name = _line(prompt_id) if number == 0 else ""
        cells.append(
            f'<tr style="background:transparent"><th scope="row" style="{_PLAIN}">{name}</th>'
            f'<td style="{_PLAIN}">{_line(arm)}</td><td style="{_PLAIN}">{sets}</td></tr>'
        )
    return "".join(cells)


def _sets_in_line(header: TraceHeader, slots: SlotTable) -> str:
    """The first sets side by side: one frame for each set, a colour for each member."""
    steps = range(1, min(slots.n_steps, STEPS_IN_LINE) + 1)
    sets = "".join(_set_in_line(header, slots, slots.members(step).tolist()) for step in steps)
    left_out = slots.n_steps - len(steps)
    return (sets or "no set") + (f" \u2026 {left_out} more" if left_out else "")


def _set_in_line(header: TraceHeader, slots: SlotTable, members: Sequence[int]) -> str:
    chips = []
    for rank, slot in enumerate(members[:MEMBERS_IN_LINE]):
        style = probability_style(float(slots.probability[slot]))
        colours = f"background:{style.background};color:{style.text}"
        chips.append(
            f'<span style="{_CHIP};{colours}{_BESIDE if rank else ""}">'
            f"{_struck(header, slots, slot)}</span>"
        )
    hidden = len(members) - len(chips)
    chips += [f" +{hidden}"] if hidden > 0 else []
    return f'<span style="{_FRAME}">{"".join(chips)}</span>'
