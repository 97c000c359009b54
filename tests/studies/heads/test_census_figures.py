"""Figures, tables and markup of a census: what they show is what its document holds."""

import copy
import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tempo.cli.heads import document_of
from tempo.errors import CorruptTraceError, OutputError
from tempo_analysis.report.csv import write_tables
from tempo_analysis.report.document import number_of
from tempo_analysis.report.figure_style import save_drawings
from tempo_analysis.report.table import Table
from tempo_analysis.studies.heads.figures import (
    RING,
    activations_figure,
    bos_figure,
    census_drawings,
    entropy_by_depth_figure,
    offsets_figure,
    roles_figure,
)
from tempo_analysis.studies.heads.findings import Census, SavedCensus
from tempo_analysis.studies.heads.result import (
    Document,
    census_markup,
    further_of,
    label_of,
    losses_of,
    read_census,
    roles_of,
    shape_of,
    spectrum_of,
)
from tempo_analysis.studies.heads.tables import census_facts, census_tables
from tests.planted_census import (
    COPIES,
    EMPTY,
    HEADS,
    HELD,
    LAYERS,
    OPPOSES,
    REFUSED,
    SEQUENCES,
    SILENCED,
    WEIGHT_ROLE,
    planted_census,
)
from tests.trace.test_notebook import HOSTILE, Page


@pytest.fixture(scope="module")
def census() -> Census:
    return planted_census()


@pytest.fixture(scope="module")
def document(census: Census) -> Document:
    return census.document()


def changed(document: Document, **parts: Any) -> Document:
    return copy.deepcopy(document) | parts


def without_detail(document: Document) -> Document:
    """The census of a model that was asked nothing of its texts."""
    return changed(document, detail={"battery": document["detail"]["battery"]})


def table(document: Document, name: str) -> Table:
    return next(one for one in census_tables(document) if one.name == name)


def cell_panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_images()]


def ringed(axes: Axes) -> set[tuple[int, int]]:
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    rings = [box for box in boxes if to_hex(box.get_edgecolor()).upper() == RING]
    return {(round(box.get_y() + 0.5), round(box.get_x() + 0.5)) for box in rings}


# --- the document read back


def test_every_number_of_a_role_comes_back_from_the_document(census: Census, document: Document):
    found = {role.role: role for role in roles_of(document)}
    for name, exact in (census.roles | census.more).items():
        for column in ("score", "chance", "low", "high", "q", "percentile"):
            np.testing.assert_array_equal(found[name].column[column], getattr(exact, column))
        np.testing.assert_array_equal(found[name].assigned, exact.assigned)
        assert found[name].null_p99 == exact.null_p99
        assert found[name].is_further == (name in census.more)


def test_the_planted_heads_hold_their_roles_and_no_others(document: Document):
    for role in roles_of(document):
        held = HELD.get(role.role, [COPIES] if role.role == WEIGHT_ROLE else [(4, 3)])
        assert set(role.holders()) == set(held), role.role


def test_a_head_without_data_is_nan_and_stands_in_no_order(document: Document):
    induction = next(role for role in roles_of(document) if role.role == "induction")
    assert np.isnan(induction.score[EMPTY])
    assert len(induction.best_first()) == LAYERS * HEADS - 1
    assert EMPTY not in induction.best_first()


def test_whatever_is_known_of_every_head_is_found_by_its_place(document: Document):
    effects = {"L1H2": {"drop": {"estimate": 0.5, "low": 0.1, "high": 0.9, "n": 8, "method": "t"}}}
    detail = document["detail"] | {"names": {"effect": effects}, "odd": [[1.0], [2.0, 3.0]]}
    found = further_of(changed(document, detail=detail))
    assert set(found) == {"sinks by head percent", "names effect drop"}
    assert found["names effect drop"][1, 2] == 0.5
    assert np.isnan(found["names effect drop"]).sum() == LAYERS * HEADS - 1
    assert set(losses_of(document)) == set(SILENCED)


def test_names_are_said_in_words():
    assert label_of("ov_copying") == "OV copying"
    assert label_of("s_inhibition") == "S-inhibition"
    assert label_of("normalised_without_sink") == "entropy / ln n without slot 0"
    assert np.isnan(number_of(None))


