import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tempo.errors import OutputError
from tempo.testing.planted import favour_sets, noisy, planted_run, planted_trace, uniform, with_sink
from tempo.trace.run import Run
from tempo_analysis.parallel.figures import (
    divergence_figure,
    entropy_figure,
    head_figure,
    ratio_figure,
)
from tempo_analysis.parallel.report import report_text
from tempo_analysis.parallel.results import analyze
from tempo_analysis.parallel.tables import fact_rows, tables_of
from tempo_analysis.parallel.trace_figures import drawable_glyphs, lattice_figure
from tempo_analysis.report.figure_style import Drawing, new_figure, save_figure
from tests.planted_runs import marked

WORDS = {0: " $x$", 1: "\n", 2: "|", 3: " \u4e2d", 4: "```", 5: "\u200b", 6: "", 7: " a_b^{2}"}
PLANS = {
    "isolated": {"rows": noisy(with_sink(0.5, favour_sets(0.5)), 0.3), "words": WORDS},
    "visible": {"rows": noisy(uniform, 0.3), "relation": "visible"},
    "greedy": {"widths": (1, 1, 1), "relation": "greedy", "rows": noisy(with_sink(0.5), 0.3)},
    "visible@isolated": {"relation": "visible"},
}


def planted(n_prompts: int = 9, **changed) -> Run:
    plans = {name: plan | changed for name, plan in PLANS.items()}
    settings = {"replays": {"visible@isolated": "isolated"}}
    return marked(planted_run(plans, n_prompts=n_prompts, settings=settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    run = planted()
    analyze(run).save(place)
    return place


def test_everything_is_written_and_nothing_is_left_half_done(folder: Path):
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"results.json", "report.md", "ratio_by_step.png", "ratio_by_step.svg"} <= names
    assert {"heads_isolated.png", "readouts_by_step.png", "lattice_p0000_isolated.png"} <= names
    assert not any(name.endswith(".tmp") for name in names)


@pytest.mark.usefixtures("blank_figures")
def test_figures_of_others_beside_those_of_a_run_stay(tmp_path: Path):
    results = analyze(planted(1))
    results.save(tmp_path)
    (tmp_path / "figures" / "mine.png").write_text("")
    results.save(tmp_path, force=True)
    assert (tmp_path / "figures" / "mine.png").exists()


def test_the_results_on_disk_are_those_of_the_analysis(folder: Path):
    assert json.loads((folder / "results.json").read_text()) == analyze(planted()).document()


def test_every_figure_that_the_report_names_exists(folder: Path):
    lines = (folder / "report.md").read_text().splitlines()
    files = [line.split("(")[-1].rstrip(")") for line in lines if line.startswith("![")]
    assert len(files) >= 7
    assert all((folder / file).stat().st_size > 5000 for file in files)


def test_figures_are_well_formed(folder: Path):
    for path in (folder / "figures").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    for path in (folder / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_report_says_every_verdict(folder: Path):
    text = (folder / "report.md").read_text()
    results = analyze(planted())
    for metric in results.metrics:
        assert metric.verdict in text
    for heading in ("What was found", "What was run", "Every number", "Heads", "Lattices"):
        assert f"\n## {heading}\n" in text
    assert "cannot say" in text
    assert "isolated\\|visible" in text


def test_tables_are_tables(folder: Path):
    """Every row has the cells of its header, and a blank line ends every table."""
    lines = (folder / "report.md").read_text().splitlines()
    cells = [line.replace("\\|", "").count("|") if line.startswith("|") else 0 for line in lines]
    starts = [n for n, count in enumerate(cells) if count and not cells[n - 1]]
    assert len(starts) >= 7
    for start in starts:
        end = next(n for n in range(start, len(lines)) if not lines[n].startswith("|"))
        assert set(cells[start:end]) == {cells[start]}
        assert lines[end] == lines[start - 1] == ""


def test_the_report_is_the_same_for_the_same_run():
    first, second = planted(), planted()
    drawing = Drawing("a", "A", "", new_figure(1.0))
    texts = [report_text(run, analyze(run), [drawing]) for run in (first, second)]
    assert texts[0] == texts[1]


def test_at_most_twenty_lattices_are_written():
    run = planted(23)
    text = report_text(run, analyze(run), ())
    assert "The first 20 of 23 prompts." in text
    assert text.count("\n**p00") == 20


def test_what_was_run_is_said_as_it_was_recorded():
    run = planted(1)
    facts = {"name": "tiny|model", "fingerprint": "abc123", "dtype": "float32"}
    made = {"model_facts": facts, "versions": {"torch": "9.9"}, "command": "tempo compare x"}
    rows = fact_rows(replace(run, settings=dict(run.settings) | made | {"threshold": 0.25}))
    assert (rows["model fingerprint"], rows["torch version"]) == ("abc123", "9.9")
    assert (rows["command"], rows["threshold"], rows["prompts"]) == ("tempo compare x", "0.25", "1")


def test_the_heads_that_differ_most_surely_come_first():
    run = planted(12, n_layers=4, n_heads=5)
    tables = {table.name: table for table in tables_of(run, analyze(run))}
    rows = tables["heads"].rows
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ("isolated", "visible")}
    assert [len(found) for found in by_arm.values()] == [10, 10]
    for found in by_arm.values():
        q = [row["q"] for row in found]
        assert q == sorted(q)
        assert all(row["head"].startswith("L") for row in found)


@pytest.mark.parametrize(
    "changed", [{"level": "reduced"}, {"widths": (1, 1, 1)}, {"widths": ()}, {"prompt_length": 1}]
)
def test_a_report_is_written_whatever_is_missing(changed, tmp_path: Path):
    run = planted(2, **changed)
    analyze(run).save(tmp_path)
    path = tmp_path / "report.md"
    assert "Not answered" in path.read_text() or "prompt_length" in changed
    assert "nan" not in path.read_text().lower()


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path):
    (tmp_path / "figures").write_text("in the way")
    run = planted(1)
    with pytest.raises(OutputError, match="expected to write to"):
        analyze(run).write_report(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" cat", "\u2423cat"),
        ("\n\n", "\u21b5\u21b5"),
        ("\t", "\u21e5"),
        ("$x$", "$x$"),
        ("\u4e2d", "\\u4e2d"),
        ("\u200b", "\\u200b"),
        ("\x07", "\\x07"),
        ("", "\u2205"),
        ("extraordinarily", "extraordina\u2026"),
    ],
)
def test_tokens_are_shown_on_one_line_in_glyphs_that_the_font_has(text, shown):
    assert drawable_glyphs(text) == shown


