"""Every number of the table of hand-built patterns, and the closed forms of even attention."""

import numpy as np
import pytest

from tempo_analysis.studies.heads.detectors.induction import (
    duplicate_halves,
    duplicate_token,
    induction,
)
from tempo_analysis.studies.heads.detectors.positional import (
    NO_PEAK,
    offset_profile,
    peaks,
    previous_token,
)
from tempo_analysis.studies.heads.detectors.receivers import receivers
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows
from tempo_analysis.studies.heads.detectors.sink import (
    bos_sink,
    column_alpha,
    sink_rate,
    verticality,
)
from tempo_analysis.studies.heads.detectors.spectrum import spectrum
from tests.head_patterns import REPEATED, T, patterns, rows_of, uniform

EXACT = 1e-4
NAMES = ("U", "P", "S", "I", "IND", "DUP", "MIX")
NAN = float("nan")
TABLE = {
    "previous": (0.1587, 1, 0.0667, 0, 0.0667, 0.0667, 0.5333),
    "induction": (0.0858, 0, 0, 0, 1, 0, 0),
    "duplicate": (0.0829, 0, 0.125, 0, 0, 1, 0.0625),
    "alpha_0": (0.2113, 0.125, 1, 0.0625, 0.5, 0.5625, 0.5625),
    "alpha_1": (0.1587, 0.0667, 0, 0.0667, 0.0667, 0.0667, 0.0333),
    "verticality": (3.3807, 2, 16, 1, 8, 9, 9),
    "entropy_nats": (1.9170, 0, 0, 0, 0, 0, 0.6065),
    "normalised": (1, 0, 0, 0, 0, 0, 0.3241),
    "distance": (3.75, 0.9375, 7.5, 0, 5.25, 5.75, 4.2188),
    "kurtosis": (-0.7899, NAN, 7.0909, NAN, -0.427, 1.5913, 7.0909),
    "max_offset": (0.1587, 1, 1, 0, 1, 1, 0.5333),
}
PEAKS = (1, 1, 15, NO_PEAK, 7, 8, 1)


def measured(rows: SequenceRows) -> dict[str, np.ndarray]:
    shape = spectrum(rows)
    raw = peaks([offset_profile(rows, sink="with", smallest_share=0.0)])
    scores: dict[str, HeadScore] = {
        "previous": previous_token(rows),
        "induction": induction(rows),
        "duplicate": duplicate_halves(rows),
        "alpha_0": column_alpha(rows),
        "alpha_1": column_alpha(rows, slot=1),
        "verticality": verticality(rows),
        "entropy_nats": shape.entropy_nats,
        "normalised": shape.normalised,
        "distance": shape.distance,
        "max_offset": raw.scores[0],
    }
    found = {name: each.score[0] for name, each in scores.items()}
    kurtosis = receivers(rows, skips_first=False, smallest_share=0.0).kurtosis[0]
    return found | {"kurtosis": kurtosis, "peak": raw.peak[0]}


@pytest.fixture(scope="module")
def found() -> dict[str, np.ndarray]:
    return measured(rows_of(*patterns().values(), token=REPEATED))


@pytest.mark.parametrize("column", TABLE)
@pytest.mark.parametrize("head", range(len(NAMES)), ids=NAMES)
def test_a_hand_built_pattern_has_the_number_of_the_table(found, column, head):
    assert found[column][head] == pytest.approx(TABLE[column][head], abs=EXACT, nan_ok=True)


@pytest.mark.parametrize("head", range(len(NAMES)), ids=NAMES)
def test_the_raw_offset_profile_peaks_where_the_table_says(found, head):
    assert found["peak"][head] == PEAKS[head]


def test_text_version_and_halves_agree_on_distinct_halves(found):
    rows = rows_of(*patterns().values(), token=REPEATED)
    np.testing.assert_allclose(duplicate_token(rows).score[0], found["duplicate"], atol=1e-7)


@pytest.mark.parametrize("n", [15, 16, 64, 128])
def test_even_attention_has_its_closed_forms(n):
    rows = rows_of(uniform(n))
    harmonic = (1 / np.arange(1, n + 1)).sum()
    assert previous_token(rows).score == pytest.approx((harmonic - 1) / (n - 1), abs=1e-6)
    assert column_alpha(rows).score == pytest.approx(harmonic / n, abs=1e-6)
    assert bos_sink(rows).score == pytest.approx((harmonic - 1) / (n - 1), abs=1e-6)
    assert verticality(rows).score == pytest.approx(harmonic, abs=1e-5)
    assert spectrum(rows).distance.score == pytest.approx((n - 1) / 4, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "expected"), [(15, 0.1656), (64, 0.0594), (128, 0.0349), (512, 0.0114)]
)
def test_previous_token_of_even_attention_falls_with_the_length(n, expected):
    assert previous_token(rows_of(uniform(n))).score == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("half", [2, 8, 25])
def test_induction_of_even_attention_is_the_mean_of_one_over_the_places(half):
    rows = rows_of(uniform(2 * half), token=np.tile(np.arange(half), 2))
    expected = np.mean(1 / np.arange(half + 1, 2 * half))
    assert induction(rows).score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "kurtosis"), [(15, -0.84), (51, 0.35), (128, 1.61)])
def test_the_kurtosis_of_even_attention_is_not_zero(n, kurtosis):
    found = receivers(rows_of(uniform(n)), skips_first=False, smallest_share=0.0)
    assert found.kurtosis == pytest.approx(kurtosis, abs=0.01)
    assert found.even_kurtosis == pytest.approx(kurtosis, abs=0.01)


def test_a_sink_is_a_sink_in_every_sequence_and_even_attention_in_none():
    alphas = np.stack([column_alpha(rows_of(*patterns().values())).score] * 3)
    rate = sink_rate(alphas)
    np.testing.assert_array_equal(rate.by_head[0], [0, 0, 100, 0, 100, 100, 100])
    assert rate.percent == pytest.approx(400 / 7)
    assert column_alpha(rows_of(uniform(64))).score == pytest.approx(0.0741, abs=5e-5)


def test_a_sink_in_half_of_the_sequences_has_half_the_rate():
    alphas = np.array([0.9, 0.2, 0.9, 0.2])[:, None, None]
    assert sink_rate(alphas).percent == 50  # the mean, 0.55, would make it 100


def test_every_score_of_even_attention_is_its_chance_value():
    rows = rows_of(uniform(), uniform(), token=REPEATED)
    shape = spectrum(rows)
    for each in (
        *(previous_token(rows), induction(rows), duplicate_halves(rows), duplicate_token(rows)),
        *(bos_sink(rows), column_alpha(rows, slot=3), verticality(rows)),
        *(receivers(rows).share_of_bound(), peaks([offset_profile(rows)]).scores[0]),
        *(getattr(shape, name) for name in type(shape).__dataclass_fields__),
    ):
        np.testing.assert_allclose(each.score, each.chance, rtol=2e-6)
    assert rows.n_queries == T
