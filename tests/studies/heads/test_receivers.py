"""Receivers, verticality, spectrum and retrieval: planted truth, other people's code, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tempo.errors import InputError
from tempo_analysis.parallel.entropy import binary_entropy_nats, entropy_with_sink
from tempo_analysis.studies.heads.detectors.receivers import (
    RECEIVER_THRESHOLD,
    kurtosis_bound,
    receiver_cut,
    receivers,
    sentence_spans,
    split_half_correlation,
)
from tempo_analysis.studies.heads.detectors.retrieval import retrieval, rouge_1_recall
from tempo_analysis.studies.heads.detectors.rows import SequenceRows
from tempo_analysis.studies.heads.detectors.sink import verticality
from tempo_analysis.studies.heads.detectors.spectrum import COLUMNS, row_entropies, spectrum
from tests.head_patterns import (
    T,
    at_offset,
    previous,
    random_rows,
    random_weights,
    rows_of,
    sink,
    uniform,
    windowed,
)


def planted(slots: list[int], n: int = 40) -> np.ndarray:
    """These slots share half of every later row."""
    weights = uniform(n)
    for q in range(n):
        seen = [slot for slot in slots if slot < q]
        if seen:
            weights[q] *= 0.5
            weights[q, seen] += 0.5 / len(seen)
    return weights


# --- receivers


def test_a_planted_receiver_has_the_largest_vertical_score():
    found = receivers(rows_of(planted([7]), uniform(40)))
    assert np.nanargmax(found.vertical[0, 0, 1:]) + 1 == 7
    assert found.kurtosis[0, 0] > 0.9 * found.bound
    assert found.kurtosis[0, 1] == pytest.approx(found.even_kurtosis[0, 1], rel=1e-3)


def test_a_sink_is_no_receiver_once_the_first_sentence_is_left_out():
    both = rows_of(sink(40), 0.7 * sink(40) + 0.3 * uniform(40))
    free = receivers(both)
    assert np.isnan(free.kurtosis[0, 0])
    assert free.kurtosis[0, 1] == pytest.approx(free.even_kurtosis[0, 1], rel=1e-3)
    kept = receivers(both, skips_first=False)
    assert kept.kurtosis[0, 0] == pytest.approx(kept.bound)


@given(seed=st.integers(0, 500))
def test_vertical_scores_and_kurtosis_are_those_of_the_paper(seed):
    rows = random_rows(seed, n=20, spread=2.0)
    found = receivers(rows, skips_first=False, smallest_share=0.0)
    for layer, head in np.ndindex(2, 3):
        square = rows.weights[layer, head].astype(float)
        vertical = [square[j + 4 :, j].mean() for j in range(16)]
        np.testing.assert_allclose(found.vertical[layer, head, :16], vertical, rtol=1e-5)
        assert np.isnan(found.vertical[layer, head, 16:]).all()
        expected = stats.kurtosis(found.vertical[layer, head], nan_policy="omit")
        assert found.kurtosis[layer, head] == pytest.approx(expected, rel=1e-6)


def test_ranks_replace_the_entries_of_each_row():
    square = random_rows(1, n=14).weights[0, 0]
    far = np.where(np.tri(14, k=-4, dtype=bool), square.astype(float), np.nan)
    ranks = stats.rankdata(far, axis=-1, nan_policy="omit")
    ranks = ranks / np.maximum((~np.isnan(far)).sum(-1, keepdims=True), 1)
    expected = np.nanmean(ranks[4:, :10], axis=0)
    found = receivers(rows_of(square), ranked=True, smallest_share=0.0).vertical[0, 0]
    np.testing.assert_allclose(found[:10], expected, rtol=1e-6)


def test_blocks_are_means_over_the_tokens_of_two_sentences():
    rows = random_rows(3, n=12)
    spans = np.array([[0, 1], [1, 3], [3, 4], [4, 6], [6, 7], [7, 9], [9, 12]])
    found = receivers(rows, spans=spans, distance=2, skips_first=False, smallest_share=0.0)
    for j, (start, stop) in enumerate(spans[:5]):
        blocks = [rows.weights[0, 0, a:b, start:stop].mean() for a, b in spans[j + 2 :]]
        assert found.vertical[0, 0, j] == pytest.approx(np.mean(blocks), rel=1e-5)
    assert found.n_values == 5


@pytest.mark.parametrize(("n", "bound"), [(11, 6.10), (47, 42.02), (124, 119.01)])
def test_the_bound_is_reached_by_one_value_that_differs(n, bound):
    assert kurtosis_bound(n) == pytest.approx(bound, abs=0.01)
    values = np.zeros(n)
    values[3] = 1
    assert stats.kurtosis(values) == pytest.approx(kurtosis_bound(n))


def test_late_sentences_are_left_out_of_the_kurtosis():
    square = uniform(40)
    square[39] = 0
    square[39, 35] = 1  # one row alone decides the score of slot 35
    noisy, all_in = (receivers(rows_of(square), smallest_share=s) for s in (0.25, 0.0))
    assert noisy.n_values == 26  # slots 1 to 26 have ten rows or more
    assert noisy.kurtosis < 1 < all_in.kurtosis


def test_too_few_sentences_are_refused():
    with pytest.raises(InputError, match="at least 4 sentences"):
        receivers(rows_of(uniform(8)))
    assert receivers(rows_of(uniform(9)), smallest_share=0.0).n_values == 4


@pytest.mark.parametrize("spans", [[[0, 4], [3, 16]], [[0, 0], [0, 16]], [[0, 8], [8, 17]]])
def test_spans_must_ascend_inside_the_sequence(spans):
    with pytest.raises(InputError, match="spans that ascend from 0 to 16"):
        receivers(rows_of(uniform()), spans=np.array(spans))


def test_the_cut_for_receivers_is_the_rank_of_the_paper_and_never_below_ours():
    shares = np.linspace(0.99, 0.6, 40).reshape(1, 4, 10)
    assert (shares[:, 1:] > receiver_cut(shares, n=5)).sum() == 5  # layer 0 takes no place
    assert receiver_cut(shares / 2) == RECEIVER_THRESHOLD
    assert receiver_cut(np.full((1, 3, 2), np.nan)) == RECEIVER_THRESHOLD


def test_the_halves_of_a_sample_agree_where_heads_differ():
    base = np.random.default_rng(0).normal(0, 1, (1, 3, 4))
    assert split_half_correlation(np.repeat(base, 6, axis=0)) == pytest.approx(1)
    assert np.isnan(split_half_correlation(base))
    assert np.isnan(split_half_correlation(np.ones((4, 3, 4))))


def test_sentences_close_at_the_last_of_several_marks():
    token = np.array([5, 6, 1, 2, 7, 1, 8])
    spans = sentence_spans(token, np.array([1, 2]))
    assert spans.tolist() == [[0, 4], [4, 6], [6, 7]]
    assert sentence_spans(token[:6], np.array([1, 2])).tolist() == [[0, 4], [4, 6]]
    assert sentence_spans(token, np.array([99])).tolist() == [[0, 7]]


@given(offset=st.integers(1, 10))
def test_verticality_is_the_longest_column_over_the_mean(offset):
    found = verticality(rows_of(at_offset(offset)))
    assert found.score == pytest.approx(offset + 1)  # the first rows fall on slot 0
    assert found.chance == pytest.approx((1 / np.arange(1, T + 1)).sum())


# --- spectrum


@given(seed=st.integers(0, 500), spread=st.floats(0.1, 8))
def test_entropies_meet_the_chain_rule(seed, spread):
    rows = random_rows(seed, spread=spread)
    entropy, free, sink_mass, rest = row_entropies(rows.weights)
    known = rest > 1e-4
    composed = entropy_with_sink(np.where(known, free, 0), np.where(known, sink_mass, 0))
    np.testing.assert_allclose(entropy[known], composed[known], rtol=1e-4, atol=1e-5)


def test_the_worked_example_of_the_chain_rule():
    row = np.array([0.7, 0.1, 0.1, 0.05, 0.05], np.float32)
    entropy, free, sink_mass, rest = row_entropies(row[None, None, None])
    assert entropy.item() == pytest.approx(1.00976, abs=1e-5)
    composed = binary_entropy_nats(sink_mass) + rest * free
    assert composed.item() == pytest.approx(1.00976, abs=1e-5)


def test_a_sharp_head_has_one_key_and_an_even_one_all():
    found = spectrum(rows_of(previous(), uniform()))
    n = np.arange(1, T + 1)
    np.testing.assert_allclose(found.effective_keys.score[0], [1, n.mean()], rtol=1e-6)
    np.testing.assert_allclose(found.participation.score[0], [1, n.mean()], rtol=1e-6)
    np.testing.assert_allclose(found.max_weight.score[0], [1, (1 / n).mean()], rtol=1e-6)


def test_the_sink_hides_what_the_rest_does():
    quiet = 0.9 * sink() + 0.1 * uniform()
    loud = 0.1 * sink() + 0.9 * uniform()
    found = spectrum(rows_of(quiet, loud, sink()))
    np.testing.assert_allclose(found.normalised_without_sink.score[0, :2], 1, rtol=1e-5)
    assert found.normalised.score[0, 0] < 0.5 < found.normalised.score[0, 1]
    near, far = found.distance_without_sink.score[0, :2]
    assert near == pytest.approx(far, rel=1e-5)
    assert found.distance.score[0, 0] > found.distance.score[0, 1]
    assert np.isnan(found.normalised_without_sink.score[0, 2])
    assert found.distance.score[0, 2] == pytest.approx((T - 1) / 2)


def test_the_spectrum_is_its_definition_one_row_at_a_time():
    rows = random_rows(2, layers=3, n=10, spread=2.0)
    sight = windowed(3, 10, 4)
    weights = rows.weights * sight[:, None]
    rows = SequenceRows(rows.token, weights / weights.sum(-1, keepdims=True), sight)
    found = spectrum(rows)
    for layer, head in np.ndindex(3, 3):
        columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
        for q in range(10):
            slots = np.flatnonzero(sight[layer, q])
            row, n = rows.weights[layer, head, q, slots].astype(float), len(slots)
            columns["entropy_nats"].append(stats.entropy(row))
            columns["effective_keys"].append(np.exp(stats.entropy(row)))
            columns["max_weight"].append(row.max())
            columns["participation"].append(1 / (row**2).sum())
            columns["distance"].append((row * (q - slots)).sum())
            if n > 1:
                columns["normalised"].append(stats.entropy(row) / np.log(n))
            rest, behind = row[slots > 0], (q - slots)[slots > 0]
            if len(rest):
                columns["distance_without_sink"].append((rest * behind).sum() / rest.sum())
            if len(rest) > 1:
                columns["entropy_without_sink_nats"].append(stats.entropy(rest))
                columns["normalised_without_sink"].append(stats.entropy(rest) / np.log(len(rest)))
        for name, values in columns.items():
            score = getattr(found, name)
            assert score.score[layer, head] == pytest.approx(np.mean(values), rel=1e-5), name
            assert score.n_queries[layer] == len(values), name


# --- retrieval

PROMPT = np.array([9, 1, 2, 3, 50, 51, 52, 4, 5, 6, 7, 8])
NEEDLE = (4, 7)
WRITTEN = np.array([50, 51, 52])


def looks_at(*slots: int) -> np.ndarray:
    """One head in one layer, whose last row is on these slots, step by step."""
    return np.eye(len(PROMPT) + 2)[list(slots)][:, None, None].astype(np.float32)


def asked(rows: np.ndarray, written: np.ndarray = WRITTEN):
    return retrieval(PROMPT, rows, written=written, needle=NEEDLE, key=(0,))


def test_a_retrieval_head_looks_at_the_token_it_writes():
    assert asked(looks_at(4, 5, 6)).hits.score == 1
    assert asked(looks_at(5, 6, 4)).hits.score == 0  # in the needle, at another token
    assert asked(looks_at(4, 0, 6)).hits.score == pytest.approx(2 / 3)
    assert asked(looks_at(0, 0, 0)).hits.score == 0


def test_a_slot_hit_twice_counts_once():
    again = asked(looks_at(4, 4, 5, 6), written=np.array([50, 50, 51, 52]))
    assert again.hits.score == 1
    assert asked(looks_at(4, 4, 4, 4), written=np.array([50, 50, 51, 52])).hits.score == (
        pytest.approx(1 / 3)
    )


def test_a_failed_trial_says_nothing():
    found = asked(looks_at(4, 0), written=np.array([50, 7]))
    assert found.recall == pytest.approx(1 / 3)
    assert np.isnan(found.hits.score).all()
    assert np.isnan(found.null.score).all()


def test_the_random_span_is_clear_of_the_needle_and_of_the_first_slot():
    for seed in range(20):
        rows = np.ones((3, 1, 1, len(PROMPT) + 2), np.float32) * 0.01
        rows[..., :] += looks_at(4, 5, 6)
        rows[..., 0] = 5
        found = retrieval(PROMPT, rows, written=WRITTEN, needle=NEEDLE, key=(seed,))
        assert found.null.score == 0  # the row is on slot 0, which no span holds
    everywhere = [
        retrieval(PROMPT, looks_at(7, 8, 9), written=WRITTEN, needle=NEEDLE, key=(seed,))
        for seed in range(20)
    ]
    assert {round(each.null.score.item() * 3) for each in everywhere} == {0, 1, 2, 3}
    assert all(each.hits.score == 0 for each in everywhere)


def test_the_chance_of_a_hit_is_one_visible_slot_in_each_row():
    found = asked(looks_at(4, 5, 6))
    assert found.hits.chance == pytest.approx(np.mean([1 / 12, 1 / 13, 1 / 14]))
    np.testing.assert_array_equal(found.null.chance, found.hits.chance)


def test_random_rows_hit_as_often_as_chance_says():
    rng = np.random.default_rng(0)
    rows = random_weights(rng, 3, 60, 60, len(PROMPT) + 2, causal=False)
    for step in range(3):
        rows[step, ..., len(PROMPT) + step :] = 0
    found = asked(rows)
    assert found.hits.score.mean() == pytest.approx(found.hits.chance.mean(), abs=0.01)


def test_recall_counts_each_token_as_often_as_it_stands_in_both():
    assert rouge_1_recall(np.array([1, 1, 2]), np.array([1, 3, 2])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needle": (7, 4)}, "needle inside the prompt of 12 tokens, got 7 to 4"),
        ({"needle": (4, 13)}, "needle inside the prompt"),
        ({"needle": (2, 11)}, "room for another span of 9 tokens"),
        ({"written": np.array([50])}, "one row over 12 slots or more for each token written"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused(change, message):
    given_ = {"written": WRITTEN, "needle": NEEDLE, "key": (0,)} | change
    with pytest.raises(InputError, match=message):
        retrieval(PROMPT, looks_at(4, 5, 6), **given_)