@pytest.mark.parametrize(
    "damage",
    [
        {"rules": {}},
        {"roles": {"induction": [{"head": "L0H0"}]}},
        {"roles": {"induction": [{"head": "elsewhere"}]}},
        {"roles": {"induction": None}},
    ],
    ids=["no rules", "no score", "no head", "no heads"],
)
def test_a_damaged_census_is_refused_in_one_line(document: Document, damage: Document):
    with pytest.raises(CorruptTraceError, match="expected every role of a census") as caught:
        roles_of(changed(document, **damage))
    assert "\n" not in str(caught.value)


def test_a_head_that_the_model_does_not_have_is_refused(document: Document):
    facts = document["model_facts"] | {"n_layers": 2}
    with pytest.raises(CorruptTraceError, match="2 x 4 heads"):
        roles_of(changed(document, model_facts=facts))


def test_a_census_that_does_not_say_how_many_heads_is_refused(document: Document):
    with pytest.raises(CorruptTraceError, match="n_layers and n_heads"):
        shape_of(changed(document, model_facts={}))


# --- figures


def test_every_role_has_a_map_with_its_heads_ringed_and_its_chance_in_the_title(
    document: Document,
):
    panels = cell_panels(roles_figure(document))
    roles = roles_of(document)
    assert len(panels) == len(roles)
    for axes, role in zip(panels, roles, strict=True):
        assert ringed(axes) == set(role.holders())
        first, second = axes.get_title().splitlines()
        assert first == label_of(role.role)
        assert second.startswith(f"chance {role.mean_chance():.2g}; {len(role.holders())} head")
        drawn = np.ma.filled(axes.get_images()[0].get_array().astype(float), np.nan)
        np.testing.assert_array_equal(drawn, role.score)


def test_heads_without_data_show_the_hatched_ground(document: Document):
    axes = cell_panels(roles_figure(document))[1]
    assert axes.get_title().startswith("induction")
    assert axes.patch.get_hatch()
    mask = np.ma.getmaskarray(axes.get_images()[0].get_array())
    assert np.argwhere(mask).tolist() == [list(EMPTY)]


def test_scores_below_zero_are_drawn_on_both_sides_of_it(document: Document):
    maps = {axes.get_title().splitlines()[0]: axes for axes in cell_panels(roles_figure(document))}
    image = maps["OV copying"].get_images()[0]
    assert image.get_clim() == (-0.9, 0.9)
    assert image.get_array()[OPPOSES] == -0.7
    assert maps["previous token"].get_images()[0].get_clim()[0] == 0


def test_a_role_that_no_head_comes_near_stays_pale(document: Document):
    maps = {axes.get_title().splitlines()[0]: axes for axes in cell_panels(roles_figure(document))}
    image = maps["sibling attending"].get_images()[0]
    assert image.get_clim() == (0, 0.3)  # the threshold
    assert image.get_array().max() < 0.15


def test_the_offset_profiles_are_those_of_the_best_positional_heads(document: Document):
    axes = offsets_figure(document).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    best = next(role for role in roles_of(document) if role.role == "positional").best_first()[0]
    assert str(best) == "L0H1"
    assert lines["L0H1"].get_ydata()[1] == 0.8
    np.testing.assert_allclose(lines["chance: even rows"].get_ydata(), 1 / 16)
    assert len(lines) == 7


def test_without_the_positional_role_the_highest_profiles_are_drawn(document: Document):
    roles = {name: each for name, each in document["roles"].items() if name != "positional"}
    axes = offsets_figure(changed(document, roles=roles)).axes[0]
    assert axes.get_lines()[0].get_label() == "L0H1"


def test_the_bos_map_shows_the_mass_and_what_is_written_from_it(document: Document):
    mass, written = cell_panels(bos_figure(document))
    value, _ = spectrum_of(document)["value_share_of_sink"]
    np.testing.assert_array_equal(np.ma.filled(written.get_images()[0].get_array()), value)
    assert ringed(mass) == set(HELD["bos_sink"])
    assert "chance 0.1" in mass.get_title()
    roles = {name: each for name, each in document["roles"].items() if name != "bos_sink"}
    assert len(cell_panels(bos_figure(changed(document, roles=roles)))) == 1


