"""What is predicted under each condition, held against slow sorts and answers by hand."""

import csv
import io
import math

import numpy as np
import pytest

from tempo.errors import InputError
from tempo.prompts.suites import load_suite
from tempo_analysis.report.csv import csv_text
from tempo_analysis.report.predictions import (
    TARGET,
    TOP,
    Prediction,
    PredictionTable,
    PromptTokens,
    prediction_sheet,
    prediction_table,
    shift_sheet,
)
from tests.decoding import real_model

VOCAB = 300
PROMPT = PromptTokens("p", "pairs", ("salt", " and"), 1)


def text_of(token: int) -> str:
    return f" w{token}"


def drawn(seed: int, n: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


def table_of(target: np.ndarray, prompt: PromptTokens = PROMPT, **readouts) -> PredictionTable:
    return prediction_table(prompt, target, readouts, text_of=text_of)


def one_row(target: np.ndarray, ablated: np.ndarray) -> Prediction:
    (row,) = table_of(target, cut=ablated).conditions
    return row


def log_probabilities(logits: np.ndarray) -> list[float]:
    """The slow way, in exact sums."""
    top = max(map(float, logits))
    total = math.fsum(math.exp(float(x) - top) for x in logits)
    return [float(x) - top - math.log(total) for x in logits]


# --- the lists


def test_the_lists_are_those_of_a_slow_sort():
    target, ablated = drawn(0), drawn(1)
    change = [float(b) - float(a) for a, b in zip(target, ablated, strict=True)]
    row = one_row(target, ablated)
    upward = sorted(range(VOCAB), key=lambda token: (-change[token], token))[:20]
    downward = sorted(range(VOCAB), key=lambda token: (change[token], token))[:20]
    assert [shift.token for shift in row.up] == upward
    assert [shift.token for shift in row.down] == downward
    before, after = log_probabilities(target), log_probabilities(ablated)
    for shift in (*row.up, *row.down):
        assert shift.text == text_of(shift.token)
        assert shift.logit == change[shift.token]
        exact = after[shift.token] - before[shift.token]
        assert shift.log_probability == pytest.approx(exact, abs=1e-12)


def test_equal_changes_stand_by_token_id():
    target = np.zeros(60, np.float32)
    moved = np.zeros(60, np.float32)
    moved[[40, 7, 33]] = 2
    moved[[50, 3]] = -1
    row = one_row(target, moved)
    assert [shift.token for shift in row.up][:5] == [7, 33, 40, 0, 1]
    assert [shift.token for shift in row.down][:4] == [3, 50, 0, 1]


def test_the_lists_follow_raw_logits_and_not_probabilities():
    target = np.array([5.0, 0.0, -5.0])
    row = one_row(target, target + np.array([3.0, 2.0, 1.0]))
    assert [shift.token for shift in row.up] == [0, 1, 2]
    assert row.up[2].logit == 1
    assert row.up[2].log_probability < 0


def test_a_condition_that_changes_nothing_has_empty_lists():
    row = one_row(drawn(0), drawn(0).copy())
    assert (row.up, row.down) == ((), ())
    assert (row.logit, row.log_probability, row.mean_logit) == (0, 0, 0)
    assert row.equals_target


def test_a_small_vocabulary_is_listed_whole():
    row = one_row(drawn(0, 5), drawn(1, 5))
    assert {shift.token for shift in row.up} == set(range(5))
    assert [shift.token for shift in row.up] == [shift.token for shift in row.down][::-1]


# --- the numbers


@pytest.mark.parametrize("constant", [-40.0, 3.0, 1000.0])
def test_a_constant_on_all_logits_moves_the_logit_and_no_log_probability(constant: float):
    target, ablated = drawn(0).astype(np.float64), drawn(1).astype(np.float64)
    plain, shifted = one_row(target, ablated), one_row(target, ablated + constant)
    assert shifted.logit == pytest.approx(plain.logit + constant, abs=1e-9)
    assert shifted.mean_logit == pytest.approx(plain.mean_logit + constant, abs=1e-9)
    assert shifted.log_probability == pytest.approx(plain.log_probability, abs=1e-9)
    assert abs(plain.log_probability) > 0.01
    for a, b in zip(plain.up + plain.down, shifted.up + shifted.down, strict=True):
        assert a.token == b.token
        assert b.logit == pytest.approx(a.logit + constant, abs=1e-9)
        assert b.log_probability == pytest.approx(a.log_probability, abs=1e-9)


def test_changes_by_hand():
    target = np.log(np.array([0.5, 0.25, 0.25]))
    row = one_row(target, np.log(np.array([0.2, 0.6, 0.2])) + 1)
    assert (row.token, row.text, row.equals_target) == (1, " w1", False)
    assert row.logit == pytest.approx(math.log(0.4) + 1)
    assert row.log_probability == pytest.approx(math.log(0.4))
    means = [sum(map(math.log, each)) / 3 for each in ((0.2, 0.6, 0.2), (0.5, 0.25, 0.25))]
    assert row.mean_logit == pytest.approx(means[0] + 1 - means[1])


def test_half_precision_is_compared_in_double():
    target = np.array([1000, 0, 0], np.float16)
    ablated = np.array([1000, 0.125, 0], np.float16)
    assert one_row(target, ablated).up[0].logit == 0.125
    assert one_row(target, ablated).mean_logit == pytest.approx(0.125 / 3)


def test_the_own_row_of_the_target_has_its_prediction_and_no_change():
    target = drawn(0)
    table = table_of(target, a=drawn(1), b=drawn(2))
    own = table.rows[0]
    assert (own.condition, own.against) == (TARGET, "")
    assert own.token == int(target.argmax())
    assert own.text == text_of(own.token)
    assert own.equals_target
    assert np.isnan([own.logit, own.log_probability, own.mean_logit]).all()
    assert (own.up, own.down) == ((), ())
    assert [row.condition for row in table.rows] == [TARGET, "a", "b"]


def test_the_lowest_id_is_predicted_where_several_logits_are_highest():
    tied = np.array([0.0, 2.0, 2.0])
    row = one_row(tied, np.array([0.0, 1.0, 3.0]))
    assert (row.token, row.equals_target) == (2, False)
    assert row.logit == -1  # of token 1, which the target predicts


def test_a_condition_is_measured_from_its_baseline_and_judged_by_the_target():
    target, ones, cut = np.array([3.0, 0, 0]), np.array([0, 3.0, 0]), np.array([4.0, 1.0, 0])
    readouts = {"all ones": ones, "component": cut}
    table = prediction_table(
        PROMPT, target, readouts, text_of=text_of, baseline={"component": "all ones"}
    )
    first, second = table.conditions
    assert (first.against, first.logit, first.equals_target) == (TARGET, -3, False)
    assert (second.against, second.logit, second.equals_target) == ("all ones", -2, True)
    assert [shift.logit for shift in second.up] == [4, 0, -2]


# --- what is refused


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["target", "condition"])
def test_logits_that_are_no_numbers_are_refused(bad: float, place: str):
    broken = drawn(0)
    broken[3] = bad
    target, cut = (broken, drawn(1)) if place == "target" else (drawn(1), broken)
    name = TARGET if place == "target" else "cut"
    with pytest.raises(InputError, match=f"finite logits under '{name}', got 1 NaN or infinite"):
        table_of(target, cut=cut)


