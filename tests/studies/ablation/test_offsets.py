"""Rows of t by offset, tables, figures and the document, with planted rows."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from tempo.errors import InputError
from tempo.vocabulary import Head
from tempo_analysis.report.csv import csv_text
from tempo_analysis.report.document import json_text
from tempo_analysis.stats.bands import sparse_spread
from tempo_analysis.studies.ablation.figures import MOST_PANELS, ablation_drawings, panel_heads
from tempo_analysis.studies.ablation.offsets import (
    OffsetFindings,
    offset_findings,
    prompt_offsets,
    variation,
)
from tempo_analysis.studies.ablation.passes import Comparison, Pass
from tempo_analysis.studies.ablation.redundancy import (
    PASSES,
    PromptRedundancy,
    PromptSweep,
    prompt_redundancy,
    prompt_sweep,
)
from tempo_analysis.studies.ablation.result import (
    AblationFacts,
    AblationNumbers,
    PromptNumbers,
    ablation_numbers,
    prompt_numbers,
)
from tempo_analysis.studies.ablation.tables import ablation_tables

LAYERS, HEADS, HIDDEN, VOCAB = 3, 4, 5, 6
BASE_A = Comparison("base", "A")


def rows(rng: np.random.Generator, *, t: int, n_tokens: int) -> np.ndarray:
    found = np.zeros((LAYERS, HEADS, n_tokens), np.float32)
    found[..., : t + 1] = rng.dirichlet(np.ones(t + 1), (LAYERS, HEADS))
    return found


# --- one prompt


@pytest.mark.parametrize("t", [0, 3, 4, 5, 11])
def test_the_bins_of_a_prompt_sum_to_its_row(t: int):
    attention = rows(np.random.default_rng(0), t=t, n_tokens=12)
    found = prompt_offsets(attention, t=t, n_offsets=4)
    np.testing.assert_allclose(np.nansum(found.share, -1), 1, atol=1e-6)
    assert np.nansum(found.even) == pytest.approx(1)


def test_bins_are_tokens_back_from_t_one_by_one():
    attention = rows(np.random.default_rng(0), t=6, n_tokens=9)
    found = prompt_offsets(attention, t=6, n_offsets=3)
    for offset in range(4):
        np.testing.assert_array_equal(found.share[..., offset], attention[..., 6 - offset])
    np.testing.assert_allclose(found.share[..., 4], attention[..., :3].sum(-1), atol=1e-7)
    np.testing.assert_allclose(found.even, [1 / 7] * 4 + [3 / 7])


def test_offsets_before_the_prompt_have_no_data_and_neither_has_an_empty_rest():
    found = prompt_offsets(rows(np.random.default_rng(0), t=2, n_tokens=9), t=2, n_offsets=4)
    np.testing.assert_array_equal(np.isnan(found.share[0, 0]), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(np.isnan(found.even), [0, 0, 0, 1, 1, 1])


def test_rows_of_another_token_are_refused():
    attention = rows(np.random.default_rng(0), t=6, n_tokens=9)
    for t in (5, 9, -1):
        with pytest.raises(InputError, match="row of t"):
            prompt_offsets(attention, t=t)


def test_variation_is_0_for_the_same_row_and_1_for_rows_without_a_token_in_common():
    one, other = np.zeros((2, 1, 2, 4))
    one[0, :, 0] = 1
    other[0, 0, 0] = other[0, 1, 3] = 1
    np.testing.assert_array_equal(variation(one, other), [[0, 1]])


def test_variation_sees_what_moves_inside_the_rest():
    one, other = np.zeros((2, 1, 1, 40))
    one[..., 0] = other[..., 1] = 1
    assert variation(one, other) == 1
    folded = [prompt_offsets(each, t=39).share for each in (one, other)]
    np.testing.assert_array_equal(*folded)


# --- over prompts


def some_prompts(n: int, *, softmax: str = "before") -> list[PromptNumbers]:
    """A moves a part of L1H2's row from the token before to the others, or takes it out."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        t, n_tokens = int(rng.integers(1, 9)), 10
        attention = rows(rng, t=t, n_tokens=n_tokens)
        changed = attention.copy()
        changed[1, 2, t - 1] = 0
        if softmax == "before":
            changed[1, 2] /= changed[1, 2].sum()
        outputs = rng.normal(size=(3, LAYERS, HIDDEN)).astype(np.float32)
        logits = rng.normal(size=(3, n_tokens, VOCAB)).astype(np.float32)
        seen = (attention, changed, attention)
        passes = {
            name: Pass(t, *each)
            for name, *each in zip(("base", "A", "control"), outputs, logits, seen, strict=True)
        }
        comparisons = [BASE_A, Comparison("base", "control")]
        found.append(prompt_numbers(passes, comparisons, n_offsets=4))
    return found


def findings(prompts: list[PromptNumbers], *, n_changed: int = 2) -> OffsetFindings:
    return offset_findings(
        [one.offsets for one in prompts],
        [one.variations for one in prompts],
        heads=[Head(0, 1)],
        n_changed=n_changed,
    )