def test_a_lattice_shows_every_member_and_counts_what_it_leaves_out(tmp_path: Path):
    trace = planted_trace(widths=(2, 1, 3) * 9, words=WORDS)
    figure = lattice_figure(trace, n_steps=12)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(texts) == 24
    assert "15 later steps left out" in figure.get_suptitle()
    assert save_figure(figure, tmp_path, "lattice") == "lattice.png"


def test_figures_draw_chance_and_null(tmp_path: Path):
    found = analyze(planted())
    ratios = {arm: each.ratio for arm, each in found.by_arm.items() if each.ratio}
    ratio = ratio_figure(ratios)
    assert all(axes.get_yscale() == "log" for axes in ratio.axes)
    labels = {label for axes in ratio.axes for label in axes.get_legend_handles_labels()[1]}
    assert {"chance: even attention", "null: same labels on the greedy run"} <= labels
    curve = ratios["isolated"]["without"].by_step.estimate
    drawn = [line.get_ydata() for line in ratio.axes[0].lines]
    assert any(np.array_equal(y, curve, equal_nan=True) for y in drawn)
    entropy = entropy_figure({a: e.entropy for a, e in found.by_arm.items()}, found.greedy)
    assert "greedy (null)" in entropy.axes[0].get_legend_handles_labels()[1]
    assert divergence_figure(found.divergence).axes
    arm = found.by_arm["isolated"]
    maps = head_figure("isolated", arm.ratio["without"], arm.heads)
    np.testing.assert_array_equal(
        maps.axes[0].images[0].get_array(), arm.ratio["without"].log_ratio_by_head
    )


def test_pyplot_stays_out():
    import subprocess
    import sys

    program = (
        "import sys, tempo_analysis.parallel.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
