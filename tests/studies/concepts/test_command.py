"""`tempo concepts`: what it shows, writes, refuses, and what its sentences claim."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tempo
from tempo.errors import InputError, OutputError
from tempo.prompts.pairs import Pair, Pairs
from tempo.testing.tiny import tiny_model
from tempo_analysis.report.document import number
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.concepts import measure as contrasting
from tempo_analysis.studies.concepts.effect import ConceptEffect
from tempo_analysis.studies.concepts.figures import concentration_figure, concept_maps
from tempo_analysis.studies.concepts.findings import ConceptFindings
from tempo_analysis.studies.concepts.separation import concept_heads
from tempo_analysis.studies.concepts.tables import best_table, concentration_table, concept_tables
from tempo_analysis.studies.concepts.verdict import (
    Endings,
    carried,
    ending_sentence,
    reach_sentence,
)
from tests.command_line import call, document, model_folder, plain, refusal, with_tiny
from tests.conftest import draw_blank
from tests.decoding import model_of
from tests.studies.concepts.test_measure import GatedDelta

FILES = [
    "quality.json",
    *(f"tables/{name}.csv" for name in ("heads", "concentration", "causal")),
    *(f"figures/{name}.{kind}" for name in ("heads", "concentration") for kind in ("png", "svg")),
]
QUICK = ("--permutations", 200)


def lines(n: int = 16) -> list[dict[str, Any]]:
    return [
        {"id": f"p{i}", "positive": f"the cat {i} ran now", "negative": f"a dog {i} sat now"}
        for i in range(n)
    ]


def pairs_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs, as few as the causal check takes."""
    return pairs_file(tmp_path_factory.mktemp("pairs"), lines())