def test_logits_of_another_vocabulary_are_refused():
    with pytest.raises(InputError, match=r"expected 300 logits under 'cut', got \[299\]"):
        table_of(drawn(0), cut=drawn(0, 299))


def test_a_condition_with_the_name_of_the_target_is_refused():
    with pytest.raises(InputError, match="other names than 'target'"):
        prediction_table(PROMPT, drawn(0), {TARGET: drawn(1)}, text_of=text_of)


@pytest.mark.parametrize("baseline", [{"cut": "none"}, {"none": "cut"}, {"cut": "cut"}])
def test_a_baseline_that_is_no_other_condition_is_refused(baseline: dict[str, str]):
    with pytest.raises(InputError, match="expected a baseline that is another of target, cut"):
        prediction_table(PROMPT, drawn(0), {"cut": drawn(1)}, text_of=text_of, baseline=baseline)


@pytest.mark.parametrize("at", [-1, 2])
def test_a_place_outside_the_prompt_is_refused(at: int):
    with pytest.raises(InputError, match="expected a place from 0 to 1 in prompt 'p'"):
        PromptTokens("p", "", ("salt", " and"), at)


# --- the sheets


@pytest.fixture
def hostile() -> PredictionTable:
    """Texts that hold line ends, tabs and separators."""
    texts = {0: "\n", 1: "\t=1", 2: "|", 3: "a b", 4: "<b>"}
    prompt = PromptTokens("q", "code", ("x\n", "\t", " y"), 1)
    target, cut = np.array([4.0, 3, 2, 1, 0]), np.array([0.0, 1, 2, 3, 4])
    return prediction_table(prompt, target, {"cut": cut}, text_of=texts.__getitem__)