def test_the_head_whose_row_was_changed_is_named_first_and_unchanged_ones_only_if_asked_for():
    found = findings(some_prompts(9))
    of_a = [str(one.head) for one in found.changes if one.comparison == BASE_A]
    assert of_a == ["L1H2", "L0H1"]
    of_control = [one for one in found.changes if one.comparison != BASE_A]
    assert [str(one.head) for one in of_control] == ["L0H1"]
    assert of_control[0].variation.estimate == 0
    assert [str(head) for head in found.shown()] == ["L0H1", "L1H2"]


@pytest.mark.parametrize("softmax", ["before", "after"])
def test_differences_of_every_prompt_sum_to_0_or_to_minus_the_lost_mass(softmax: str):
    prompts = some_prompts(9, softmax=softmax)
    lost = [
        0.0 if softmax == "before" else float(one.offsets["base"].share[1, 2, 1]) for one in prompts
    ]
    for one, mass in zip(prompts, lost, strict=True):
        away = one.offsets["A"].share - one.offsets["base"].share
        sums = np.zeros((LAYERS, HEADS))
        sums[1, 2] = -mass
        np.testing.assert_allclose(np.nansum(away, -1), sums, atol=1e-6)
    found = {one.head: one for one in findings(prompts).differences if one.comparison == BASE_A}
    assert found[Head(1, 2)].row.estimate == pytest.approx(-np.mean(lost), abs=1e-6)
    assert found[Head(0, 1)].row.estimate == 0


def test_means_and_deviations_leave_out_prompts_without_the_token():
    prompts = some_prompts(9)
    own = np.stack([one.offsets["A"].share[1, 2] for one in prompts]).astype(float)
    (found,) = (
        one
        for one in findings(prompts).distributions
        if one.head == Head(1, 2) and one.condition == "A"
    )
    known = ~np.isnan(own)
    np.testing.assert_array_equal(found.n, known.sum(0))
    assert 0 < found.n[3] < found.n[0] == 9
    for place in range(own.shape[1]):
        values = own[known[:, place], place]
        assert found.mean[place] == pytest.approx(values.mean())
        assert found.sd[place] == pytest.approx(values.std(ddof=1))


def test_differences_are_paired_over_prompts():
    prompts = some_prompts(9)
    away = [one.offsets["A"].share[1, 2] - one.offsets["base"].share[1, 2] for one in prompts]
    (found,) = (
        one
        for one in findings(prompts).differences
        if one.head == Head(1, 2) and one.comparison == BASE_A
    )
    assert found.share.at(0).estimate == pytest.approx(np.mean([each[0] for each in away]))
    taken = np.mean([one.offsets["base"].share[1, 2, 1] for one in prompts])
    assert found.share.at(1).estimate == pytest.approx(-taken)


