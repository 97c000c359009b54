"""What a terminal shows: lattices that grow, colours, a bar; and nothing of it elsewhere."""

import re
from dataclasses import replace
from functools import cache
from io import StringIO

import pytest
from rich.console import Console

from tempo.cli.console import visible
from tempo.cli.live import (
    BANDS,
    GrowingLattices,
    Lattice,
    Member,
    StepCount,
    lattice_of,
    legend,
    style_of,
)
from tempo.engine.state import StepOutcome
from tempo.run.api import generate
from tests.command_line import CAT, plain, with_tiny
from tests.decoding import model_of

TERMINAL = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color", "COLUMNS": "70"}
COLOUR = re.compile(r"\x1b\[[0-9;]*[34]8;[25];")


# --- characters


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("↵ café 猫 [x]", "↵ café 猫 [x]"),
        ("\n\t\r\x1b[2J", "↵⇥␍␛[2J"),
        ("\x7f\x85", "␡⟨0085⟩"),
        ("\u202eabc\u2066", "⟨202E⟩abc⟨2066⟩"),
        ("a\u00a0b\u200bc\u2028", "a⟨00A0⟩b⟨200B⟩c⟨2028⟩"),
    ],
)
def test_every_character_is_visible_on_one_line(text: str, shown: str):
    assert visible(text) == shown


# --- the line


def test_a_lattice_is_one_line_with_sets_in_brackets():
    sets = [
        [Member(" couch", 0.4), Member(" mat", 0.3), Member(" floor", 0.1)],
        [Member(".", 0.6), Member(",", 0.2)],
        [Member(" It", 0.9)],
    ]
    assert Lattice(CAT, [*sets]).text().plain == f"{CAT} [couch|mat|floor][.|,] It"


def test_brackets_and_newlines_in_tokens_stay_text():
    sets = [[Member("[bold]", 0.5), Member("\n", 0.2)], [Member("[/]", 1.0)]]
    assert Lattice("a\nb", [*sets]).text().plain == "a↵b[[bold]|↵][/]"


def test_a_lattice_reads_as_its_trace_does():
    run = generate(model_of("llama"), CAT, threshold=0.05, steps=5)
    assert lattice_of(run[0]).text().plain == visible(run[0].lattice())


def test_the_pruned_are_struck():
    run = generate(model_of("llama"), CAT, threshold=0.05, steps=5, prune="attention:0.05")
    line = lattice_of(run[0]).text()
    n_dead = int((~run[0].slots.alive).sum())
    assert n_dead
    assert sum(str(span.style).endswith("strike") for span in line.spans) == n_dead


def test_colours_follow_the_probability():
    assert [style_of(p) for p in (0.0, 0.19, 0.2, 0.5, 0.79, 0.8, 1.0)] == [
        BANDS[band][1] for band in (0, 0, 1, 2, 3, 4, 4)
    ]
    line = Lattice("", [[Member("a", 0.1), Member("b", 0.9)]]).text()
    styles = {line.plain[span.start]: span.style for span in line.spans}
    assert (styles["a"], styles["b"]) == (BANDS[0][1], BANDS[-1][1])
    assert all(style in {str(span.style) for span in legend().spans} for _, style in BANDS)


def test_a_long_lattice_shows_its_end():
    line = Lattice("A long prompt, 猫猫猫", [[Member("x", 0.5)]]).text(columns=6)
    assert line.plain == "…猫猫x"
    assert line.cell_len <= 6


# --- the terminal


def test_a_terminal_sees_the_lattice_grow_in_colour():
    result = with_tiny("generate", CAT, "--steps", 3, **TERMINAL)
    assert "probability  ■ to 0.2" in plain(result.stderr)
    assert COLOUR.search(result.stderr)
    assert COLOUR.search(result.stdout)
    assert plain(result.stdout).startswith(CAT)


def test_no_color_is_honoured():
    result = with_tiny("generate", CAT, "--steps", 3, **TERMINAL, NO_COLOR="1")
    assert "probability  ■ to 0.2" in plain(result.stderr)
    assert not COLOUR.search(result.stderr + result.stdout)


def test_a_dumb_terminal_and_a_pipe_see_no_control_codes():
    for variables in ({}, {**TERMINAL, "TERM": "dumb", "NO_COLOR": "1"}):
        result = with_tiny("generate", CAT, "--steps", 2, **variables)
        assert "\x1b[2K" not in result.stderr
        assert "■" not in result.stderr
    assert "\x1b" not in with_tiny("generate", CAT, "--steps", 2).output


def test_a_document_has_no_colour_even_on_a_terminal():
    result = with_tiny("generate", CAT, "--steps", 2, "--json", **TERMINAL)
    assert "\x1b" not in result.stdout


def test_compare_shows_a_bar_on_a_terminal_and_nothing_of_it_on_a_pipe():
    command = ("compare", CAT, "--arms", "isolated,greedy", "--steps", 2)
    assert re.search(
        r"decoding .* \d/4 +steps, batch 1 of 1", plain(with_tiny(*command, **TERMINAL).stderr)
    )
    assert "decoding" not in with_tiny(*command).stderr


# --- what is counted and drawn


@cache
def real_outcomes() -> tuple[StepOutcome, ...]:
    seen: list[StepOutcome] = []
    generate(model_of("llama"), CAT, threshold=0.05, steps=3, on_progress=seen.append)
    return tuple(seen)


def outcome(pair: tuple[str, str], step: int, stopped: str = "") -> StepOutcome:
    """A step of a sequence of our own making."""
    real = real_outcomes()[0]
    plan = replace(real.decoding.plan, prompt_id=pair[0], arm=pair[1])
    return replace(real, step=step, decoding=replace(real.decoding, plan=plan, stopped=stopped))


def test_steps_are_counted_over_batches_and_early_ends():
    count = StepCount([[("p0", "a"), ("p0", "b")], [("p1", "a")]], steps=5)
    assert (count.total, count.done) == (15, 0)
    reached = []
    for pair, step, stopped in [
        (("p0", "a"), 0, ""),
        (("p0", "a"), 1, ""),
        (("p0", "b"), 1, "eos"),
        (("p0", "a"), 2, ""),
        (("p1", "a"), 1, ""),
        (("p1", "a"), 5, ""),
    ]:
        count.take(outcome(pair, step, stopped))
        reached.append(count.done)
    assert reached == [0, 1, 6, 7, 11, 15]


def test_a_run_that_goes_on_counts_the_batches_it_skips():
    count = StepCount([[("p0", "a")], [("p1", "a")]], steps=5)
    count.take(outcome(("p1", "a"), 1))
    assert count.done == 6


def drawn(lattices: GrowingLattices, **size: int) -> list[str]:
    console = Console(file=StringIO(), color_system=None, **size)
    console.print(lattices.draw(console))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_single_lattice_grows_to_that_of_its_trace():
    model = model_of("llama")
    lattices = GrowingLattices({"p0000": CAT}, model.token_text)
    assert drawn(lattices, width=80, height=10) == []
    run = generate(model, CAT, threshold=0.05, steps=3, on_progress=lattices.take)
    first, last = drawn(lattices, width=80, height=10)
    assert first == visible(run[0].lattice())
    assert last.startswith("probability")


def test_many_lattices_take_a_line_each_and_the_latest_stay():
    lattices = GrowingLattices({f"p{n}": f"a text of number {n}" for n in range(9)}, str)
    for n in range(9):
        lattices.take(outcome((f"p{n}", "a"), 0))
    lines = drawn(lattices, width=16, height=5)
    assert lines[:3] == [f"p{n}  …of number {n}" for n in (6, 7, 8)]
