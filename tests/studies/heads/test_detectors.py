"""The detectors of plain text: planted heads, windows, symmetry, slow oracles, bad input."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempo.errors import InputError
from tempo_analysis.studies.heads.detectors.induction import (
    duplicate_halves,
    duplicate_halves_null,
    duplicate_token,
    frequent_ids,
    induction,
    induction_null,
    prefix_matching,
)
from tempo_analysis.studies.heads.detectors.positional import (
    NO_PEAK,
    offset_profile,
    peaks,
    previous_token,
)
from tempo_analysis.studies.heads.detectors.receivers import receivers
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows, draw_shuffle
from tempo_analysis.studies.heads.detectors.s_inhibition import s_inhibition
from tempo_analysis.studies.heads.detectors.sink import (
    bos_sink,
    column_alpha,
    delimiter,
    verticality,
)
from tempo_analysis.studies.heads.detectors.spectrum import spectrum
from tempo_analysis.studies.heads.detectors.successor import successor_attention, successor_run
from tests.head_patterns import (
    HALF,
    REPEATED,
    T,
    at_offset,
    one_hot,
    patterns,
    previous,
    random_rows,
    rows_of,
    second_half,
    sink,
    uniform,
    windowed,
)

DELIMITERS = np.array([1, 3])
Detector = Callable[[SequenceRows], HeadScore]
DETECTORS: dict[str, Detector] = {
    "previous_token": previous_token,
    "duplicate_token": duplicate_token,
    "prefix_matching": prefix_matching,
    "bos_sink": bos_sink,
    "column_alpha": lambda rows: column_alpha(rows, slot=2),
    "delimiter": lambda rows: delimiter(rows, DELIMITERS),
    "delimiter_multiple": lambda rows: delimiter(rows, DELIMITERS, with_self=True).over_chance(),
    "positional": lambda rows: peaks([offset_profile(rows)]).scores[0],
    "verticality": verticality,
    "receivers": lambda rows: receivers(rows).share_of_bound(),
    "entropy": lambda rows: spectrum(rows).normalised_without_sink,
    "distance": lambda rows: spectrum(rows).distance_without_sink,
    "successor": lambda rows: successor_attention(rows, np.array([1, 4, 6])),
    "s_inhibition": lambda rows: s_inhibition(rows, end=9, second_subject=4),
}


# --- every detector


@pytest.mark.parametrize("name", DETECTORS)
@given(seed=st.integers(0, 1000))
def test_permuting_heads_permutes_results(name, seed):
    rows = random_rows(seed, spread=2.0)
    order = np.random.default_rng(seed).permutation(3)
    turned = replace(rows, weights=rows.weights[::-1][:, order])
    plain, moved = DETECTORS[name](rows), DETECTORS[name](turned)
    np.testing.assert_allclose(moved.score, plain.score[::-1][:, order], rtol=1e-6)
    np.testing.assert_allclose(moved.chance, plain.chance[::-1][:, order], rtol=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
@given(seed=st.integers(0, 1000))
def test_a_slot_that_no_query_may_see_changes_nothing(name, seed):
    rows = random_rows(seed)
    more = [(0, 0), (0, 0), (0, 0), (0, 1)]
    seen = np.pad(rows.visibility(), more[1:])
    padded = SequenceRows(np.append(rows.token, 1), np.pad(rows.weights, more), seen)
    plain, found = DETECTORS[name](rows), DETECTORS[name](padded)
    np.testing.assert_allclose(found.score, plain.score, rtol=1e-6)
    np.testing.assert_allclose(found.chance, plain.chance, rtol=1e-6)
    np.testing.assert_array_equal(found.n_queries, plain.n_queries)


@pytest.mark.parametrize("name", DETECTORS)
def test_causal_visibility_may_be_given_or_left_out(name):
    rows = random_rows(3)
    given_ = replace(rows, visible=rows.visibility().copy())
    np.testing.assert_array_equal(DETECTORS[name](given_).score, DETECTORS[name](rows).score)


@pytest.mark.parametrize("name", DETECTORS)
def test_even_rows_in_a_window_have_the_chance_value_of_each_layer(name):
    visible = windowed(3, T, 5)
    even = np.repeat((visible / visible.sum(-1, keepdims=True))[:, None], 2, axis=1)
    token = np.random.default_rng(0).integers(0, 5, T)
    found = DETECTORS[name](SequenceRows(token, even.astype(np.float32), visible))
    np.testing.assert_allclose(found.score, found.chance, rtol=1e-5)
    assert not np.isnan(found.score[0]).any()


def slow_mean(rows: SequenceRows, is_target: Callable[[int, int], bool], *, every: bool):
    """Score and chance of one (layer, head) at a time, cell by cell."""
    visible = rows.visibility()
    score, chance = np.full((2, *rows.weights.shape[:2]), np.nan)
    for layer, head in np.ndindex(score.shape):
        values, evens = [], []
        for q in range(rows.n_queries):
            targets = [k for k in range(q + 1) if visible[layer, q, k] and is_target(q, k)]
            if targets or every:
                values.append(rows.weights[layer, head, q, targets].sum())
                evens.append(len(targets) / visible[layer, q].sum())
        if values:
            score[layer, head], chance[layer, head] = np.mean(values), np.mean(evens)
    return score, chance


@pytest.mark.parametrize("name", ["duplicate_token", "prefix_matching", "delimiter"])
@pytest.mark.parametrize("window", [None, 4])
def test_masses_are_their_definition_cell_by_cell(name, window):
    rows = random_rows(5, layers=3, n=12)
    if window:
        visible = windowed(3, 12, window)
        kept = rows.weights * visible[:, None]
        rows = SequenceRows(rows.token, kept / kept.sum(-1, keepdims=True), visible)
    token = rows.token
    targets = {
        "duplicate_token": lambda q, k: k < q and token[k] == token[q],
        "prefix_matching": lambda q, k: k >= 1 and token[k - 1] == token[q],
        "delimiter": lambda q, k: k < q and token[k] in DELIMITERS,
    }
    score, chance = slow_mean(rows, targets[name], every=name == "delimiter")
    found = DETECTORS[name](rows)
    np.testing.assert_allclose(found.score, score, rtol=1e-6)
    np.testing.assert_allclose(found.chance, chance, rtol=1e-6)


def test_rows_of_a_learned_sink_keep_their_missing_mass_missing():
    rows = rows_of(0.25 * previous(), 0.25 * np.eye(T))
    assert previous_token(rows).score[0, 0] == 0.25
    assert spectrum(rows).entropy_nats.score[0, 0] == pytest.approx(0, abs=1e-7)


# --- previous token and first token


@pytest.mark.parametrize("n", [2, 5, 40])
def test_a_previous_token_head_has_1_at_every_length(n):
    assert previous_token(rows_of(previous(n))).score == 1


def test_one_token_has_no_token_before():
    for ask in (previous_token, prefix_matching, duplicate_token, bos_sink, offset_profile):
        with pytest.raises(InputError, match="at least 2 tokens"):
            ask(rows_of(np.ones((1, 1))))


def test_the_first_query_is_left_out_of_the_sink():
    rows = rows_of(np.eye(T), sink())
    np.testing.assert_array_equal(bos_sink(rows).score[0], [0, 1])
    np.testing.assert_array_equal(column_alpha(rows).score[0], [1 / T, 1])


def test_a_sequence_that_does_not_reach_the_slot_is_refused():
    with pytest.raises(InputError, match="at least 17 tokens for slot 16"):
        column_alpha(rows_of(uniform()), slot=16)


# --- induction and duplicates


def test_leading_tokens_shift_the_halves():
    body = second_half(HALF - 1)
    shifted = np.zeros((T + 1, T + 1))
    shifted[0, 0], shifted[1:, 1:] = 1, body
    rows = rows_of(shifted, token=np.concatenate([[99], REPEATED]))
    assert induction(rows, start=1).score == 1
    assert duplicate_halves(rows, start=1).score == 0


def test_a_head_of_fixed_offset_fakes_induction_and_its_null():
    fake = at_offset(HALF - 1)
    apart = rows_of(fake, token=np.arange(T))
    assert induction(rows_of(fake, token=REPEATED)).score == induction_null(apart).score == 1
    other_length = np.tile(np.arange(6), 2)
    assert induction(rows_of(at_offset(HALF - 1, 12), token=other_length)).score == 0


def test_a_target_out_of_the_window_is_no_target():
    rows = rows_of(np.eye(T), token=REPEATED, visible=windowed(2, T, HALF)[1:])
    assert induction(rows).n_queries == HALF - 1  # offset 7 is the last inside
    assert np.isnan(duplicate_halves(rows).score).all()


@pytest.mark.parametrize(
    ("token", "ask", "message"),
    [
        (np.arange(T), induction, "expected equal halves, got unequal"),
        (np.arange(T), duplicate_halves, "expected equal halves, got unequal"),
        (REPEATED, induction_null, "expected independent halves, got equal"),
        (REPEATED, duplicate_halves_null, "expected independent halves, got equal"),
        (np.zeros(T, int), induction, "without repeated tokens"),
    ],
)
def test_halves_of_the_wrong_kind_are_refused(token, ask, message):
    with pytest.raises(InputError, match=message):
        ask(rows_of(uniform(), token=token))


def test_an_odd_or_a_short_sequence_has_no_halves():
    with pytest.raises(InputError, match="got 15 tokens; give an even number"):
        induction(rows_of(uniform(), token=np.arange(T)), start=1)
    with pytest.raises(InputError, match="at least 4 tokens for two halves"):
        induction(rows_of(uniform(3)))


def test_text_without_repeats_has_no_duplicate_score():
    found = duplicate_token(rows_of(uniform()))
    assert np.isnan(found.score).all()
    assert found.n_queries == 0


def test_excluded_tokens_are_left_out_as_queries():
    token = np.array([1, 2, 1, 2, 1, 2])
    to_copy = one_hot(np.array([0, 1, 0, 3, 0, 5]))  # tokens 1 look at slot 0, tokens 2 at self
    rows = rows_of(to_copy, token=token)
    assert duplicate_token(rows).score == 0.5
    assert duplicate_token(rows, without=np.array([2])).score == 1
    assert np.isnan(duplicate_token(rows, without=np.array([1, 2])).score).all()


def test_frequent_ids_come_by_count_then_by_id():
    texts = [np.array([7, 7, 5]), np.array([5, 9, 2])]
    np.testing.assert_array_equal(frequent_ids(texts, n=3), [5, 7, 2])


@given(seed=st.integers(0, 200))
def test_prefix_matching_is_induction_on_repeated_halves_and_one_query_more(seed):
    rows = replace(random_rows(seed), token=REPEATED.astype(np.int64))
    last = rows.weights[..., -1, HALF].astype(float)
    expected = (induction(rows).score * (HALF - 1) + last) / HALF
    np.testing.assert_allclose(prefix_matching(rows).score, expected, rtol=1e-6)


def test_relabelling_keeps_the_first_token_and_all_labels():
    rows = random_rows(0, n=40, ids=9)
    again = rows.relabelled(key=(1, 2))
    assert again.token[0] == rows.token[0]
    np.testing.assert_array_equal(np.sort(again.token), np.sort(rows.token))
    assert (again.token != rows.token).any()
    np.testing.assert_array_equal(again.token, rows.relabelled(key=(1, 2)).token)
    assert (again.token != rows.relabelled(key=(1, 3)).token).any()


# --- offsets


@pytest.mark.parametrize("offset", [1, 3, 7])
def test_a_head_of_one_offset_has_all_of_its_profile_there(offset):
    found = peaks([offset_profile(rows_of(at_offset(offset, 32), uniform(32)))])
    profile = found.profile[0, 0]
    assert profile[offset] == 1
    assert np.nansum(profile) == 1
    assert found.peak[0].tolist() == [offset, 1]
    assert found.scores[0].score[0, 0] == 1


def test_a_sink_has_no_offset_once_it_is_left_out():
    found = peaks([offset_profile(rows_of(sink(), np.eye(T), 0.5 * sink() + 0.5 * previous()))])
    assert found.peak[0].tolist() == [NO_PEAK, NO_PEAK, 1]
    np.testing.assert_array_equal(np.isnan(found.scores[0].score[0]), [True, False, False])
    assert found.scores[0].score[0, 2] == 1  # of what is not on slot 0


def test_an_offset_that_few_queries_reach_is_left_out():
    rows = offset_profile(rows_of(uniform())).rows[0, 0]
    known = np.flatnonzero(rows)
    assert known.tolist() == list(range(12))  # 15 - o rows, at least 4 of them
    raw = offset_profile(rows_of(uniform()), sink="with", smallest_share=0.0)
    assert raw.rows[0, 0].tolist() == list(range(T, 0, -1))


@pytest.mark.parametrize("sink_rule", ["with", "without"])
def test_the_profile_is_its_definition_one_row_at_a_time(sink_rule):
    rows = random_rows(1, layers=3, n=14)
    visible = windowed(3, 14, 6)
    kept = rows.weights * visible[:, None]
    rows = SequenceRows(rows.token, kept / kept.sum(-1, keepdims=True), visible)
    found = offset_profile(rows, sink=sink_rule, smallest_share=0.0)
    first = 1 if sink_rule == "without" else 0
    for layer, head, o in np.ndindex(3, 3, 14):
        cells = [
            rows.weights[layer, head, q, q - o] / rows.weights[layer, head, q, first:].sum()
            for q in range(first, 14)
            if q - o >= first and visible[layer, q, q - o]
        ]
        expected = np.mean(cells) if cells else np.nan
        assert found.profile[layer, head, o] == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert found.rows[layer, head, o] == len(cells)


def test_the_peak_is_that_of_the_mean_and_not_the_mean_of_peaks():
    sequences = [rows_of(at_offset(offset, 32)) for offset in (2, 3, 3, 5)]
    found = peaks([offset_profile(each) for each in sequences])
    assert found.peak == 3
    assert [each.score.item() for each in found.scores] == [0, 1, 1, 0]


def test_profiles_of_several_lengths_do_not_mix():
    both = [offset_profile(rows_of(uniform(n))) for n in (16, 20)]
    with pytest.raises(InputError, match="sequences of one length"):
        peaks(both)
    with pytest.raises(InputError, match="several or none"):
        peaks([])


# --- delimiters


def test_a_delimiter_head_has_all_of_its_mass_there_and_even_rows_the_multiple_1():
    token = np.array([1, 5, 5, 3, 5, 5, 5, 1])
    target = one_hot(np.array([0, 0, 0, 0, 3, 3, 3, 3]))
    rows = rows_of(target, uniform(8), token=token)
    assert delimiter(rows, DELIMITERS, with_self=True).score[0, 0] == 1
    alone = delimiter(rows, DELIMITERS).score[0, 0]
    assert alone == 7 / 8  # the first token has only itself
    assert delimiter(rows, DELIMITERS).over_chance().score[0, 1] == pytest.approx(1, abs=1e-6)


def test_the_chance_of_delimiters_is_even_causal_attention():
    token = np.array([1, 5, 3, 5])
    shares = [0, 1 / 2, 1 / 3, 2 / 4]  # earlier delimiters over visible slots
    assert delimiter(rows_of(uniform(4), token=token), DELIMITERS).chance == pytest.approx(
        np.mean(shares)
    )


def test_a_delimiter_that_attends_to_itself_counts_only_when_asked():
    token = np.array([5, 1, 3, 1])
    rows = rows_of(np.eye(4), token=token)
    assert delimiter(rows, DELIMITERS).score == 0
    assert delimiter(rows, DELIMITERS, with_self=True).score == 0.75


def test_text_without_delimiters_says_nothing_about_them():
    found = delimiter(rows_of(uniform(), token=np.full(T, 9)), DELIMITERS)
    assert np.isnan(found.score).all()
    assert np.isnan(found.over_chance().score).all()
    assert found.n_queries == 0


# --- successors and subjects


def test_a_successor_head_looks_two_back_from_element_to_element():
    rows = rows_of(at_offset(2), previous())
    np.testing.assert_array_equal(successor_attention(rows, np.array([1, 3, 5])).score[0], [1, 0])


def run_of(ordinal: float, words: float, shuffled: float, descending: float):
    scores = [
        HeadScore(np.full((1, 1), each), np.full((1, 1), 0.1), np.array([3]))
        for each in (ordinal, words, shuffled, descending)
    ]
    return successor_run(scores[0], words=scores[1], shuffled=scores[2], descending=scores[3])


def test_the_signal_and_its_null_are_differences_of_chance_0():
    run = run_of(0.7, 0.2, 0.5, 0.4)
    found = [each.score.item() for each in (run.signal(), run.null())]
    np.testing.assert_allclose(found, [0.5, 0.3])
    assert run.signal().chance == run.null().chance == 0


def test_conditions_of_other_lengths_are_refused():
    rows = rows_of(uniform())
    short, long = (successor_attention(rows, np.array(at)) for at in ([1, 3], [1, 3, 5]))
    with pytest.raises(InputError, match="elements at the same slots"):
        successor_run(long, words=short, shuffled=long, descending=long)


@pytest.mark.parametrize("elements", [[3], [3, 3], [5, 3], [3, 16], [-1, 3]])
def test_elements_must_ascend_inside_the_sequence(elements):
    with pytest.raises(InputError, match="ascending slots below 16"):
        successor_attention(rows_of(uniform()), np.array(elements))


def test_s_inhibition_is_one_cell():
    rows = random_rows(2)
    found = s_inhibition(rows, end=14, second_subject=9)
    np.testing.assert_array_equal(found.score, rows.weights[..., 14, 9].astype(float))
    np.testing.assert_allclose(found.chance, 1 / 15)


@pytest.mark.parametrize(("end", "second"), [(5, 5), (5, 6), (16, 3), (5, -1)])
def test_the_second_mention_comes_before_the_end(end, second):
    with pytest.raises(InputError, match="second mention < end < 16"):
        s_inhibition(rows_of(uniform()), end=end, second_subject=second)


# --- what is handed over


def test_rows_must_fit_their_tokens_and_their_visibility():
    with pytest.raises(InputError, match="one token for each slot"):
        rows_of(uniform(), token=np.arange(5))
    with pytest.raises(InputError, match=r"visibility \[layer query slot\] of shape \(1, 16, 16\)"):
        rows_of(uniform(), visible=windowed(2, T, 4))


# --- shuffled keys


@pytest.mark.parametrize("keeps_first", [False, True])
def test_a_shuffle_moves_weights_within_what_a_row_sees(keeps_first):
    rows = random_rows(4, layers=3, n=12, spread=2.0)
    visible = windowed(3, 12, 5)
    rows = SequenceRows(rows.token, rows.weights * visible[:, None], visible)
    again = draw_shuffle(rows, key=(0,), keeps_first=keeps_first)(rows)
    np.testing.assert_array_equal(np.sort(again.weights, -1), np.sort(rows.weights, -1))
    assert (again.weights[~np.broadcast_to(visible[:, None], rows.weights.shape)] == 0).all()
    assert (again.weights != rows.weights).mean() > 0.1
    assert (again.weights[..., 0] == rows.weights[..., 0]).all() == keeps_first


def test_the_expectation_of_a_shuffled_weight_is_the_mean_of_its_row():
    heads = np.stack([previous(6)] * 3000)[None].astype(np.float32)
    rows = SequenceRows(np.arange(6), heads)
    found = draw_shuffle(rows, key=(3,))(rows).weights.mean((0, 1))
    np.testing.assert_allclose(found, uniform(6), atol=0.04)
    free = draw_shuffle(rows, key=(3,), keeps_first=True)(rows).weights.mean((0, 1))
    for q in (3, 4, 5):
        np.testing.assert_allclose(free[q, 1 : q + 1], 1 / q, atol=0.04)


def test_a_shuffle_is_keyed_and_fits_one_shape_only():
    rows = random_rows(4)
    first, same, other = (draw_shuffle(rows, key=(k,)).source for k in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    with pytest.raises(InputError, match="draw one for each length and visibility"):
        draw_shuffle(rows, key=(0,))(random_rows(4, n=12))


def test_shuffled_keys_take_every_place_away():
    rows = rows_of(*patterns().values(), token=REPEATED)
    shuffle = draw_shuffle(rows, key=(0,))
    for ask, head in ((previous_token, 1), (bos_sink, 2)):
        assert ask(rows).score[0, head] == 1
        assert ask(shuffle(rows)).score[0, head] < 0.5
