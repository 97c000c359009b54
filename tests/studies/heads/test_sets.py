"""Roles that only parallel sets can give, on traces."""

from collections.abc import Callable

import numpy as np
import pytest

from tempo.errors import LevelError, NoParallelSetsError
from tempo.testing.planted import Pattern, PlantedPlace, noisy, planted_trace, uniform, with_sink
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.observation import ObservedTrace, observe
from tempo_analysis.parallel.ratio import paired_ratio
from tempo_analysis.studies.heads.assignment import RoleScores, from_chance_up, role_scores
from tempo_analysis.studies.heads.detectors.rows import HeadScore
from tempo_analysis.studies.heads.detectors.sets import (
    CUT,
    LARGEST,
    SET_IGNORING_THRESHOLD,
    broadcast_null,
    require_data,
    set_broadcast,
    set_ignoring,
    sibling_attending,
    sibling_null,
    winner_following,
    winner_null,
)
from tempo_analysis.studies.heads.scoring import UNITS, assign_trace_role, score_trace

WIDTHS = (3, 1, 2, 4, 2)
LAYERS, HEADS = 2, 4
Score = Callable[[ObservedTrace], HeadScore]
Null = Callable[..., HeadScore]
ROLES: dict[str, tuple[Score, Null]] = {
    "sibling_attending": (sibling_attending, sibling_null),
    "set_broadcast": (set_broadcast, broadcast_null),
    "winner_following": (winner_following, winner_null),
}


def seen_trace(rows: Pattern = uniform, **plan) -> Trace:
    base = {"widths": WIDTHS, "relation": "visible", "n_layers": LAYERS, "n_heads": HEADS}
    return planted_trace(**(base | {"rows": rows, "prompt_length": 8} | plan))


def assign_role(role: str, traces: list[Trace]) -> RoleScores:
    ask, null = ROLES[role]
    observed = [observe(trace) for trace in traces]
    scores = [ask(each) for each in observed]
    controls = [null(each, key=(0, number)) for number, each in enumerate(observed)]
    return role_scores(role, scores, controls, threshold=from_chance_up(CUT, scores))


def one_head(special: Pattern) -> Pattern:
    """Layer 1, head 2 follows the pattern; every other head is nearly even, and noisy."""

    def pattern(place: PlantedPlace) -> np.ndarray:
        rng = np.random.default_rng((place.seed, place.step, 7))
        rows = np.exp(rng.normal(0, 0.5, (LAYERS, HEADS, *place.visible.shape)))
        rows[1, 2] = special(place)
        return rows

    return pattern


def likes_siblings(place: PlantedPlace) -> np.ndarray:
    return np.where(place.is_group("siblings"), 20.0, 0.5)


def likes_sets(place: PlantedPlace) -> np.ndarray:
    return np.where(place.is_group("earlier_sets"), 20.0, 0.2)


def likes_winners(place: PlantedPlace) -> np.ndarray:
    return np.where(place.is_group("earlier_sets") & (place.table.rank == 0), 20.0, 0.5)


PLANTED: dict[str, Pattern] = {
    "sibling_attending": likes_siblings,
    "set_broadcast": likes_sets,
    "winner_following": likes_winners,
}


# --- chance and nulls


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("relation", ["visible", "ordered"])
def test_even_attention_has_exactly_the_chance_value_and_is_its_own_null(role, relation):
    ask, null = ROLES[role]
    observed = observe(seen_trace(relation=relation))
    found = ask(observed)
    np.testing.assert_allclose(found.score, found.chance, rtol=1e-6)
    np.testing.assert_allclose(null(observed, key=(1,)).score, found.score, rtol=1e-6)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "rows", [uniform, noisy(uniform, 1.0), noisy(uniform, 3.0), with_sink(0.8, noisy(uniform, 1.0))]
)
def test_even_and_random_attention_hold_no_role(role, rows):
    found = assign_role(role, [seen_trace(rows, seed=seed) for seed in range(12)])
    assert not found.assigned.any()


@pytest.mark.parametrize("role", ROLES)
def test_the_planted_head_alone_holds_its_role(role):
    traces = [seen_trace(one_head(PLANTED[role]), seed=seed) for seed in range(12)]
    found = assign_role(role, traces)
    np.testing.assert_array_equal(np.argwhere(found.assigned), [[1, 2]])
    assert found.best_first()[0] == (1, 2)
    others = [each for each in ROLES if each != role]
    assert not any(assign_role(other, traces).assigned.any() for other in others)