def test_the_sheet_has_the_target_and_every_condition_of_every_prompt(hostile: PredictionTable):
    sheet = prediction_sheet([table_of(drawn(0), a=drawn(1), b=drawn(2)), hostile])
    pairs = [(row["id"], row["condition"]) for row in sheet.rows]
    assert pairs == [("p", TARGET), ("p", "a"), ("p", "b"), ("q", TARGET), ("q", "cut")]
    assert len(set(pairs)) == len(pairs)


def test_the_sheet_shows_what_cannot_be_seen(hostile: PredictionTable):
    target, cut = prediction_sheet([hostile]).rows
    assert target["prompt"] == "x\u21b5\u21e5\u2423y"
    assert (target["at"], target["token"]) == (1, "\u21e5")
    assert (target["predicted_id"], target["predicted"]) == (0, "\u21b5")
    assert (cut["predicted_id"], cut["predicted"], cut["equals_target"]) == (4, "<b>", "no")
    assert cut["up"].split(" | ")[:3] == ["<b> +4 +4", "a\u2423b +2 +2", "| +0 +0"]
    assert cut["down"].startswith("\u21b5 -4 -4 | \u21e5=1 -2 -2")
    assert (cut["logit"], cut["mean_logit"]) == (-4, 0)
    assert math.isnan(target["logit"])


def test_the_sheet_is_read_back_from_csv_with_all_digits():
    table = table_of(drawn(0), a=drawn(1))
    rows = list(csv.DictReader(io.StringIO(csv_text(prediction_sheet([table])), newline="")))
    (row,) = table.conditions
    assert [rows[0][key] for key in ("logit", "log_probability", "mean_logit")] == [""] * 3
    assert float(rows[1]["logit"]) == row.logit
    assert float(rows[1]["log_probability"]) == row.log_probability
    assert float(rows[1]["mean_logit"]) == row.mean_logit


def test_every_shift_has_a_row_of_its_own():
    table = table_of(drawn(0), a=drawn(1), same=drawn(0))
    rows = shift_sheet([table]).rows
    assert len(rows) == 2 * TOP
    for direction in ("up", "down"):
        own = [row for row in rows if row["direction"] == direction]
        shifts = getattr(table.conditions[0], direction)
        assert [row["rank"] for row in own] == list(range(1, TOP + 1))
        assert [row["token_id"] for row in own] == [shift.token for shift in shifts]
        assert [row["logit"] for row in own] == [shift.logit for shift in shifts]
        exact = [shift.log_probability for shift in shifts]
        assert [row["log_probability"] for row in own] == exact
    assert {(row["id"], row["condition"]) for row in rows} == {("p", "a")}


@pytest.mark.parametrize("sheet", [prediction_sheet, shift_sheet])
def test_two_tables_of_one_prompt_are_refused(sheet):
    table = table_of(drawn(0), a=drawn(1))
    with pytest.raises(InputError, match="one prediction table for each prompt, got 'p' twice"):
        sheet([table, table])


@pytest.mark.parametrize("sheet", [prediction_sheet, shift_sheet])
def test_no_tables_give_no_rows(sheet):
    assert sheet([]).rows == ()


# --- the crafted prompts on the real model


@pytest.mark.slow
def test_crafted_prompts_have_two_to_sixteen_tokens():
    model = real_model()
    lengths = {prompt.id: len(model.encode(prompt.text)) for prompt in load_suite("crafted")}
    assert {name: n for name, n in lengths.items() if not 2 <= n <= 16} == {}
    assert len(lengths) >= 45
