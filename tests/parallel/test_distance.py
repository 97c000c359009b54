from collections import defaultdict

import numpy as np
import pytest

from tempo.errors import InputError, LevelError, NoParallelSetsError
from tempo.testing.planted import Pattern, PlantedPlace, noisy, planted_trace, uniform, with_sink
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.distance import (
    SMALLEST_KERNEL,
    MatchedRatio,
    matched_ratio,
    paired_distances,
)
from tempo_analysis.parallel.observation import observe

EXACT = 1e-6  # rows are stored in float32
WIDTHS = (2, 1, 3, 1, 1, 2, 1, 1, 1, 2, 1, 1)
STEPS = len(WIDTHS)
KERNEL = np.array([0.0, *(0.04 * 0.7 ** np.arange(30))])


def greedy_of(rows: Pattern = uniform, n_steps: int = STEPS, **plan) -> Trace:
    return planted_trace(widths=(1,) * n_steps, relation="greedy", rows=rows, **plan)


def combine(arms: list[Trace], greedy: list[Trace] | None = None) -> MatchedRatio:
    if greedy is None:
        prompts = [paired_distances(observe(arm)) for arm in arms]
    else:
        prompts = [
            paired_distances(observe(arm), observe(null), inherited_labels(arm.slots, null.slots))
            for arm, null in zip(arms, greedy, strict=True)
        ]
    return matched_ratio(prompts, layers=arms[0].layers, heads=arms[0].heads)


def recent(factor: float = 1.0, *, labelled: tuple[int, ...] = ()) -> Pattern:
    """Each generated slot gets what its distance says, members `factor` times it, self the rest."""

    def pattern(place: PlantedPlace) -> np.ndarray:
        if place.step == 0:
            return uniform(place)
        table = place.table
        behind = np.maximum(table.position[place.queries, None] - table.position[None, :], 0)
        earlier = (table.step > 0) & (table.step < place.step)
        rows = np.where(earlier, KERNEL[np.rint(behind).astype(int)], 0.0)
        favoured = place.is_group("earlier_sets") | np.isin(table.step, labelled)
        rows = np.where(favoured, rows * factor, rows)
        return np.where(place.is_group("self"), 1 - rows.sum(-1, keepdims=True), rows)

    return pattern


def singles_and_members(trace: Trace) -> tuple[dict, dict]:
    """Sink-free weights by (layer, head, distance), one at a time."""
    slots, width = trace.slots, np.bincount(trace.slots.step)
    singles, members = defaultdict(list), defaultdict(list)
    for step in range(1, trace.n_steps + 1):
        rows, seen = trace.attention(step).astype(np.float64), trace.visible(step)
        for layer, head, query in np.ndindex(rows.shape[:3]):
            row = rows[layer, head, query]
            for slot in range(trace.n_slots(step)):
                if slots.step[slot] in (0, step) or not seen[layer, query, slot]:
                    continue
                far = slots.position[trace.members(step)[query]] - slots.position[slot]
                kind = members if width[slots.step[slot]] >= 2 else singles
                kind[layer, head, int(far)].append(row[slot] / row[1:].sum())
    return singles, members


def by_hand(arms: list[Trace], greedy: list[Trace]) -> np.ndarray:
    """The definition, for every prompt."""
    both = [singles_and_members(arm) for arm in arms]
    kernels = []
    for (own, _), null in zip(both, greedy, strict=True):
        plain = singles_and_members(null)[0]
        kernels.append({key: own[key] + plain[key] for key in {**own, **plain}})
    found = []
    for number, (_, members) in enumerate(both):
        heads = defaultdict(lambda: ([], []))
        for (layer, head, far), weights in members.items():
            kernel = kernels[number].get((layer, head, far), [])
            if len(kernel) < SMALLEST_KERNEL:
                others = [one for i, one in enumerate(kernels) if i != number]
                kernel = [weight for one in others for weight in one.get((layer, head, far), [])]
            if len(kernel) >= SMALLEST_KERNEL:
                heads[layer, head][0].extend(weights)
                heads[layer, head][1].extend([np.mean(kernel)] * len(weights))
        found.append(np.mean([np.log(np.mean(a) / np.mean(b)) for a, b in heads.values()]))
    return np.array(found)