def test_a_few_large_differences_among_zeros_do_not_blow_up_the_limits():
    values = np.zeros((40, 3))
    values[7, 0] = values[9, 1] = 0.5
    values[:, 2] = np.random.default_rng(0).normal(0.1, 0.1, 40)
    found = sparse_spread(np.arange(3), values)
    assert (found.curve.high - found.curve.low < 0.2).all()
    t = stats.t.ppf(1 - 0.025 / 3, 39)
    error = values.std(0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(found.curve.high - found.curve.estimate, t * error)
    np.testing.assert_allclose(found.curve.estimate - found.curve.low, t * error)


def test_points_without_spread_or_with_few_prompts_take_no_part_of_the_5_percent():
    values = np.random.default_rng(0).normal(size=(12, 3))
    values[:, 1] = 0.25
    values[5:, 2] = np.nan
    found = sparse_spread(np.arange(3), values).curve
    half = stats.t.ppf(0.975, 11) * values[:, 0].std(ddof=1) / np.sqrt(12)
    assert found.high[0] - found.estimate[0] == pytest.approx(half)
    assert found.low[1] == found.high[1] == 0.25
    assert np.isnan([found.low[2], found.high[2]]).all()
    assert "5 of 8" in found.methods[2]


def test_prompts_folded_at_different_offsets_are_refused():
    attention = rows(np.random.default_rng(0), t=6, n_tokens=9)
    folded = [{"base": prompt_offsets(attention, t=6, n_offsets=n)} for n in (2, 3)]
    with pytest.raises(InputError, match="one offset"):
        offset_findings(folded, [{}, {}], heads=[])


# --- the whole of it


def some_redundancy(n: int) -> list[PromptRedundancy]:
    rng = np.random.default_rng(1)
    return [
        prompt_redundancy(
            {name: rng.normal(size=(LAYERS, HIDDEN)).astype(np.float32) for name in PASSES}
        )
        for _ in range(n)
    ]


def some_sweeps(n: int) -> list[PromptSweep]:
    rng = np.random.default_rng(2)
    outputs = rng.normal(size=(n, 6, LAYERS, HIDDEN)).astype(np.float32)
    return [
        prompt_sweep(one[0], one[1], at=[(1, one[2], one[3]), (2, one[4], one[5])], n_offsets=3)
        for one in outputs
    ]


def facts(**changes: object) -> AblationFacts:
    settings = {
        "model": {"name": "planted", "n_layers": LAYERS, "n_heads": HEADS},
        "heads": (Head(0, 1),),
        "layers": (0, 2),
        "conditions": {"base": "unchanged", "A": "L0H1 held at zero at t", "control": "L0H3"},
        "controls": {"A": "control"},
        "prompts": {"source": "planted"},
        "seed": 0,
        "notes": ("planted rows",),
    }
    return AblationFacts(**(settings | changes))


def whole(n: int = 9) -> AblationNumbers:
    return ablation_numbers(
        facts(),
        prompts=some_prompts(n),
        redundancy_prompts={"A": some_redundancy(n)},
        sweep_prompts={"all heads": some_sweeps(n)},
    )


def test_the_document_is_plain_json_with_none_where_there_is_no_data():
    found = json.loads(json_text(whole(3).document()))
    assert found["heads"] == ["L0H1"]
    assert found["model"] == "planted"
    assert found["effects"][0]["comparison"] == {"reference": "base", "changed": "A"}
    assert found["effects"][0]["nip"]["curve"]["low"] == [None] * LAYERS
    assert (
        found["sweeps"]["all heads"]["layers"][0]["nip"]["base|B"]["curve"]["estimate"][2] is None
    )
    assert found["offsets"]["changes"][0]["head"] == "L1H2"
    assert found["sentences"][-1] == "planted rows"


def test_the_same_prompts_give_the_same_document():
    assert json_text(whole().document()) == json_text(whole().document())


def test_sentences_tell_effect_control_redundancy_and_sweep():
    told = " | ".join(whole().sentences())
    for words in ("base|A, 9 prompts", "KL less control", "redundancy, values of all", "sweep"):
        assert words in told
    assert "base|control" not in told


def test_a_condition_without_a_control_says_so():
    found = ablation_numbers(facts(controls={}), prompts=some_prompts(3))
    assert "no control was run" in found.sentences()[0]


def test_a_condition_without_a_description_is_refused():
    with pytest.raises(InputError, match="control"):
        ablation_numbers(facts(conditions={"base": "", "A": ""}), prompts=some_prompts(2))


def test_every_table_is_there_once_and_can_be_written():
    tables = {table.name: table for table in ablation_tables(whole())}
    assert list(tables) == [
        "effects",
        "effects_by_layer",
        "redundancy",
        "redundancy_index",
        "sweep",
        "offsets",
        "offset_differences",
        "head_changes",
    ]
    sizes = {name: len(table.rows) for name, table in tables.items()}
    assert sizes["effects"] == 2
    assert sizes["effects_by_layer"] == 2 * LAYERS
    assert sizes["redundancy"] == 7 * LAYERS
    assert sizes["redundancy_index"] == 2 * LAYERS
    assert sizes["sweep"] == 2 * 3
    n_heads, n_bins = 2, 6
    assert sizes["offsets"] == n_heads * 3 * n_bins
    assert sizes["offset_differences"] == n_heads * 2 * (n_bins + 1)
    assert all(csv_text(table).count("\r\n") == len(table.rows) + 1 for table in tables.values())


def test_tables_of_tests_that_were_not_run_are_left_out():
    found = ablation_numbers(facts(), prompts=some_prompts(3))
    assert {"redundancy", "redundancy_index", "sweep"}.isdisjoint(
        table.name for table in ablation_tables(found)
    )


@pytest.mark.parametrize("n", [3, 9])
def test_every_figure_says_how_many_prompts_and_what_its_bands_are(n: int):
    drawings = ablation_drawings(whole(n))
    names = [one.name for one in drawings]
    assert names[:3] == ["nip_by_layer", "next_token", "sweep_0"]
    assert {"offsets_0", "offset_differences_0"} <= set(names)
    assert len(set(names)) == len(names)
    for one in drawings:
        assert isinstance(one.figure, Figure)
        assert f"{n} prompts" in one.caption
        has_limits = not one.name.startswith("offsets_")
        assert ("too few prompts" in one.caption) == (has_limits and n < 8)


def test_panels_of_a_figure_share_one_scale():
    drawing = next(one for one in ablation_drawings(whole()) if one.name == "offsets_0")
    limits = {axes.get_ylim() for axes in drawing.figure.axes}
    assert len(limits) == 1


def test_a_figure_holds_named_heads_first_and_not_too_many():
    found = findings(some_prompts(9), n_changed=12)
    named = [Head(2, head) for head in range(HEADS)] * 3
    heads = panel_heads(found, BASE_A, named)
    assert heads[:HEADS] == tuple(named[:HEADS])
    assert len(heads) <= MOST_PANELS
