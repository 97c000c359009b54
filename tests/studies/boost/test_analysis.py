"""What a boost is made of: readouts, the dose that restores, doses, words, tables and figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tempo.errors import InputError, OutputError
from tempo_analysis.stats.distributions import FullReadout, kl_nats, mixed
from tempo_analysis.stats.intervals import Interval
from tempo_analysis.studies.boost.dose_matching import crossing, odds_law_log_ratio, restoring
from tempo_analysis.studies.boost.dose_response import Dose, Repair, at_doses, less, slope_of
from tempo_analysis.studies.boost.figures import free_figure, response_figure, restoring_figure
from tempo_analysis.studies.boost.findings import BoostFindings
from tempo_analysis.studies.boost.tables import boost_tables, response_table
from tempo_analysis.studies.boost.verdict import side

BETAS = (-2.0, -1.0, 0.0, 1.0, 2.0)
N = 12
DRAW = np.random.default_rng(0)


def readout(probabilities: list[float]) -> FullReadout:
    with np.errstate(divide="ignore"):
        return FullReadout(np.log(np.array(probabilities, np.float32)))


# --- readouts


def test_kl_of_two_coins_is_that_of_the_formula():
    first, second = readout([0.5, 0.5]), readout([0.9, 0.1])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_nats(first.log, second.log) == pytest.approx(expected, rel=1e-6)
    assert kl_nats(second.log, first.log) != pytest.approx(expected, rel=1e-3)


def test_a_token_that_is_ruled_out_adds_nothing_to_the_entropy_and_infinity_to_the_kl():
    certain, even = readout([1.0, 0.0]), readout([0.5, 0.5])
    assert certain.entropy_nats() == 0
    assert even.entropy_nats() == pytest.approx(np.log(2))
    assert kl_nats(even.log, certain.log) == np.inf
    assert kl_nats(certain.log, even.log) == pytest.approx(np.log(2))


def test_a_readout_that_does_not_sum_to_1_is_normalised():
    assert readout([2.0, 6.0]).log_mass([0]) == pytest.approx(np.log(0.25))
    assert readout([2.0, 6.0]).top() == 1
    assert readout([0.5, 0.5]).top() == 0


def test_a_mixture_weighs_paths_by_their_probabilities():
    rows = np.log(np.array([[0.9, 0.1], [0.2, 0.8]]))
    found = np.exp(mixed(np.log(np.array([0.3, 0.1])), rows))
    np.testing.assert_allclose(found, 0.75 * np.array([0.9, 0.1]) + 0.25 * np.array([0.2, 0.8]))


# --- the dose that restores


def test_a_straight_line_crosses_where_it_does():
    assert crossing(BETAS, np.array(BETAS) - 0.3) == pytest.approx(0.3)
    assert crossing(BETAS, np.array(BETAS)) == pytest.approx(0.0)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [-5.0, -4.0, -3.0, -2.0, -1.0],
        [2.0, 1.0, 0.0, -1.0, -2.0],
        [-1.0, 1.0, -1.0, 1.0, 2.0],
        [-1.0, np.nan, 0.0, 1.0, 2.0],
    ],
    ids=["above", "below", "falling", "three times", "no data"],
)
def test_a_curve_that_does_not_rise_through_0_once_has_no_dose(values: list[float]):
    assert np.isnan(crossing(BETAS, np.array(values)))


def test_under_the_law_equal_odds_are_restored_where_the_formula_says():
    """e^b (1 + o) = 1 + e^b n o, so b = -log(1 - (n - 1) o)."""
    mass, n = 0.1, 3
    odds = mass / (1 - mass)
    alone, none = np.full((n, 1), mass), np.zeros((n, 1))
    betas = np.linspace(-1, 2, 301)
    curve = np.array([odds_law_log_ratio(float(b), alone, none).mean() for b in betas])
    expected = -np.log(1 - (n - 1) * odds)
    assert crossing(betas.tolist(), curve) == pytest.approx(expected, abs=1e-5)


def test_under_the_law_siblings_with_odds_of_1_are_never_restored():
    alone = np.full((2, 1), 0.5)
    curve = [odds_law_log_ratio(beta, alone, alone * 0).mean() for beta in (0.0, 5.0, 20.0)]
    assert curve[0] < curve[1] < curve[2] < 0


def test_under_the_law_a_bias_on_other_sets_takes_mass():
    alone, others = np.full((1, 1), 0.2), np.full((1, 1), 0.3)
    for beta in (-1.0, 0.0, 2.0):
        rest = 1 - 0.2 - 0.3
        expected = np.log(0.2 * np.exp(beta) / (rest + 0.5 * np.exp(beta))) - np.log(0.2)
        assert odds_law_log_ratio(beta, alone, others)[0, 0] == pytest.approx(expected)


def test_a_cell_in_which_a_member_is_not_seen_has_no_law():
    alone = np.array([[0.1, 0.0], [0.2, 0.2]])
    found = odds_law_log_ratio(1.0, alone, alone * 0)
    assert np.isfinite(found[:, 0]).all()
    assert np.isnan(found[:, 1]).all()


def test_prompts_without_a_restoring_dose_are_counted_and_left_out():
    shifts = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 9.0])
    measured = np.array(BETAS) - shifts[:, None]
    found = restoring("all", BETAS, measured, measured + 0.1)
    assert (found.n_without, found.measured.n, found.measured.n_dropped) == (1, 8, 1)
    assert found.measured.estimate == pytest.approx(0.45)
    assert found.difference.estimate == pytest.approx(0.1)
    assert found.loss.estimate == pytest.approx(-shifts.mean())
    assert found.pooled == pytest.approx(shifts.mean())


# --- doses


def planted(target: str = "all", size: float = 1.0) -> Dose:
    """A quadratic KL, linear others; prompts differ a little."""
    betas = np.array(BETAS)
    noise = 1 + 0.1 * DRAW.random((N, 1))
    linear = size * betas * noise
    values = {
        "kl": 0.25 * size * betas**2 * noise,
        "top_1_changed": np.minimum(np.abs(linear) / 4, 1),
        "log_entropy": 1 + 0.1 * linear,
        "set_nll": 2 + 0.2 * linear,
        "top_nll": 3 + 0.2 * linear,
        "mixture_kl": 0.5 + 0.1 * linear,
        "share": 0.3 + 0.05 * linear,
        "log_ratio": linear - 0.4,
    }
    return Dose(target, f"about {target}", 8, BETAS, values)


def free(target: str = "all") -> Dose:
    betas, noise = np.array(BETAS), 1 + 0.1 * DRAW.random((N, 1))
    flat = np.ones((N, len(BETAS)))
    values = {"path_nll": 2 + 0.3 * betas * noise, "distinct_2": flat, "branches": 1.5 * flat}
    return Dose(target, "about", 8, BETAS, values | {"repetition": 0 * flat})


def findings(**changed: Any) -> BoostFindings:
    doses = (planted(), planted("control", 0.5))
    log_ratio = doses[0].values["log_ratio"]
    base = {name: values[:, 2] for name, values in doses[0].values.items()}
    base |= {"path_nll": free().values["path_nll"][:, 2]}
    better = {name: values - 0.1 * (1 + DRAW.random(N)) for name, values in base.items()}
    made = BoostFindings(
        model={"name": "planted", "dtype": "float32", "fingerprint": "0" * 64},
        prompts=tuple(f"p{n}" for n in range(N)),
        refused={"q": "no set of two or more"},
        skipped={"other heads": "there is only one prompt"},
        betas=BETAS,
        doses=doses,
        free=(free(), free("control")),
        restoring=(restoring("all", BETAS, log_ratio, log_ratio + 0.1),),
        repairs=(Repair("one bias", "0.4 nats in all heads", better, base, 0.1, 0.3),),
        no_repair="",
        heads={},
        matched=0.9,
        rounding_nats=1e-12,
        n_sets=40,
        tokens_hash="0" * 64,
        settings={"threshold": 0.1, "max_width": 8, "steps": 10},
        seed=0,
    )
    return replace(made, **changed)


def test_slopes_are_those_that_were_planted():
    dose = planted()
    flat = replace(dose, values={n: np.repeat(v[:1], N, 0) for n, v in dose.values.items()})
    scale = flat.values["kl"][0, 3] / 0.25
    assert slope_of(flat, "kl").estimate == pytest.approx(0.25 * scale)
    assert slope_of(flat, "set_nll").estimate == pytest.approx(0.2 * scale)


def test_a_slope_needs_two_mild_doses():
    dose = planted()
    few = (-4.0, 0.0, 1.0)
    values = {name: found[:, :3] for name, found in dose.values.items()}
    assert np.isnan(replace(dose, betas=few, values=values).slope("kl")).all()


def test_a_difference_is_paired_by_prompt():
    first = planted()
    assert all(row.estimate == 0 for row in less(first, first, "kl"))
    rows = less(first, planted("control", 0.5), "set_nll")
    assert [np.sign(row.estimate) for row in rows] == [-1, -1, 0, 1, 1]


def test_doses_without_0_or_out_of_order_are_refused():
    for betas in ((-1.0, 1.0), (0.0, 1.0, 0.5)):
        with pytest.raises(InputError, match="expected rising doses with 0 among them"):
            replace(planted(), betas=betas)


def test_a_prompt_without_data_is_left_out_of_a_dose():
    values = planted().values["kl"].copy()
    values[3] = np.nan
    rows = at_doses(values)
    assert {(row.n, row.n_dropped) for row in rows} == {(N - 1, 1)}


# --- words, tables, figures


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.1, 0.2, "higher"),
        (-0.2, -0.1, "lower"),
        (-0.1, 0.1, "not told apart from 0"),
        (0.0, 0.0, "0 in every prompt seen"),
        (np.nan, np.nan, "no interval"),
    ],
)
def test_a_side_follows_from_the_interval_alone(low: float, high: float, word: str):
    assert side(Interval((low + high) / 2, low, high, 9, "few")) == word


def test_the_sentences_say_what_was_planted():
    said = "\n".join(findings().sentences())
    assert "12 prompts with 40 sets" in said
    assert "prompts without such a set, which have no answer: 1" in said
    assert "repaired with one bias (0.4 nats in all heads)" in said
    assert said.count(", lower") >= 4
    assert "KL of all less that of control: -2: " in said
    assert "no answer for other heads: there is only one prompt" in said
    assert "it has 0.9 slots for each member" in said


def test_without_a_repair_the_reason_is_said():
    said = findings(repairs=(), no_repair="no dose is enough").sentences()
    assert "no repair was tried: no dose is enough" in said


def test_the_document_holds_no_nan_and_every_target():
    found = findings()
    document = json.loads(found.json(), parse_constant=pytest.fail)
    assert list(document["targets"]) == ["all", "control"]
    assert document["restoring"]["all"]["n_without"] == 0
    change = document["targets"]["all"]["measures"]["set_nll"]["change"]
    assert [row["estimate"] for row in change][2] == 0
    assert len(change) == len(BETAS)


def test_every_table_has_its_rows():
    tables = {table.name: table for table in boost_tables(findings())}
    assert set(tables) == {
        *("restoring", "repairs", "dose_response", "free_decoding", "slopes", "pairs"),
        *("targets", "refused"),
    }
    assert len(tables["dose_response"].rows) == 2 * 8 * len(BETAS)
    assert len(tables["pairs"].rows) == 8 * (len(BETAS) - 1)
    assert [row["what"] for row in tables["refused"].rows] == ["q", "other heads"]
    assert {row["beta"] for row in response_table(findings()).rows} == set(BETAS) - {0.0}


def test_figures_have_a_panel_for_each_measure_and_family():
    found = findings()
    assert len(response_figure(found).axes) == 6
    drawn = restoring_figure(found), free_figure(found)
    assert [None if one is None else len(one.axes) for one in drawn] == [1, 8]
    assert restoring_figure(replace(found, restoring=())) is None
    assert free_figure(replace(found, free=())) is None


def test_the_panel_of_a_target_says_where_it_is_restored():
    found = findings()
    drawn = restoring_figure(found)
    assert drawn is not None
    ours, law = (one.estimate for one in (found.restoring[0].measured, found.restoring[0].law))
    title = drawn.axes[0].get_title()
    assert title == f"all\nat {ours:.2f}, law {law:.2f}; n = 12 of 12"


def test_measured_and_law_are_over_the_same_prompts():
    """Two prompts need a larger dose than was asked for: the law counts them no more either."""
    doses = np.array([0.4, 0.5, 0.6, 0.3, 0.5, 0.4, 0.5, 0.6, 9.0, 9.0])
    betas = (-1.0, 0.0, 1.0)
    measured = np.array([[beta - dose for beta in betas] for dose in doses])
    law = np.array([[beta - dose / 10 for beta in betas] for dose in doses])
    found = restoring("all", betas, measured, law)
    assert found.n_without == 2
    assert (found.measured.n, found.law.n, found.difference.n) == (8, 8, 8)
    assert found.law.estimate == pytest.approx(doses[:8].mean() / 10)
    gap = found.measured.estimate - found.law.estimate
    assert found.difference.estimate == pytest.approx(gap)


def test_everything_is_written_and_read_back(tmp_path: Path):
    folder = tmp_path / "boost"
    paths = findings().save(folder)
    assert {path.name for path in paths} >= {"report.html", "boost.json", "response.svg"}
    assert all(path.stat().st_size for path in paths)
    assert (folder / "boost.json").read_text() == findings_text(folder)
    with pytest.raises(OutputError, match=r"expected no boost\.json in"):
        BoostFindings.check_folder(folder)
    BoostFindings.check_folder(folder, force=True)


def findings_text(folder: Path) -> str:
    """The document as it was written, by way of its values."""
    return json.dumps(json.loads((folder / "boost.json").read_text()), indent=1) + "\n"


def test_a_folder_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="expected an empty folder"):
        BoostFindings.check_folder(tmp_path, force=True)
    with pytest.raises(OutputError, match="got a file"):
        BoostFindings.check_folder(tmp_path / "mine.txt")