@pytest.mark.parametrize("role", ROLES)
def test_a_sink_neither_makes_nor_hides_a_null(role):
    ask, null = ROLES[role]
    rows = noisy(uniform, 0.5)
    sunk, plain = (observe(seen_trace(with_sink(share, rows))) for share in (0.9, 0.1))
    scale = 1 if role == "winner_following" else 9
    np.testing.assert_allclose(scale * ask(sunk).score, ask(plain).score, rtol=1e-4)
    drawn = [null(each, key=(3,)).score for each in (sunk, plain)]
    np.testing.assert_allclose(scale * drawn[0], drawn[1], rtol=1e-4)


def test_nulls_are_keyed():
    observed = observe(seen_trace(noisy(uniform, 1.0)))
    for _, null in ROLES.values():
        first, same, other = (null(observed, key=(k,)).score for k in (0, 0, 1))
        np.testing.assert_array_equal(first, same)
        assert (first != other).any()


def test_a_battery_of_traces_asks_every_role_and_refuses_the_one_without_data():
    readings = []
    for seed in range(9):
        arm = seen_trace(one_head(likes_sets), seed=seed, relation="isolated")
        greedy = seen_trace(relation="greedy", widths=(1,) * 5, seed=seed)
        labels = inherited_labels(arm.slots, greedy.slots)
        readings.append(score_trace(observe(arm), key=(0, seed), greedy=(observe(greedy), labels)))
    assert set(readings[0]) == set(UNITS)
    broadcast = assign_trace_role("set_broadcast", readings)
    np.testing.assert_array_equal(np.argwhere(broadcast.assigned), [[1, 2]])
    assert broadcast.unit == UNITS["set_broadcast"]
    assert assign_trace_role("set_ignoring", readings).threshold == SET_IGNORING_THRESHOLD
    assert not assign_trace_role("set_ignoring", readings).assigned[1, 2]
    with pytest.raises(NoParallelSetsError, match="sibling_attending"):
        assign_trace_role("sibling_attending", readings)
    assert "set_ignoring" not in score_trace(observe(seen_trace()), key=(0, 0))


# --- definitions


def test_sibling_mass_is_the_sum_over_the_other_members():
    trace = seen_trace(noisy(uniform, 1.0))
    rows = []
    for step in (1, 3, 4, 5):
        members = trace.members(step)
        for query, slot in enumerate(members):
            others = np.setdiff1d(members, [slot])
            rows.append(trace.attention(step)[:, :, query, others].astype(float).sum(-1))
    found = sibling_attending(observe(trace))
    np.testing.assert_allclose(found.score, np.mean(rows, axis=0), rtol=1e-6)
    assert found.n_queries.tolist() == [11, 11]


def test_an_isolated_arm_has_no_sibling_attending_and_says_so():
    found = sibling_attending(observe(seen_trace(relation="isolated")))
    assert np.isnan(found.score).all()
    with pytest.raises(NoParallelSetsError, match="what sibling_attending attends to"):
        require_data("sibling_attending", [found, found])
    require_data("winner_following", [winner_following(observe(seen_trace()))])


def test_a_run_of_width_1_has_no_role_at_all():
    greedy = observe(seen_trace(relation="greedy", widths=(1, 1, 1)))
    for ask, null in ROLES.values():
        assert np.isnan(ask(greedy).score).all()
        assert np.isnan(null(greedy, key=(0,)).score).all()


def test_broadcast_is_mass_times_evenness_within_the_set():
    def halves(place: PlantedPlace) -> np.ndarray:
        """Set 1 (width 2) gets half of every later row, in the ratio 3 to 1."""
        weights = np.zeros(place.visible.shape)
        weights[:, 0] = 0.5
        if place.step > 1:
            weights[:, np.flatnonzero(place.table.step == 1)] = [0.375, 0.125]
        else:
            weights[:, 0] = 1
        return weights

    found = set_broadcast(observe(seen_trace(halves, widths=(2, 1))))
    evenness = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    np.testing.assert_allclose(found.score, 0.5 * evenness, rtol=1e-6)
    np.testing.assert_allclose(found.chance, 2 / 11, rtol=1e-6)
    np.testing.assert_allclose(
        winner_following(observe(seen_trace(halves, widths=(2, 1)))).score, 0.75, rtol=1e-6
    )


