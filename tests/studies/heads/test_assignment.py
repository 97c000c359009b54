"""A role takes a threshold, a pooled null and a paired test; even and random attention get none."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from tempo.errors import InputError, TooFewPromptsError
from tempo_analysis.studies.heads.assignment import (
    RoleScores,
    from_chance_up,
    one_sided_p,
    role_scores,
)
from tempo_analysis.studies.heads.detectors.rows import HeadScore, SequenceRows
from tempo_analysis.studies.heads.detectors.s_inhibition import S_INHIBITION_THRESHOLD, s_inhibition
from tempo_analysis.studies.heads.detectors.successor import (
    SUCCESSOR_THRESHOLD,
    successor_attention,
    successor_run,
)
from tempo_analysis.studies.heads.scoring import (
    THRESHOLDS,
    assign_roles,
    assign_text_roles,
    score_halves,
    score_text,
    text_nulls,
)
from tests.head_patterns import at_offset, one_hot, previous, random_weights, sink, uniform

N, LENGTH = 10, 64
DELIMITERS = np.arange(3)
ELEMENTS = np.array([2, 4, 6, 8])
Heads = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def even(token: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(uniform(len(token)), (3, 6, len(token), len(token)))


def random_heads(spread: float) -> Heads:
    def drawn(token: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return random_weights(rng, 3, 6, len(token), len(token), spread=spread)

    return drawn


def same_random_heads(spread: float, seed: int) -> Heads:
    """One random pattern that every sequence shares."""

    def drawn(token: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return random_heads(spread)(token, np.random.default_rng((seed, 1)))

    return drawn


def random_weight_heads(size: float, seed: int) -> Heads:
    """Random projections of random embeddings of tokens and places: an untrained layer."""
    rng = np.random.default_rng((seed, 2))
    words, places = rng.normal(0, 1, (2100, 16)), rng.normal(0, 1, (LENGTH, 16))
    forms = rng.normal(0, size / 16, (3, 6, 16, 16))

    def attended(token: np.ndarray, _: np.random.Generator) -> np.ndarray:
        x = words[token] + places[: len(token)]
        scores = np.exp(np.einsum("qi,lhij,kj->lhqk", x, forms, x)) * np.tri(len(token))
        return scores / scores.sum(-1, keepdims=True)

    return attended


def battery(heads: Heads, seed: int) -> dict[str, RoleScores]:
    """Every role of plain text, each against its null, as a command would ask."""
    rng = np.random.default_rng(seed)

    def rows(token: np.ndarray) -> SequenceRows:
        return SequenceRows(token.astype(np.int64), heads(token, rng).astype(np.float32))

    texts = [rows(rng.integers(0, 25, LENGTH)) for _ in range(N)]
    halves = [rng.permutation(900)[: LENGTH // 2] + 100 for _ in range(N)]
    again = [rows(np.tile(half, 2)) for half in halves]
    apart = [rows(np.concatenate([half, half + 1000])) for half in halves]
    nulls = text_nulls(texts[0], seed=seed)
    read = [
        score_text(
            each, number=number, nulls=nulls, delimiters=DELIMITERS, common=np.arange(6), spans=None
        )
        for number, each in enumerate(texts)
    ]
    found = assign_text_roles(read)
    found |= assign_roles([score_halves(*pair) for pair in zip(again, apart, strict=True)])
    pairs: Mapping[str, tuple[Sequence[HeadScore], Sequence[HeadScore], float]] = {
        "successor_attention": successor_pairs(rows, rng),
        "s_inhibition": (
            [s_inhibition(each, end=40, second_subject=30) for each in again],
            [s_inhibition(each, end=40, second_subject=30) for each in apart],
            S_INHIBITION_THRESHOLD,
        ),
    }
    return found | {
        role: role_scores(role, scores, controls, threshold=cut, unit="planted")
        for role, (scores, controls, cut) in pairs.items()
    }


def successor_pairs(rows: Callable[[np.ndarray], SequenceRows], rng: np.random.Generator):
    """Elements are the ids 50 to 61, words 70 to 81."""
    runs = []
    for _ in range(N):
        start = 50 + int(rng.integers(0, 8))
        up = np.arange(start, start + 4)
        conditions = {"up": up, "words": up + 20, "shuffled": up[[2, 0, 3, 1]], "down": up[::-1]}
        found = {}
        for name, elements in conditions.items():
            token = np.full(12, 5)
            token[ELEMENTS] = elements
            found[name] = successor_attention(rows(token), ELEMENTS)
        runs.append(
            successor_run(
                found["up"],
                words=found["words"],
                shuffled=found["shuffled"],
                descending=found["down"],
            )
        )
    cut = SUCCESSOR_THRESHOLD
    return [run.signal() for run in runs], [run.null() for run in runs], cut


def holders(found: Mapping[str, RoleScores]) -> dict[str, list[tuple[int, int]]]:
    """Heads that hold each role."""
    return {
        role: [tuple(map(int, head)) for head in np.argwhere(each.assigned)]
        for role, each in found.items()
        if each.assigned.any()
    }


# --- nobody holds a role by chance


def test_even_attention_holds_no_role_and_differs_from_no_null():
    found = battery(even, seed=0)
    assert holders(found) == {}
    for each in found.values():
        np.testing.assert_allclose(each.score, each.chance, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(each.control, each.per_sequence, rtol=1e-5, atol=1e-6)
        assert not (each.q < 0.05).any()


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_random_attention_holds_no_role(spread, seed):
    assert holders(battery(random_heads(spread), seed)) == {}


@pytest.mark.parametrize("size", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_layer_holds_no_role(size, seed):
    found = battery(random_weight_heads(size, seed), seed)
    found.pop("successor_attention")  # the runs here share eleven pairs, which is no sample
    assert holders(found) == {}


@pytest.mark.parametrize("seed", range(4))
def test_one_random_pattern_in_all_sequences_holds_no_role(seed):
    found = battery(same_random_heads(1.0, seed), seed)
    found.pop("receiver")  # sequences that repeat one another are no sample, and 64 tokens are few
    assert holders(found) == {}


# --- planted heads are found, and only for what they do


def follower(token: np.ndarray) -> np.ndarray:
    """Attends to what followed the same token before, else to itself."""
    target = np.arange(len(token))
    for q in target:
        earlier = np.flatnonzero(token[:q] == token[q])
        target[q] = earlier[-1] + 1 if len(earlier) else q
    return one_hot(target)


def copier(token: np.ndarray) -> np.ndarray:
    target = np.arange(len(token))
    for q in target:
        earlier = np.flatnonzero(token[:q] == token[q])
        target[q] = earlier[0] if len(earlier) else q
    return one_hot(target)


def stopper(token: np.ndarray) -> np.ndarray:
    """Spreads over earlier delimiters, else attends to itself."""
    marks = np.tril(np.broadcast_to(np.isin(token, DELIMITERS), 2 * token.shape), -1).astype(float)
    total = marks.sum(-1, keepdims=True)
    return np.where(total > 0, marks / np.maximum(total, 1), np.eye(len(token)))


def receiver(n: int) -> np.ndarray:
    """Slot 5 gets half of every later row, the rest is even."""
    weights = uniform(n)
    weights[6:] *= 0.5
    weights[6:, 5] += 0.5
    return weights


def counter(token: np.ndarray) -> np.ndarray:
    """Attends to the element one less than its own, else to itself."""
    target = np.arange(len(token))
    for q in target:
        before = np.flatnonzero((token[:q] == token[q] - 1) & (token[q] >= 50) & (token[q] < 62))
        target[q] = before[-1] if len(before) else q
    return one_hot(target)


def cast(token: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(token)
    planted = [
        previous(n),
        sink(n),
        at_offset(9, n),
        follower(token),
        copier(token),
        stopper(token),
        receiver(n),
        counter(token),
        0.5 * sink(n) + 0.5 * previous(n),
    ]
    noise = random_weights(rng, 18, n, n)
    return np.concatenate([np.stack(planted), noise]).reshape(3, 9, n, n)


def test_every_planted_head_holds_its_role_and_no_bystander_any():
    found = holders(battery(cast, seed=1))
    assert found["previous_token"] == [(0, 0), (0, 8)]
    assert found["bos_sink"] == [(0, 1), (0, 8)]  # a head may hold several roles
    assert found["positional"] == [(0, 0), (0, 2), (0, 8)]
    assert found["induction"] == [(0, 3)]
    assert found["duplicate_token"] == [(0, 4)]
    assert found["delimiter"] == [(0, 5)]
    assert found["receiver"] == [(0, 6)]
    assert found["successor_attention"] == [(0, 7)]
    assert {layer for heads in found.values() for layer, _ in heads} == {0}


def test_a_battery_asks_for_every_role_of_text():
    found = battery(even, seed=0)
    asked = {"positional", "receiver", "successor_attention", "s_inhibition"}
    assert set(found) == set(THRESHOLDS) | asked
    assert {name: (found[name].threshold, found[name].unit) for name in THRESHOLDS} == THRESHOLDS


def test_a_head_of_the_offset_of_the_halves_is_no_induction_head():
    def fake(token: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(token)
        return np.stack([at_offset(LENGTH // 2 - 1, n), at_offset(LENGTH // 2, n), uniform(n)])[
            None
        ]

    found = battery(fake, seed=2)
    assert found["induction"].score[0, 0] == found["duplicate_token"].score[0, 1] == 1
    assert found["induction"].null_p99 > 0.9
    assert not found["induction"].assigned.any()
    assert not found["duplicate_token"].assigned.any()


def test_a_head_that_likes_the_class_is_no_successor_head():
    def class_liker(token: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(token)
        elements = (token[:, None] >= 50) & (token[:, None] < 62)
        head = np.where(elements, at_offset(2, n), np.eye(n))
        return np.stack([head, uniform(n)])[None]

    found = battery(class_liker, seed=3)["successor_attention"]
    assert found.score[0, 0] == 1  # ordinal 1, words 0
    assert not found.assigned.any()


# --- the rule itself


def scores_from(values: np.ndarray, chance: float = 0.0) -> list[HeadScore]:
    n_queries = np.full(values.shape[1], 5)
    return [HeadScore(each, np.full_like(each, chance), n_queries) for each in values]


def assign_role(values: np.ndarray, control: np.ndarray, *, threshold: float = 0.3) -> RoleScores:
    return role_scores("r", scores_from(values), scores_from(control), threshold=threshold)


def noise(seed: int, mean: float, n: int = 12) -> np.ndarray:
    return mean + np.random.default_rng(seed).normal(0, 0.02, (n, 4, 5))


def test_each_of_the_three_conditions_is_needed():
    control = noise(0, 0.1)
    high = control + 0.5
    assert assign_role(high, control).assigned.all()
    assert not assign_role(high, control, threshold=0.7).assigned.any()
    pooled = control.copy()
    pooled[:, 0, :2] = 0.9  # two heads of the null are higher than any score
    assert not assign_role(high, pooled).assigned.any()
    wild = control + 0.5 * np.where(np.arange(12) < 6, 6, -4)[:, None, None]  # same mean, no sign
    assert not assign_role(wild, control).assigned.any()


def test_p_is_a_one_sided_paired_t_test_and_q_is_benjamini_hochberg():
    values, control = noise(1, 0.105), noise(2, 0.1)
    found = assign_role(values, control)
    expected = stats.ttest_rel(values, control, alternative="greater").pvalue
    np.testing.assert_allclose(found.p, expected, rtol=1e-9)
    adjusted = stats.false_discovery_control(expected.ravel()).reshape(4, 5)
    np.testing.assert_allclose(found.q, adjusted, rtol=1e-9)


def test_the_null_is_pooled_over_heads():
    values, control = noise(1, 0.4), noise(2, 0.1)
    found = assign_role(values, control)
    assert found.null_p99 == pytest.approx(np.percentile(control.mean(0), 99))


def test_a_control_is_moved_by_the_difference_of_the_chance_values():
    values, control = noise(1, 0.4), noise(2, 0.5)
    found = role_scores(
        "r", scores_from(values, chance=0.1), scores_from(control, chance=0.3), threshold=0.3
    )
    np.testing.assert_allclose(found.control, control - 0.2)
    np.testing.assert_allclose(found.chance, 0.1)


def test_sequences_that_agree_leave_nothing_to_test():
    differences = np.tile(np.array([0.5, 0.0, 1e-9, -0.5]), (9, 1, 1))
    np.testing.assert_array_equal(one_sided_p(differences), [[0, 1, 1, 1]])
    assert np.isnan(one_sided_p(differences[:7])).all()


def test_a_head_without_data_holds_nothing_and_is_told_apart():
    values, control = noise(1, 0.9), noise(2, 0.1)
    values[:, 0, 0] = np.nan
    values[3:, 0, 1] = np.nan
    found = assign_role(values, control)
    assert np.isnan([found.score[0, 0], found.p[0, 0], found.p[0, 1], found.low[0, 1]]).all()
    assert (~found.assigned).sum() == 2
    assert found.n[0].tolist() == [0, 3, 12, 12, 12]
    assert found.best_first()[-1] == (0, 0)


def test_limits_are_those_of_the_mean_over_sequences():
    values = noise(1, 0.4)
    found = assign_role(values, noise(2, 0.1))
    half = stats.t.ppf(0.975, 11) * stats.sem(values, axis=0)
    np.testing.assert_allclose(found.low, values.mean(0) - half, rtol=1e-9)
    np.testing.assert_allclose(found.high, values.mean(0) + half, rtol=1e-9)


def test_heads_are_ranked_and_placed_in_their_population():
    values = np.tile(np.array([[0.2, 0.8], [0.5, 0.1]]), (8, 1, 1))
    found = assign_role(values, np.zeros_like(values))
    assert found.best_first() == [(0, 1), (1, 0), (0, 0), (1, 1)]
    np.testing.assert_array_equal(found.percentile, [[50, 100], [75, 25]])


def test_the_same_seed_gives_the_same_result():
    first, second = (battery(random_heads(1.0), 5)["positional"] for _ in range(2))
    np.testing.assert_array_equal(first.p, second.p)
    assert first.null_p99 == second.null_p99


def test_a_cut_counted_from_chance_is_the_cut_itself_where_chance_is_0():
    values = np.zeros((8, 1, 2))
    assert from_chance_up(0.3, scores_from(values)) == 0.3
    assert from_chance_up(0.3, scores_from(values, chance=0.5)) == pytest.approx(0.65)


def test_few_sequences_and_unpaired_controls_are_refused():
    values = noise(0, 0.4)
    with pytest.raises(TooFewPromptsError, match="at least 8 sequences to assign r, got 7"):
        assign_role(values[:7], values[:7])
    with pytest.raises(InputError, match="one control for each score"):
        assign_role(values, values[:9])
    with pytest.raises(InputError, match="over the same heads"):
        assign_role(values, values[:, :2])
