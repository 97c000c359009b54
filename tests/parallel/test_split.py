from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempo.engine.capture import Capture
from tempo.engine.state import SequencePlan
from tempo.errors import InputError, LevelError, NoParallelSetsError, TwinError
from tempo.policy.biases import Boost, MassNeutral
from tempo.policy.presets import Policy
from tempo.policy.selection import Forced
from tempo.policy.visibility import VISIBLE
from tempo.run.recorder import Recorder, first_header
from tempo.testing.planted import (
    PlantedPlace,
    Twins,
    both,
    by_token,
    favour_sets,
    noisy,
    planted_trace,
    planted_twins,
    pull_to_sink,
    uniform,
)
from tempo.trace.schema import tensor_name
from tempo.trace.store import TraceKeeper
from tempo.trace.trace import Trace
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.ratio import labelled_ratio, prompt_ratio
from tempo_analysis.parallel.set_effect import (
    TERMS,
    PromptSplit,
    SetSplit,
    decomposition,
    drift_from_scores,
    prompt_split,
    split_member,
    split_set,
)
from tempo_analysis.stats.averages import RowAverage
from tests.decoding import model_of, random_prompt, run_plans, whole

EXACT = 1e-5  # rows are stored in float32
FACTOR = 0.4


def split_of(twins: Twins, step: int = 1, reference="without") -> SetSplit:
    return split_set(twins.in_set, twins.of_set(step), step=step, reference=reference)


def means_of(twins: Twins, reference="without") -> PromptSplit:
    return prompt_split(twins.in_set, twins.alone, reference=reference)


def mean_alone(twins: Twins, step: int = 1) -> np.ndarray:
    """Mass of each member alone, [member, layer, head, query]."""
    slot = int(twins.in_set.members(step)[0])
    rows = [twin.attention(step + 1)[..., slot] for twin in twins.of_set(step)]
    return np.stack(rows).astype(np.float64)


# --- the split