# --- chance and planted truth


@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
@pytest.mark.parametrize("pattern", [uniform, with_sink(0.8)])
def test_even_attention_has_exactly_the_chance_value(relation, pattern):
    arm = planted_trace(widths=WIDTHS, relation=relation, rows=pattern)
    found = combine([arm] * 9, [greedy_of(pattern)] * 9)
    assert found.over_chance.estimate == pytest.approx(1, rel=EXACT)
    np.testing.assert_allclose(found.log_ratio, found.log_chance, atol=EXACT)
    assert found.chance.estimate != pytest.approx(1, rel=1e-2)  # other rows, with more slots


@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
@pytest.mark.parametrize("factor", [0.25, 1.0, 2.0])
def test_a_planted_factor_is_found_exactly_whatever_the_recency(relation, factor):
    arm = planted_trace(widths=WIDTHS, rows=recent(factor), relation=relation)
    found = combine([arm] * 9, [greedy_of(recent())] * 9)
    assert found.ratio.estimate == pytest.approx(factor, rel=EXACT)
    np.testing.assert_allclose(np.exp(found.log_ratio_by_head), factor, rtol=EXACT)
    assert found.null.estimate == pytest.approx(1, rel=EXACT)
    assert found.over_null.estimate == pytest.approx(factor, rel=EXACT)
    assert found.n_left_out.tolist() == [0] * 9


def test_the_planted_head_stands_out():
    def one_head(place: PlantedPlace) -> np.ndarray:
        rows = np.stack([np.stack([recent()(place)] * 2)] * 2)
        rows[1, 0] = recent(0.2)(place)
        return rows

    found = combine([planted_trace(widths=WIDTHS, rows=one_head)] * 9, [greedy_of(recent())] * 9)
    np.testing.assert_allclose(np.exp(found.log_ratio_by_head), [[1, 1], [0.2, 1]], rtol=EXACT)
    assert found.ratio.estimate == pytest.approx(0.2**0.25, rel=EXACT)


@pytest.mark.parametrize("windows", [None, [None, 4]])
@pytest.mark.parametrize("n_greedy", [STEPS, 5])
def test_the_ratio_is_its_definition_one_weight_at_a_time(windows, n_greedy):
    rows, few = noisy(with_sink(0.4), 1.0), (2, 1, 3, 1, 1, 2)
    plan = {"rows": rows, "windows": windows}
    arms = [
        planted_trace(widths=WIDTHS if n % 2 else few, relation="visible", seed=n, **plan)
        for n in range(4)
    ]
    greedy = [greedy_of(n_steps=n_greedy, seed=20 + n, **plan) for n in range(4)]
    found = combine(arms, greedy)
    np.testing.assert_allclose(found.log_ratio, by_hand(arms, greedy), rtol=EXACT)
    assert found.n_pooled.any()


# --- the kernel


def test_a_kernel_of_too_few_is_pooled_without_the_prompt_itself():
    few, many = (2, 1, 1), (1,) * STEPS + (2, 1)
    loud = planted_trace(widths=few, rows=recent(3.0), n_layers=1, n_heads=1)
    plain = planted_trace(widths=many, rows=recent(), n_layers=1, n_heads=1)
    found = combine([loud, plain])
    assert np.exp(found.log_ratio) == pytest.approx([3, 1], rel=EXACT)
    # steps 2 and 3 see the set of step 1, at distances 1 and 2; own singles: one weight at 1
    assert found.n_pooled.tolist() == [4, 0]
    assert found.n_own.tolist() == [0, 2]


def test_members_without_enough_singles_are_left_out_and_counted():
    arm = planted_trace(widths=(2, *(1,) * 9), rows=recent(0.5), n_layers=1, n_heads=1)
    found = combine([arm])
    # singles of steps 2 to 9, seen d steps later: 9 - d weights; so distance 1 alone has 8
    assert found.ratio.estimate == pytest.approx(0.5, rel=EXACT)
    assert found.n_own.tolist() == [2]
    assert found.n_left_out.tolist() == [2 * 8]