def test_entropy_is_drawn_for_every_head_and_as_their_mean(document: Document):
    panels = entropy_by_depth_figure(document).axes
    for axes, name in zip(panels, ("normalised", "normalised_without_sink"), strict=True):
        value, _ = spectrum_of(document)[name]
        *heads, mean, chance = axes.get_lines()
        np.testing.assert_array_equal([line.get_ydata() for line in heads], value.T)
        np.testing.assert_allclose(mean.get_ydata(), value.mean(1))
        assert set(chance.get_ydata()) == {1.0}


def test_activations_are_drawn_by_depth_and_channel(document: Document):
    axes = activations_figure(document).axes[0]
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata()[[0, -1]], [5, 2000])
    points = {each.get_label(): len(each.get_offsets()) for each in axes.collections}
    assert points == {"channel 3": 5, "channel 7": 2}


def test_many_channels_are_drawn_as_three_and_the_others(document: Document):
    found = document["detail"]["activations"] | {"channel_of_largest": [5, 5, 4, 4, 3, 3, 9]}
    detail = document["detail"] | {"activations": found}
    axes = activations_figure(changed(document, detail=detail)).axes[0]
    labels = [each.get_label() for each in axes.collections]
    assert labels == ["channel 3", "channel 4", "channel 5", "other channels"]