@given(widths=st.lists(st.integers(2, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_the_parts_add_up(widths: list[int], seed: int):
    twins = planted_twins((*widths, 1), rows=noisy(by_token(seed=seed), 0.5), seed=seed)
    for step in range(1, len(widths) + 1):
        split = split_of(twins, step)
        np.testing.assert_allclose(split.total, split.drift + split.competition, atol=1e-6)
        np.testing.assert_allclose(split.competition, split.predicted + split.elsewhere, atol=1e-6)
        assert not np.isnan(split.set_gain).any()


def with_row(trace: Trace, step: int, row: Sequence[float]) -> Trace:
    """A trace of one layer, head and query with this row at one step."""
    rows = {tensor_name(step, "weights"): np.array([[[row]]], np.float32)}
    return replace(trace, tensors=dict(trace.tensors) | rows)


def test_five_slots_by_hand():
    """Slots: sink, prompt, members a and b, query."""
    twins = planted_twins((2, 1), prompt_length=2, n_layers=1, n_heads=1)
    in_set = with_row(twins.in_set, 2, [0.4, 0.2, 0.1, 0.1, 0.2])
    alone_a = with_row(twins.alone[1, 0], 2, [0.5, 0.25, 0.1, 0.15])
    alone_b = with_row(twins.alone[1, 1], 2, [0.3, 0.2, 0.25, 0.25])
    split = split_set(in_set, [alone_a, alone_b], step=1, reference="without")
    odds = np.array([1 / 9, 1 / 3])
    expected = {
        "total": np.log([0.1 / 0.1, 0.1 / 0.25]),
        "drift": np.log([(0.1 / 0.2) / (0.1 / 0.25), (0.1 / 0.2) / (0.25 / 0.2)]),
        "competition": np.log([0.2 / 0.25, 0.2 / 0.2]),
        "predicted": np.log((1 + odds) / (1 + odds.sum())),
        "elsewhere": np.log([0.8, 1.0]) - np.log((1 + odds) / (1 + odds.sum())),
        "sink_gain": np.log([0.4 / 0.5, 0.4 / 0.3]),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(split, name)[:, 0, 0, 0], values, atol=1e-6)
    assert split.set_gain[0, 0, 0] == pytest.approx(np.log(0.2 / 0.175), abs=1e-6)
    member = split_member(in_set, alone_b, step=1, rank=1, reference="with")
    assert member.competition[0, 0, 0] == pytest.approx(np.log(0.6 / 0.5), abs=1e-6)
    assert member.drift[0, 0, 0] == pytest.approx(np.log(0.4) - np.log(1.2), abs=1e-6)


@pytest.mark.parametrize("reference", ["with", "without"])
@pytest.mark.parametrize("step", [1, 3])
def test_unchanged_scores_have_no_drift_and_obey_the_odds_law(step: int, reference: str):
    twins = planted_twins(rows=by_token(1.5))
    split = split_of(twins, step, reference)
    mass = mean_alone(twins, step)
    odds = mass / (1 - mass)
    np.testing.assert_allclose(split.drift, 0, atol=EXACT)
    np.testing.assert_allclose(split.elsewhere, 0, atol=EXACT)
    np.testing.assert_allclose(split.predicted, np.log((1 + odds) / (1 + odds.sum(0))), atol=EXACT)
    np.testing.assert_allclose(split.total, split.predicted, atol=EXACT)
    np.testing.assert_allclose(split.sink_gain, split.predicted, atol=EXACT)
    assert (split.predicted < 0).all()


def test_members_of_equal_odds_together_get_more_than_one_token():
    split = split_of(planted_twins((3, 1), rows=uniform))  # 5 of the prompt, the query, the set
    np.testing.assert_allclose(split.set_gain, np.log((3 / 9) / (1 / 7)), atol=EXACT)
    np.testing.assert_allclose(split.total, np.log((1 / 9) / (1 / 7)), atol=EXACT)


def test_a_member_that_takes_the_whole_row_has_finite_odds():
    def loud(place: PlantedPlace) -> np.ndarray:
        return np.where(place.table.step == 1, 1e9, 1.0) * np.ones(place.visible.shape)

    split = split_of(planted_twins((2, 1), rows=loud))
    np.testing.assert_allclose(split.predicted, -np.log(2), atol=EXACT)
    np.testing.assert_allclose(split.elsewhere, 0, atol=EXACT)


@pytest.mark.parametrize("factor", [FACTOR, 2.5])
def test_planted_down_weighting_is_the_drift_of_every_head(factor: float):
    twins = planted_twins(rows=both(by_token(), favour_sets(factor)))
    split, plain = split_of(twins), split_of(planted_twins(rows=by_token()))
    np.testing.assert_allclose(split.drift, np.log(factor), atol=EXACT)
    np.testing.assert_allclose(split.predicted, plain.predicted, atol=EXACT)
    mass = mean_alone(twins)
    odds = (mass / (1 - mass)).sum(0)
    left = np.log((1 + odds) / (1 + factor * odds))
    np.testing.assert_allclose(split.elsewhere, np.stack([left] * 2), atol=EXACT)


def test_the_row_ratio_shows_planted_down_weighting_and_its_null_does_not():
    widths = (2, 1, 3, 1)
    in_set = planted_twins(widths, rows=favour_sets(FACTOR)).in_set
    greedy = planted_twins((1,) * len(widths), rows=favour_sets(FACTOR)).in_set
    labels = inherited_labels(in_set.slots, greedy.slots)
    null = labelled_ratio(observe(greedy), labels, np.array(widths))
    ratio = prompt_ratio(observe(in_set)).without_sink
    assert ratio.overall == pytest.approx(np.log(FACTOR), abs=EXACT)
    assert null.without_sink.overall == pytest.approx(0, abs=EXACT)


def test_mass_moved_to_the_sink_is_elsewhere_and_no_drift():
    twins = planted_twins(rows=both(by_token(), pull_to_sink(3.0)))
    split = split_of(twins)
    np.testing.assert_allclose(split.drift, 0, atol=EXACT)
    assert (split.elsewhere < -0.01).all()
    np.testing.assert_allclose(split.sink_gain, split.competition + np.log(3), atol=EXACT)
    assert (split_of(twins, reference="with").drift < -0.01).all()


def test_planted_scores_give_the_drift_of_planted_rows():
    """Twins hold queries at one step only, as a decoded twin may."""
    plan = {"rows": both(by_token(), favour_sets(FACTOR))}
    rows, scores = planted_twins(**plan), planted_twins(level="qk", **plan)
    for step, rank in rows.alone:
        place = {"step": step, "rank": rank, "reference": "without"}
        found = drift_from_scores(scores.in_set, scores.alone[step, rank], **place)
        np.testing.assert_allclose(found, np.log(FACTOR), atol=EXACT)
        by_rows = split_member(rows.in_set, rows.alone[step, rank], **place)
        np.testing.assert_allclose(found, by_rows.drift, atol=EXACT)
    with pytest.raises(LevelError, match="'q'"):
        scores.alone[1, 0].queries(1)


# --- what is not seen


def test_what_a_window_hides_has_no_value():
    # distances from the query: the set 1, the last prompt slot 2
    plan = {"n_layers": 3, "windows": (1, 2, None), "rows": by_token()}
    twins = planted_twins((2, 1), **plan)
    split = split_of(twins)
    for name in TERMS[:5]:
        seen = ~np.isnan(getattr(split, name))
        assert not seen[:, :2].any()
        assert seen[:, 2].all()
    member = split_member(twins.in_set, twins.alone[1, 0], step=1, rank=0, reference="without")
    for part in (member.total, member.drift, member.competition):
        np.testing.assert_array_equal(np.isnan(part), np.isnan(split.drift[0]))
    assert np.isnan(split.sink_gain[:, :2]).all()
    assert np.isnan(split.set_gain[0]).all()
    assert not np.isnan(split.set_gain[1:]).any()
    means = means_of(twins)
    assert means.all_sets.drift.overall() == pytest.approx(0, abs=EXACT)
    assert np.isnan(means.all_sets.drift.by_layer()[:2]).all()


def test_a_weightless_member_has_no_value_and_leaves_the_others_theirs():
    twins = planted_twins((2, 1), rows=by_token(), n_layers=1, n_heads=1)
    row = twins.in_set.attention(2)[0, 0, 0].copy()
    row[5] = 0
    split = split_set(
        with_row(twins.in_set, 2, row.tolist()), twins.of_set(1), step=1, reference="without"
    )
    for name in TERMS[:5]:
        np.testing.assert_array_equal(np.isnan(getattr(split, name)[:, 0, 0, 0]), [True, False])
    assert np.isnan(split.set_gain).all()


def test_a_prompt_of_one_slot_has_a_reference_only_with_it():
    twins = planted_twins((2, 1), prompt_length=1, rows=by_token())
    assert np.isnan(split_of(twins).drift).all()
    np.testing.assert_allclose(split_of(twins, reference="with").drift, 0, atol=EXACT)


# --- what is refused


def other_plan(**plan) -> Twins:
    return planted_twins(**({"rows": uniform} | plan))


def marked(trace: Trace, fingerprint: str) -> Trace:
    model = dict(trace.header.model) | {"fingerprint": fingerprint}
    return replace(trace, header=replace(trace.header, model=model))


def shifted(trace: Trace) -> Trace:
    moved = {tensor_name(2, "slots/position"): trace.tensor(2, "slots/position") + 1}
    return replace(trace, tensors=dict(trace.tensors) | moved)


@pytest.mark.parametrize(
    ("alone", "message"),
    [
        (marked(other_plan().alone[1, 0], "other"), "the same model, got planted and other"),
        (other_plan(n_layers=3).alone[1, 0], "the same layers"),
        (other_plan(n_heads=3).alone[1, 0], "the same heads"),
        (other_plan().alone[1, 1], "got other tokens"),
        (other_plan().alone[3, 0], "got other steps"),
        (other_plan(seed=1).alone[1, 0], "got other tokens"),
        (other_plan(widths=(2, 2, 3, 1)).alone[1, 0], "got other steps"),
        (shifted(other_plan().alone[1, 0]), "got other positions"),
        (other_plan().in_set, "got other steps"),
        (planted_trace(widths=(1,)), "the same model"),
        (marked(planted_trace(widths=(1,)), "planted"), "feeds set 2 too, got 1 steps"),
        (other_plan(windows=(3, 3)).alone[1, 0], "see the same slots"),
    ],
)
def test_a_trace_that_is_no_twin_is_refused(alone: Trace, message: str):
    in_set = other_plan().in_set
    with pytest.raises(TwinError, match=message):
        split_member(in_set, alone, step=1, rank=0, reference="without")
    with pytest.raises(TwinError, match=message):
        drift_from_scores(in_set, alone, step=1, rank=0, reference="without")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (2, "expected a set of width 2 or more at step 2, got width 1"),
        (0, "expected a set with a step after it, 1 to 3, got 0"),
        (4, "expected a set with a step after it, 1 to 3, got 4"),
    ],
)
def test_a_step_without_a_set_that_is_read_is_refused(step: int, message: str):
    twins = other_plan()
    with pytest.raises(TwinError, match=message):
        split_member(twins.in_set, twins.alone[1, 0], step=step, rank=0, reference="with")
    with pytest.raises(TwinError, match=message):
        split_set(twins.in_set, [twins.alone[1, 0]], step=step, reference="with")


def test_a_rank_outside_the_set_is_refused():
    twins = other_plan()
    with pytest.raises(TwinError, match="expected a rank from 0 to 1, got 2"):
        split_member(twins.in_set, twins.alone[1, 0], step=1, rank=2, reference="with")


def test_too_few_and_swapped_twins_are_refused():
    twins = other_plan()
    with pytest.raises(TwinError, match="a twin for each of 2 members, got 1"):
        split_set(twins.in_set, twins.of_set(1)[:1], step=1, reference="without")
    with pytest.raises(TwinError, match="got other tokens"):
        split_set(twins.in_set, twins.of_set(1)[::-1], step=1, reference="without")


def test_a_twin_error_is_an_input_error_and_group_masses_are_not_enough():
    assert issubclass(TwinError, InputError)
    twins = other_plan(level="reduced")
    with pytest.raises(LevelError, match="weights"):
        split_member(twins.in_set, twins.alone[1, 0], step=1, rank=0, reference="without")
    twins = other_plan()
    with pytest.raises(LevelError, match="'q'"):
        drift_from_scores(twins.in_set, twins.alone[1, 0], step=1, rank=0, reference="without")


# --- one prompt


def test_means_count_every_query_of_every_member_once():
    twins = planted_twins((2, 2, 3, 1), rows=noisy(by_token(), 0.5))
    means = means_of(twins)
    splits = [split_of(twins, step) for step in (1, 2, 3)]
    for name in TERMS[:6]:
        cells = [np.moveaxis(getattr(split, name), 0, -1).reshape(2, 2, -1) for split in splits]
        everything = np.concatenate(cells, -1)
        assert everything.shape == (2, 2, 2 * 2 + 2 * 3 + 3 * 1)
        found: RowAverage = getattr(means.all_sets, name)
        np.testing.assert_allclose(found.by_head(), everything.mean(-1))
        assert found.overall() == pytest.approx(everything.mean())
        np.testing.assert_allclose(getattr(means.first, name).by_head(), cells[0].mean(-1))
    gains = np.concatenate([split.set_gain for split in splits], -1)
    np.testing.assert_allclose(means.all_sets.set_gain.by_head(), gains.mean(-1))
    assert (means.n_sets, means.n_members, means.n_left_out) == (3, 7, 0)
    assert means.all_sets.total.overall() == pytest.approx(
        means.all_sets.drift.overall() + means.all_sets.competition.overall()
    )


def test_a_set_without_all_its_twins_is_left_out_and_counted():
    twins = planted_twins(rows=by_token())
    whole_first = {key: trace for key, trace in twins.alone.items() if key != (3, 2)}
    means = prompt_split(twins.in_set, whole_first, reference="without")
    assert (means.n_sets, means.n_members, means.n_left_out) == (1, 2, 1)
    assert means.first.drift.overall() == means.all_sets.drift.overall()


def test_no_later_set_stands_in_for_the_first():
    twins = planted_twins(rows=by_token())
    later = {key: trace for key, trace in twins.alone.items() if key[0] == 3}
    means = prompt_split(twins.in_set, later, reference="without")
    assert np.isnan(means.first.drift.overall())
    assert means.all_sets.drift.overall() == pytest.approx(0, abs=EXACT)


def test_the_last_set_is_read_by_nobody_and_counts_nowhere():
    twins = planted_twins((1, 2), rows=by_token())
    means = means_of(twins)
    assert (means.n_sets, means.n_left_out) == (0, 0)
    assert np.isnan(means.all_sets.total.overall())


def test_the_twin_of_no_member_is_refused():
    twins = planted_twins(rows=by_token())
    alone = dict(twins.alone) | {(2, 0): twins.alone[1, 0]}
    with pytest.raises(TwinError, match=r"got \(step, rank\) \[\(2, 0\)\]"):
        prompt_split(twins.in_set, alone, reference="without")


# --- over prompts


def test_planted_down_weighting_is_found_over_prompts_and_dilution_apart_from_it():
    rows = noisy(both(by_token(), favour_sets(FACTOR)), 0.1)
    found = decomposition([means_of(planted_twins(rows=rows, seed=n)) for n in range(10)])
    for part in (found.first, found.all_sets):
        assert part.interval.drift.low < np.log(FACTOR) < part.interval.drift.high
        assert part.interval.drift.high < 0
        assert part.interval.predicted.high < 0
        assert part.interval.set_gain.n == 10
        assert part.by_layer.drift.shape == (10, 2)
        assert part.interval.total.estimate == pytest.approx(
            part.interval.drift.estimate + part.interval.competition.estimate
        )
        np.testing.assert_allclose(part.by_layer.drift.mean(1), part.by_prompt.drift)
        assert (part.q_value_by_head < 0.05).all()
    assert (found.n_sets, found.n_members, found.n_left_out) == (20, 50, 0)


def test_the_planted_head_stands_out():
    def one_head(place: PlantedPlace) -> np.ndarray:
        rows = np.ones((2, 3, *place.visible.shape))
        rows[1, 2] = favour_sets(0.3)(place)
        return rows

    rows = noisy(both(by_token(), one_head), 0.2)
    prompts = [means_of(planted_twins(rows=rows, seed=n, n_heads=3)) for n in range(12)]
    found = decomposition(prompts).all_sets
    assert np.unravel_index(np.nanargmin(found.drift_by_head), (2, 3)) == (1, 2)
    assert np.unravel_index(np.nanargmin(found.q_value_by_head), (2, 3)) == (1, 2)
    assert found.drift_by_head[1, 2] == pytest.approx(np.log(0.3), abs=0.2)


def test_prompts_without_sets_are_dropped_and_counted():
    prompts = [means_of(planted_twins(rows=by_token(), seed=n)) for n in range(9)]
    prompts.append(means_of(planted_twins((1, 1), rows=by_token())))
    found = decomposition(prompts)
    assert found.first.interval.drift.n == 9
    assert found.first.interval.drift.n_dropped == 1
    assert np.isnan(found.first.by_prompt.drift[-1])


def test_no_set_at_all_is_refused():
    with pytest.raises(NoParallelSetsError, match="lower the threshold"):
        decomposition([means_of(planted_twins((1, 1)))] * 9)
    with pytest.raises(NoParallelSetsError):
        decomposition([])


def test_prompts_split_in_different_ways_are_refused():
    twins = planted_twins()
    with pytest.raises(InputError, match="got 2 kinds"):
        decomposition([means_of(twins), means_of(twins, "with")])


# --- a real model

SETS = ((40, 41), (50,), (60, 61, 62), (70, 71), (80,))
FAMILIES = ("llama", "gemma2", "gpt_oss", "mistral", "qwen3")


def traces_of(family: str, sets: Sequence[tuple[tuple[int, ...], ...]], level: str, **rules):
    """Decode forced sets together, each a trace in memory."""
    model = model_of(family)
    prompt = random_prompt(model, 6)
    plans = [
        SequencePlan("p0000", str(number), prompt, Policy(Forced(one), **rules), len(one), "ignore")
        for number, one in enumerate(sets)
    ]
    capture: Capture = whole(model, level)
    traces: list[Trace] = []
    for plan, decoded in zip(plans, run_plans(model, plans, capture=capture), strict=True):
        header = first_header(model, plan, capture, prompt="", run={})
        keeper = TraceKeeper(header)
        recorder = Recorder(model, keeper)
        for outcome in decoded.outcomes:
            recorder.take(outcome)
        traces.append(keeper.trace())
    return traces


def decoded_twins(family: str, level: str = "weights", **rules) -> Twins:
    keys = [(step, rank) for step in (1, 3, 4) for rank in range(len(SETS[step - 1]))]
    single = [(*SETS[: step - 1], (SETS[step - 1][rank],), *SETS[step:]) for step, rank in keys]
    in_set, *alone = traces_of(family, [SETS, *single], level, **rules)
    return Twins(in_set, dict(zip(keys, alone, strict=True)))


@pytest.mark.parametrize("see", ["isolated", "visible"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layer_has_no_drift_and_obeys_the_odds_law(family: str, see: str):
    twins = decoded_twins(family, **({"see": VISIBLE} if see == "visible" else {}))
    for step in (1, 3, 4):
        split = split_of(twins, step)
        assert not np.isnan(split.drift[:, 0]).any()
        np.testing.assert_allclose(split.drift[:, 0], 0, atol=1e-5)
        np.testing.assert_allclose(split.elsewhere[:, 0], 0, atol=1e-5)
        np.testing.assert_allclose(split.competition[:, 0], split.predicted[:, 0], atol=1e-5)
        assert (split.set_gain[0] > 0).all()
        assert np.nanmax(np.abs(split.drift[:, 1:])) > 1e-3


@pytest.mark.parametrize("reference", ["with", "without"])
@pytest.mark.parametrize("family", FAMILIES)
def test_drift_from_rows_equals_drift_from_scores(family: str, reference: str):
    rules = {"bias": (Boost(-0.7),)}
    rows, scores = (decoded_twins(family, level, **rules) for level in ("weights", "qk"))
    for step, rank in rows.alone:
        place = {"step": step, "rank": rank, "reference": reference}
        by_rows = split_member(rows.in_set, rows.alone[step, rank], **place).drift
        by_scores = drift_from_scores(scores.in_set, scores.alone[step, rank], **place)
        np.testing.assert_allclose(by_rows, by_scores, atol=1e-4)
        recomputed = split_member(scores.in_set, scores.alone[step, rank], **place).drift
        np.testing.assert_allclose(recomputed, by_scores, atol=1e-4)


def test_scores_of_some_heads_use_their_own_keys():
    """Query head 3 of four reads KV head 1 of two, wherever it stands on the head axis."""
    twins = decoded_twins("llama", "qk")
    place = {"step": 1, "rank": 0, "reference": "without"}
    expected = drift_from_scores(twins.in_set, twins.alone[1, 0], **place)[:, [3]]

    def last_head(trace: Trace) -> Trace:
        kept = {n: t[:, [3]] if n.endswith("/q") else t for n, t in trace.tensors.items()}
        return Trace(replace(trace.header, heads=(3,)), kept)

    found = drift_from_scores(last_head(twins.in_set), last_head(twins.alone[1, 0]), **place)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("bias", "drift"), [(Boost(-0.7), -0.7), (MassNeutral(), -np.log(2))], ids=["boost", "neutral"]
)
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_a_bias_on_the_set_is_the_drift_of_the_first_layer(family: str, bias, drift: float):
    split = split_of(decoded_twins(family, bias=(bias,)), 1)
    np.testing.assert_allclose(split.drift[:, 0], drift, atol=1e-5)


def test_copies_of_a_token_with_a_mass_neutral_bias_gain_nothing():
    copies = ((40, 40, 40), (50,), (60,))
    single = ((40,), (50,), (60,))
    in_set, alone = traces_of("llama", [copies, single], "weights", bias=(MassNeutral(),))
    split = split_set(in_set, [alone] * 3, step=1, reference="without")
    np.testing.assert_allclose(split.set_gain, 0, atol=1e-4)
    np.testing.assert_allclose(split.total, -np.log(3), atol=1e-4)
    np.testing.assert_allclose(split.drift, -np.log(3), atol=1e-4)
    np.testing.assert_allclose(split.competition, 0, atol=1e-4)