def test_rows_of_the_sink_alone_are_left_out():
    found = combine(
        [planted_trace(widths=WIDTHS, rows=with_sink(1 - 1e-7))] * 3
        + [planted_trace(widths=WIDTHS, rows=recent(0.5))],
        [greedy_of(recent())] * 4,
    )
    assert np.isnan(found.log_ratio[:3]).all()
    assert np.exp(found.log_ratio[3]) == pytest.approx(0.5, rel=EXACT)
    assert (found.ratio.n, found.ratio.n_dropped) == (1, 3)


def test_fractions_of_a_position_go_to_the_nearest_distance():
    trace = planted_trace(widths=WIDTHS, rows=recent(0.5))
    tensors = dict(trace.tensors)
    for step in range(1, STEPS + 1):
        name = f"step/{step:05d}/slots/position"
        tensors[name] = tensors[name] + 0.1 * np.arange(len(tensors[name]), dtype=np.float32)
    offset = combine([Trace(trace.header, tensors)], [greedy_of(recent())])
    assert offset.ratio.estimate == pytest.approx(0.5, rel=EXACT)


# --- the null


def test_the_null_finds_what_labels_alone_explain():
    labelled = tuple(np.flatnonzero(np.array(WIDTHS) >= 2) + 1)
    arm = planted_trace(widths=WIDTHS, rows=recent(0.5))
    found = combine([arm] * 9, [greedy_of(recent(0.5, labelled=labelled))] * 9)
    assert found.null.estimate == pytest.approx(0.5, rel=EXACT)
    assert found.over_null.estimate == pytest.approx(1, rel=EXACT)
    assert 0.5 < found.ratio.estimate < 1  # its kernel holds the labelled slots too


def test_a_weight_of_the_null_counts_as_often_as_the_arm_has_members_there():
    widths, rows = (1, 2, 1, 3, 1, 1, 2, 1, 1, 1, 1, 1), noisy(recent(), 1.0)
    arms = [planted_trace(widths=widths, rows=rows, seed=n) for n in range(9)]
    greedy = [greedy_of(rows, n_steps=len(widths), seed=n) for n in range(9)]
    prompt = paired_distances(
        observe(arms[0]), observe(greedy[0]), inherited_labels(arms[0].slots, greedy[0].slots)
    )
    np.testing.assert_array_equal(prompt.null.members[2], prompt.arm.members[2])


def test_arm_and_null_are_compared_over_the_steps_that_both_have():
    def late(place: PlantedPlace) -> np.ndarray:
        return recent(0.2 if place.step > 8 else 0.5)(place)

    arm, greedy = planted_trace(widths=WIDTHS, rows=late), greedy_of(recent(), n_steps=8)
    found = combine([arm] * 9, [greedy] * 9)
    assert found.over_null.estimate == pytest.approx(0.5, rel=EXACT)
    assert found.ratio.estimate < 0.45


def test_without_a_greedy_run_the_null_has_no_data():
    found = combine([planted_trace(widths=WIDTHS, rows=recent(0.5))] * 9)
    assert found.null.n == found.over_null.n == 0
    assert found.ratio.n == 9


# --- refusals


def test_without_a_member_that_is_seen_there_is_no_answer():
    with pytest.raises(NoParallelSetsError, match="a row that sees a member of an earlier"):
        combine([planted_trace(widths=(1, 1, 2))] * 9)
    with pytest.raises(NoParallelSetsError, match="a row that sees a member of an earlier"):
        combine([planted_trace(widths=())])


def test_members_that_no_single_can_be_matched_with_are_refused():
    with pytest.raises(InputError, match="at least 8 weights of single tokens at the distance"):
        combine([planted_trace(widths=(2, 2, 2))] * 9)


def test_a_reduced_trace_is_refused():
    with pytest.raises(LevelError, match="level weights or qk"):
        paired_distances(observe(planted_trace(widths=WIDTHS, level="reduced")))