def test_a_winner_follower_is_no_broadcaster_and_the_other_way_round():
    one_member = observe(seen_trace(likes_winners, widths=(3, 1)))
    whole_set = observe(seen_trace(likes_sets, widths=(3, 1)))
    assert winner_following(one_member).score.min() > 0.9
    assert set_broadcast(one_member).score.max() < set_broadcast(whole_set).score.min() - 0.3
    np.testing.assert_allclose(winner_following(whole_set).score, 1 / 3, rtol=1e-6)


def test_the_chance_of_the_winner_is_one_over_the_members_seen():
    found = winner_following(observe(seen_trace(widths=(3, 1, 2, 1))))
    pairs = [3] + [3] * 2 + [3, 2]  # sets before the rows of steps 2, 3 (twice) and 4
    np.testing.assert_allclose(found.chance, np.mean(1 / np.array(pairs)), rtol=1e-6)


def test_a_window_that_holds_one_member_holds_no_set():
    found = set_broadcast(
        observe(seen_trace(widths=(2, 1, 1), windows=(None, 2), positions="unique"))
    )
    assert not np.isnan(found.score[0]).any()
    assert np.isnan(found.score[1]).all()


def test_a_set_whose_winner_is_out_of_the_window_says_nothing_about_winners():
    observed = observe(seen_trace(widths=(3, 1), windows=(None, 3), positions="unique"))
    assert np.isnan(winner_following(observed).score[1]).all()
    assert not np.isnan(set_broadcast(observed).score[1]).any()
    assert not np.isnan(winner_following(observed).score[0]).any()


# --- set ignoring


def ignoring_pair(rows: Pattern, seed: int) -> tuple[HeadScore, HeadScore]:
    arm = seen_trace(rows, seed=seed, relation="isolated")
    greedy = seen_trace(noisy(uniform, 0.1), seed=seed, relation="greedy", widths=(1,) * 5)
    labels = inherited_labels(arm.slots, greedy.slots)
    return set_ignoring(observe(arm), observe(greedy), labels)


def test_even_attention_ignores_nothing():
    arm, greedy = seen_trace(relation="isolated"), seen_trace(relation="greedy", widths=(1,) * 5)
    labels = inherited_labels(arm.slots, greedy.slots)
    for each in set_ignoring(observe(arm), observe(greedy), labels):
        np.testing.assert_allclose(each.score, 0, atol=1e-6)
        np.testing.assert_array_equal(each.chance, 0)


@pytest.mark.parametrize("factor", [0.3, 0.0])
def test_a_head_that_ignores_sets_is_found_also_when_it_pays_them_nothing(factor):
    def ignores(place: PlantedPlace) -> np.ndarray:
        return np.where(place.is_group("earlier_sets"), factor, 1.0)

    pairs = [ignoring_pair(one_head(ignores), seed) for seed in range(10)]
    found = role_scores(
        "set_ignoring",
        [a for a, _ in pairs],
        [b for _, b in pairs],
        threshold=SET_IGNORING_THRESHOLD,
    )
    np.testing.assert_array_equal(np.argwhere(found.assigned), [[1, 2]])
    expected = -np.log(factor) if factor else LARGEST
    assert found.score[1, 2] == pytest.approx(expected, rel=1e-5)


def test_set_ignoring_is_the_ratio_with_its_sign_turned():
    arm = seen_trace(noisy(uniform, 1.0), relation="isolated")
    greedy = seen_trace(noisy(uniform, 1.0), relation="greedy", widths=(1,) * 5)
    labels = inherited_labels(arm.slots, greedy.slots)
    score, null = set_ignoring(observe(arm), observe(greedy), labels)
    ratio = paired_ratio(observe(arm), observe(greedy), labels)
    np.testing.assert_allclose(score.score, -ratio.arm.without_sink.by_head)
    np.testing.assert_allclose(null.score, -ratio.null.without_sink.by_head)
    assert score.n_queries.tolist() == [9, 9]  # rows of steps 2 to 5


def test_a_reduced_trace_has_no_rows_to_judge():
    reduced = observe(seen_trace(level="reduced"))
    for ask in (sibling_attending, set_broadcast, winner_following):
        with pytest.raises(LevelError, match="holds its rows"):
            ask(reduced)