def test_figures_are_written_as_png_and_svg(document: Document, tmp_path: Path):
    (tmp_path / "figures").mkdir()
    drawings = census_drawings(document)
    save_drawings(drawings, tmp_path / "figures")
    files = {one.title: f"{one.name}.png" for one in drawings}
    assert len(files) == 5
    for name in files.values():
        png = tmp_path / "figures" / name
        assert png.read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(png.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_only_what_was_asked_is_drawn(document: Document):
    assert [one.title for one in census_drawings(without_detail(document))] == ["Roles"]
    nothing = changed(without_detail(document), roles={}, more_roles={})
    assert census_drawings(nothing) == ()


def test_figures_that_cannot_be_written_say_so(document: Document, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        SavedCensus(document).save(tmp_path / "file")


# --- tables


def test_the_table_of_roles_says_who_holds_them_and_where(census: Census, document: Document):
    rows = {row["role"]: row for row in table(document, "roles").rows}
    assert len(rows) == len(HELD) + 2
    row, exact = rows["induction"], census.roles["induction"]
    assert (row["assigned"], row["best"].split()[0]) == (1, "L4H3")
    assert row["score"] == exact.score[4, 3]
    assert (row["threshold"], row["null_p99"]) == (0.3, exact.null_p99)
    assert row["chance"] == pytest.approx(0.1)
    depth = census.depth["induction"]
    assert row["centroid"] == depth.centroid.estimate
    assert (row["centroid_low"], row["centroid_high"]) == (depth.centroid.low, depth.centroid.high)
    assert row["median"] == depth.median.estimate
    assert np.isnan(rows["OV copying"]["centroid_low"])
    assert rows["OV copying"]["centroid"] == pytest.approx(3 / 5)


def test_a_role_without_data_has_no_depth(document: Document):
    empty = [entry | {"score": None} for entry in document["roles"]["induction"]]
    broken = changed(document, roles=document["roles"] | {"induction": empty})
    row = next(row for row in table(broken, "roles").rows if row["role"] == "induction")
    assert row["best"] == ""
    assert all(np.isnan(row[key]) for key in ("score", "centroid", "median"))


def test_every_holder_has_a_row_with_what_silencing_it_costs(census: Census, document: Document):
    rows = {(row["role"], row["head"]): row for row in table(document, "role_heads").rows}
    assert len(rows) == sum(map(len, HELD.values())) + 2
    row, exact = rows["previous token", "L0H1"], census.roles["previous_token"]
    for name in ("score", "low", "high", "chance", "q", "percentile"):
        assert row[name] == getattr(exact, name)[0, 1]
    assert row["n"] == SEQUENCES
    assert row["loss"] == pytest.approx(0.25, abs=0.02)
    assert row["loss_low"] < row["loss"] < row["loss_high"]
    assert np.isnan(rows["previous token", "L1H2"]["loss"])


def test_silenced_heads_stand_with_their_roles_the_costliest_first(document: Document):
    rows = table(document, "silenced").rows
    assert [row["head"] for row in rows] == ["L4H3", "L0H1"]
    assert rows[0]["roles"] == "induction, prefix matching"
    assert rows[1]["roles"] == "previous token, positional"


def test_the_spectrum_has_a_row_for_every_head(document: Document):
    found = table(document, "spectrum")
    value, chance = spectrum_of(document)["normalised"]
    assert len(found.rows) == LAYERS * HEADS
    assert found.rows[HEADS + 2]["head"] == "L1H2"
    assert found.rows[HEADS + 2]["normalised"] == value[1, 2]
    assert found.rows[HEADS + 2]["normalised_chance"] == chance[1, 2]


def test_what_was_lost_and_refused_is_said(document: Document):
    facts = census_facts(document)
    assert facts["texts lost delimiters"] == r"'\n\n'"
    assert facts["texts sha256"] == "1" * 64
    assert facts["model fingerprint"] == "planted"
    assert "by zero, on 8 texts of 64 tokens" in facts["heads silenced"]
    assert "retrieval" in facts["roles"]
    (row,) = table(document, "refusals").rows
    assert row == {"role": "retrieval", "reason": REFUSED["retrieval"]}


def test_tables_are_written_as_csv_with_every_digit(document: Document, tmp_path: Path):
    tables = census_tables(document)
    paths = write_tables(tables, tmp_path)
    assert [path.stem for path in paths] == [one.name for one in tables]
    with (tmp_path / "tables" / "role_heads.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    exact = table(document, "role_heads").rows
    assert [float(row["score"]) for row in rows] == [row["score"] for row in exact]


def test_a_census_without_details_has_the_tables_that_it_can_fill(document: Document):
    names = [one.name for one in census_tables(without_detail(document))]
    assert names == ["refusals", "roles", "role_heads", "facts"]


# --- markup and the whole report


def test_the_markup_says_who_holds_every_role(census: Census, document: Document):
    page = Page(census._repr_html_())
    assert "Heads of planted." in page.text
    for role in roles_of(document):
        assert label_of(role.role) in page.of("th")
    cells = np.array(page.of("td")).reshape(-1, 5)
    assert cells[:, 0].tolist() == [str(len(role.holders())) for role in roles_of(document)]
    assert cells[1, 1].startswith("L4H3 0.")
    assert page.of("li") == [f"retrieval: {REFUSED['retrieval']}"]


def test_hostile_names_are_text_in_the_markup(document: Document):
    refused = dict.fromkeys(HOSTILE, "no data")
    markup = census_markup(changed(document, model=HOSTILE[0], refused=refused))
    page = Page(markup)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img"})
    assert page.text.count(HOSTILE[0]) == 2
    assert not any(character in markup for character in "\u202e\u200b")


def test_a_report_holds_tables_figures_and_the_page(census: Census, tmp_path: Path):
    census.save_document(tmp_path)
    page = SavedCensus(read_census(tmp_path)).write_report(tmp_path)[0]
    assert page == tmp_path / "report.html"
    assert len(list((tmp_path / "figures").glob("*.png"))) == 5
    assert (tmp_path / "tables" / "roles.csv").exists()


def test_the_report_of_a_run_is_left_alone(document: Document, tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "report.html").write_text("of the run")
    assert SavedCensus(document).save(tmp_path)[0] == tmp_path / "heads" / "report.html"
    assert (tmp_path / "report.html").read_text() == "of the run"
    assert not (tmp_path / "tables").exists()


def test_the_same_census_gives_the_same_files(document: Document, tmp_path: Path):
    again = json.loads(json.dumps(document))
    first, second = tmp_path / "a", tmp_path / "b"
    SavedCensus(document).save(first)
    SavedCensus(again).save(second)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) > 10
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_two_models_are_held_against_each_other_in_a_table(census: Census, tmp_path: Path):
    other = planted_census(name="other")
    document = document_of([census, other])
    rows = {row["role"]: row for row in table(document, "comparison").rows}
    assert set(rows) == {row["role"] for row in table(document, "roles").rows}
    row = rows["induction"]
    assert (row["first_assigned"], row["second_assigned"]) == (1, 1)
    assert row["first_depth"] == row["second_depth"] == census.depth["induction"].centroid.estimate
    assert row["difference"] == 0
    assert row["verdict"] == document["comparison"]["roles"]["induction"]["verdict"]
    page = SavedCensus(document).save(tmp_path)[0]
    assert "depth, other" in page.read_text()
    assert "heads of other" in (tmp_path / "against" / "report.html").read_text()