@pytest.fixture(scope="module")
def written(mine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with everything, and what was said on stdout."""
    folder = tmp_path_factory.mktemp("out") / "cats"
    with pytest.MonkeyPatch.context() as patch:
        draw_blank(patch)
        result = with_tiny("concepts", mine, "--top", 2, *QUICK, "--out", folder)
    assert result.exit_code == 0, result.stderr
    return folder, result.stdout


@pytest.fixture(scope="module")
def found(mine: Path) -> ConceptFindings:
    return tempo.concepts(model_of("llama"), mine, permutations=200, top=2)


def quality(folder: Path) -> Any:
    return json.loads((folder / "quality.json").read_text())


# --- what it shows


def test_it_shows_the_best_heads_and_where_the_files_lie(written: tuple[Path, str]):
    folder, shown = written
    best = quality(folder)["best"]
    body = shown.splitlines()
    assert body[0].split("  ")[0] == "head"
    for line, head in zip(body[1:], best[:8], strict=False):
        cells = line.split()
        assert cells[:2] == [head["head"], str(head["kv_head"])]
        values = (number(head[name]) for name in ("written_norm", "selectivity", "auroc", "q"))
        assert cells[2:] == [*values, "yes" if head["assigned"] else "no"]
    assert body[-len(FILES) :] == [str(folder / name) for name in FILES]
    assert all((folder / name).stat().st_size for name in FILES)


def test_it_shows_concentration_beside_chance_and_null(written: tuple[Path, str]):
    folder, shown = written
    for layer in quality(folder)["layers"]:
        found = layer["head_concentration"]
        names = ("share", "chance", "null", "p")
        names += ("effective_heads", "null_effective_heads", "effective_heads_p")
        expected = [str(layer["layer"]), *(number(found[name]) for name in names)]
        assert expected in [line.split() for line in shown.splitlines()]
    assert "the 4 longest of 4 heads of a layer, so it is 1 whatever they do" in shown


def test_every_sentence_of_the_document_is_shown(written: tuple[Path, str]):
    folder, shown = written
    sentences = quality(folder)["sentences"]
    assert [line for line in shown.splitlines() if line in sentences] == sentences
    assert "the two texts of every pair end with the same token" in shown
    assert sum("random heads of the same layers" in each for each in sentences) == 2
    assert sum("8 heads tell the sides apart" in each for each in sentences) == 1


def test_the_document_on_stdout_is_the_one_that_is_written(mine: Path, written: tuple[Path, str]):
    result = with_tiny("concepts", mine, "--top", 2, *QUICK, "--json")
    assert result.stdout == (written[0] / "quality.json").read_text()
    read = document(result)
    assert (read["format"], read["kind"], read["concept"]) == (1, "tempo-concept", "mine")
    assert [layer["layer"] for layer in read["layers"]] == [0, 1]
    assert [len(layer["top"]) for layer in read["layers"]] == [4, 4]
    assert (read["permutations"], read["seed"], read["n_pairs"]) == (200, 0, 16)
    assert len(read["causal"]["heads"]) == 2
    assert read["causal"]["zero"]["verdict"]
    assert read["causal"]["mean"]["base"]["n"] == 8


def test_tables_hold_every_head_and_layer(written: tuple[Path, str]):
    folder, _ = written
    with (folder / "tables" / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["head"] for row in rows) == [f"L{i}H{j}" for i in range(2) for j in range(4)]
    assert {row["head"][2:]: row["kv_head"] for row in rows} == {
        "H0": "0",
        "H1": "0",
        "H2": "1",
        "H3": "1",
    }
    best = quality(folder)["best"]
    assert [row["head"] for row in rows] == [head["head"] for head in best]
    assert [float(row["auroc"]) for row in rows] == [head["auroc"] for head in best]


def test_the_bundled_pairs_are_the_default_and_the_seed_moves_the_null_only():
    read = document(with_tiny("concepts", "--no-effect", "--json", *QUICK))
    assert (read["concept"], read["n_pairs"]) == ("urgency", 48)
    assert read["causal"] == {"refused": "it was not asked for"}
    other = document(with_tiny("concepts", "--no-effect", "--json", *QUICK, "--seed", 5))
    assert other["null_p99_written_norm"] != read["null_p99_written_norm"]
    length = [layer["top"][0]["written_norm"] for layer in read["layers"]]
    assert [layer["top"][0]["written_norm"] for layer in other["layers"]] == length


def test_pooling_reads_other_tokens(mine: Path):
    command = ("concepts", mine, "--no-effect", "--json", *QUICK)
    last, mean = (document(with_tiny(*command, "--pooling", name)) for name in ("last", "mean"))
    assert (last["pooling"], mean["pooling"]) == ("last", "mean")
    assert last["layers"][0]["top"] != mean["layers"][0]["top"]


def test_the_help_has_an_example():
    shown = plain(call("concepts", "--help", COLUMNS="200").stdout)
    assert "For example: tempo concepts urgency --out" in shown
    for option in ("--pooling", "--permutations", "--top", "--no-effect", "--force", "--seed"):
        assert option in shown


# --- what cannot be done takes one line


def _one_scenario(rows: list[dict[str, Any]]) -> None:
    del rows[1:]


def _unbalanced(rows: list[dict[str, Any]]) -> None:
    del rows[3]["negative"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(_one_scenario, "got one scenario"), (_unbalanced, "line 4, got no negative: unbalanced")],
)
def test_pairs_that_cannot_be_used_are_refused(
    tmp_path: Path, spoil: Callable[..., None], says: str
):
    rows = lines()
    spoil(rows)
    assert says in refusal(with_tiny("concepts", pairs_file(tmp_path, rows)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.jsonl"], "expected pairs of urgency or a .jsonl file, got 'none.jsonl'"),
        (["--pooling", "max"], "expected pooling last or mean, got 'max'"),
        (["--permutations", "20"], "expected at least 200 permutations, got 20"),
        (["--top", "0"], "expected at least 1 head to silence, got 0"),
        (["--seed", "-1"], "seed: expected greater than or equal to 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(arguments: list[str], says: str):
    assert says in refusal(with_tiny("concepts", *arguments))


def test_nothing_is_loaded_before_options_and_pairs_are_read(mine: Path, tmp_path: Path):
    nowhere = ("--model", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "pooling" in refusal(call("concepts", mine, *nowhere, "--pooling", "max"))
    assert "pairs of urgency" in refusal(call("concepts", tmp_path / "none.jsonl", *nowhere))
    assert "got a file" in refusal(call("concepts", mine, *nowhere, "--out", tmp_path / "file"))


def test_an_earlier_document_is_replaced_only_with_force(
    mine: Path, tmp_path: Path, found: ConceptFindings
):
    (tmp_path / "quality.json").write_text("before")
    command = ("concepts", mine, "--no-effect", *QUICK, "--out", tmp_path)
    assert "or --force to replace it" in refusal(with_tiny(*command))
    assert (tmp_path / "quality.json").read_text() == "before"
    with pytest.raises(OutputError, match="--force to replace it"):
        found.save(tmp_path)
    assert with_tiny(*command, "--force").exit_code == 0
    assert quality(tmp_path)["concept"] == "mine"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_with_other_files_keeps_them(mine: Path, tmp_path: Path, force: tuple[str, ...]):
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "of_a_run.csv").touch()
    says = refusal(with_tiny("concepts", mine, "--out", tmp_path, *force))
    assert "expected an empty folder" in says
    assert [path.name for path in tmp_path.rglob("*.*")] == ["of_a_run.csv"]


# --- the function


def test_a_name_a_file_and_pairs_are_taken(mine: Path, found: ConceptFindings):
    rows = tuple(Pair(row["id"], row["positive"], row["negative"]) for row in lines())
    given = tempo.concepts(model_of("llama"), Pairs("mine", rows), permutations=200, top=2)
    assert given.json() == found.json()


def test_few_pairs_have_numbers_but_no_causal_check(tmp_path: Path):
    few = pairs_file(tmp_path, lines(15))
    found = tempo.concepts(model_of("llama"), few, permutations=200)
    assert found.check is None
    assert found.sentences()[-1].endswith("which takes 16 pairs, got 15")
    assert "causal" not in [table.name for table in concept_tables(found)]
    assert found.document()["causal"] == {"refused": found.no_check}


def test_heads_of_the_check_are_chosen_without_the_pairs_that_measure_it(mine: Path):
    """Spoiling the pairs that are measured leaves the choice as it is."""
    rows = lines()
    for number_of, row in enumerate(rows):
        if number_of % 2:
            row["positive"], row["negative"] = row["negative"], row["positive"]
    spoiled = Pairs("mine", tuple(Pair(*map(str, row.values())) for row in rows))
    model = model_of("llama")
    found = [tempo.concepts(model, each, permutations=200, top=3) for each in (mine, spoiled)]
    assert found[0].check is not None
    assert found[1].check is not None
    assert found[0].check.heads == found[1].check.heads
    assert found[0].heads.auroc.tolist() != found[1].heads.auroc.tolist()


def test_enough_swaps_let_one_head_alone_be_assigned():
    n_pairs, shape = 60, (10, 12)
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal((2, n_pairs, *shape, 4)).astype(np.float32)
    positive[:, 3, 5] += 3
    out = np.broadcast_to(np.eye(4, dtype=np.float32), (*shape, 4, 4)).copy()
    enough = 20 * shape[0] * shape[1]
    assert reach_sentence(120, enough, n_pairs) == []
    assigned = concept_heads(positive, negative, out, permutations=enough).assigned
    assert np.argwhere(assigned).tolist() == [[3, 5]]
    too_few = concept_heads(positive, negative, out, permutations=enough // 2).assigned
    assert not too_few.any()
    (says,) = reach_sentence(120, enough // 2, n_pairs)
    assert "unless 2 of 120 are equally sure" in says


def test_few_pairs_limit_what_swaps_can_say():
    assert "unless 2 of 8 are equally sure" in reach_sentence(8, 10_000, 8)[0]
    assert reach_sentence(8, 10_000, 20) == []


# --- layers without heads


def test_skipped_layers_are_named_and_stay_empty(mine: Path, tmp_path: Path):
    model = tiny_model("llama", num_hidden_layers=4)
    for layer in (0, 2):
        mixer = GatedDelta()
        mixer.layer_idx = layer
        model.hf.model.layers[layer].self_attn = mixer
    found = tempo.concepts(model, mine, permutations=200, top=2)
    (says,) = [line for line in found.sentences() if line.startswith("skipped")]
    assert says.startswith("skipped: layers 0, 2 (GatedDelta): expected one plain output")
    assert {head.layer for _, head in found.best_first()} == {1, 3}
    image = concept_maps(found).axes[0].images[0].get_array()
    assert np.ma.getmaskarray(np.ma.masked_invalid(image)).all(1).tolist() == [True, False] * 2
    assert found.save(tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "skipped.csv").read_text().count("GatedDelta") == 2


# --- what is said


def test_pairs_that_end_unlike_are_counted():
    endings = Endings(0.75, 10.0, 9.0)
    says = ending_sentence(endings, 48, "last")
    assert says.startswith("12 of 48 pairs end with different tokens: there a head that only")
    assert "mean over tokens" in ending_sentence(endings, 48, "mean")


def interval(low: float, high: float, *, n: int = 24) -> Interval:
    return Interval((low + high) / 2, low, high, n, "Student t over prompts")


@pytest.mark.parametrize(
    ("base", "top", "difference", "verdict"),
    [
        ((1, 2), (0.3, 0.5), (0.2, 0.4), "they carry more of the concept than random heads"),
        ((1, 2), (0.3, 0.5), (-0.1, 0.4), "indistinguishable from random heads"),
        ((1, 2), (0.3, 0.5), (-0.4, -0.1), "they carry less of the concept than random heads"),
        ((1, 2), (-0.1, 0.1), (0.2, 0.4), "they differ from random heads, but"),
        ((-1, 2), (0.3, 0.5), (0.2, 0.4), "no verdict: the untouched model does not separate"),
        ((1, 2), (np.nan, np.nan), (np.nan, np.nan), "no verdict: Student"),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    base: tuple[float, float],
    top: tuple[float, float],
    difference: tuple[float, float],
    verdict: str,
):
    effect = ConceptEffect(
        interval(*map(float, base)),
        interval(*map(float, top)),
        interval(0.0, 0.1),
        interval(*map(float, difference)),
        10,
    )
    assert carried(effect).verdict.startswith(verdict)


# --- figures


def many_heads(found: ConceptFindings, n_heads: int = 12) -> ConceptFindings:
    """The same findings in a model of more heads, one of which is shifted."""
    rng = np.random.default_rng(1)
    positive, negative = rng.standard_normal((2, 40, 2, n_heads, 8)).astype(np.float32)
    positive[:, 1, 3] += 4
    out = np.broadcast_to(np.eye(8, dtype=np.float32), (2, n_heads, 8, 8)).copy()
    return replace(found, heads=concept_heads(positive, negative, out, permutations=500))


def test_a_concentrated_layer_is_marked_and_its_head_ringed(found: ConceptFindings):
    planted = many_heads(found)
    shares, effective = concentration_figure(planted).axes
    assert shares.get_ylabel() == "share of the 10 longest of 12 heads"
    full = [each for each in shares.collections if each.get_label() == "p < 0.05"]
    assert [each.get_offsets()[:, 0].tolist() for each in full] == [[1.0]]
    drawn = effective.lines[-1].get_ydata()
    assert drawn.tolist() == planted.heads.concentration.effective_heads.tolist()
    rings = concept_maps(planted).axes[0].collections[0].get_offsets()
    assert np.asarray(rings).tolist() == [[3.0, 1.0]]
    assert best_table(planted).rows[0]["head"] == "L1H3"
    assert concentration_table(planted).rows[1]["chance"] == pytest.approx(10 / 12)


def test_a_share_that_cannot_differ_says_so(found: ConceptFindings):
    shares, _ = concentration_figure(found).axes
    assert [text.get_text() for text in shares.texts] == [
        "no more heads than are counted:\nthe share is 1 whatever they do"
    ]


def test_findings_without_any_difference_can_be_drawn(found: ConceptFindings):
    nothing = np.zeros((16, 2, 4, 8), np.float32)
    out = np.ones((2, 4, 8, 8), np.float32)
    silent = replace(found, heads=concept_heads(nothing, nothing, out, permutations=10))
    assert concept_maps(silent).axes
    assert concentration_figure(silent).axes
    assert "no head is assigned" in concept_maps(silent)._suptitle.get_text()


def test_an_unknown_pooling_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(contrasting, "load_model", lambda _: pytest.fail("loaded"))
    with pytest.raises(InputError, match="expected pooling"):
        tempo.concepts(model_folder(), pooling="max")
