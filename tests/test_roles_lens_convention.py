"""TransformerLens's normalisations: exact values, and their own code where installed."""

import numpy as np
import pytest

from analysis.roles.lens_convention import lens_pattern, lens_similarity
from tempo.errors import InputError
from tempo_analysis.studies.heads.detectors.induction import induction
from tempo_analysis.studies.heads.detectors.positional import previous_token
from tests.head_patterns import HALF, REPEATED, T, patterns, random_rows, rows_of

NAMES = ("previous_token_head", "duplicate_token_head", "induction_head")


def test_mul_divides_by_all_rows_and_not_by_those_with_a_target():
    rows = rows_of(*patterns().values(), token=REPEATED)
    theirs = lens_similarity(
        rows.weights, lens_pattern(rows.token, "previous_token_head"), measure="mul"
    )
    np.testing.assert_allclose(theirs, previous_token(rows).score * (T - 1) / T, rtol=1e-6)
    copied = lens_similarity(
        rows.weights, lens_pattern(rows.token, "induction_head"), measure="mul"
    )
    assert copied[0, 4] == HALF / T  # one query more than ours: the last
    assert induction(rows).score[0, 4] == 1


def test_abs_is_1_for_the_pattern_itself_and_minus_1_for_its_opposite():
    pattern = np.eye(T)
    rows = rows_of(np.eye(T), patterns()["S"])
    found = lens_similarity(rows.weights, pattern, measure="abs")[0]
    assert found[0] == 1
    assert found[1] == pytest.approx(1 - 2 * (T - 1) / T)  # row 0 is on slot 0 in both


def test_exclusions_leave_the_first_slot_or_the_query_itself_out():
    rows = rows_of(0.5 * patterns()["S"] + 0.5 * patterns()["P"])
    pattern = lens_pattern(rows.token, "previous_token_head")
    free = lens_similarity(rows.weights, pattern, measure="mul", exclude_bos=True)
    assert free == pytest.approx(1)


def test_rows_that_are_no_square_are_refused():
    rows = random_rows(0)
    with pytest.raises(InputError, match="square rows"):
        lens_similarity(rows.weights[:, :, :5], np.eye(T), measure="mul")
    with pytest.raises(InputError, match="a pattern of their shape"):
        lens_similarity(rows.weights, np.eye(5), measure="mul")


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("excluded", [(False, False), (True, False), (False, True), (True, True)])
def test_their_own_code_gives_the_same(measure, name, excluded):
    detector = pytest.importorskip("transformer_lens.head_detector")
    torch = pytest.importorskip("torch")
    rows = random_rows(7, layers=2, heads=2, n=12)
    draw = getattr(detector, f"get_{name}_detection_pattern")
    theirs = draw(torch.tensor(rows.token)[None])
    ours = lens_pattern(rows.token, name)
    np.testing.assert_array_equal(theirs.numpy(), ours)
    options = dict(zip(("exclude_bos", "exclude_current_token"), excluded, strict=True))
    found = lens_similarity(rows.weights, ours, measure=measure, **options)
    for layer, head in np.ndindex(2, 2):
        expected = detector.compute_head_attention_similarity_score(
            torch.tensor(rows.weights[layer, head]),
            detection_pattern=theirs,
            error_measure=measure,
            **options,
        )
        assert found[layer, head] == pytest.approx(expected, abs=5.1e-4)  # "abs" is rounded
