import numpy as np
import pytest

from tempo.errors import LevelError
from tempo.testing.planted import PlantedPlace, noisy, planted_trace, uniform, with_sink
from tempo.trace.trace import Trace
from tempo_analysis.parallel.entropy import prompt_entropy
from tempo_analysis.parallel.head_kinds import (
    KINDS,
    MEASURES,
    PLACES,
    RULE,
    UNTYPED,
    HeadTable,
    head_table,
    prompt_heads,
)
from tempo_analysis.parallel.observation import observe

LONG = {"widths": (2, 1, 3, 1, 2, 1), "prompt_length": 30}


def table(*traces: Trace) -> HeadTable:
    seen = [observe(trace) for trace in traces]
    prompts = [prompt_heads(each, prompt_entropy(each)) for each in seen]
    return head_table(prompts, layers=traces[0].layers, heads=traces[0].heads)


def kinds(found: HeadTable) -> list[list[str]]:
    return [[KINDS[kind] if kind != UNTYPED else "-" for kind in row] for row in found.kind]


@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
@pytest.mark.parametrize("positions", ["shared", "unique"])
def test_even_attention_has_the_chance_value_in_every_column(relation, positions):
    found = table(planted_trace(relation=relation, positions=positions, windows=[None, 9], **LONG))
    np.testing.assert_allclose(found.value, found.chance, atol=2e-5)
    assert kinds(found) == [["diffuse"] * 2] * 2


def test_the_places_are_the_whole_row():
    found = table(planted_trace(rows=noisy(with_sink(0.3), 1.0), relation="visible", **LONG))
    for side in (found.column, found.chance_column):
        np.testing.assert_allclose(sum(side(place) for place in PLACES), 1, atol=1e-6)
    assert (found.column("siblings") > 0).all()


def test_each_head_gets_the_kind_that_was_planted():
    def planted(place: PlantedPlace) -> np.ndarray:
        behind = place.table.position[place.queries, None] - place.table.position[None, :]
        sink = with_sink(0.6)(place)
        far = np.where(behind > 8, 1.0, 1e-3)
        near = np.where(behind <= 8, 1.0, 1e-3)
        even = uniform(place)
        mixed = np.where(np.arange(len(place.table)) % 8 == 1, 1.0, 0.02) * np.ones(behind.shape)
        no_sink = [far, near, even, mixed]
        for rows in no_sink:
            rows[:, 0] *= 0.1
        return np.stack([sink, *no_sink])[None]

    found = table(planted_trace(rows=planted, n_layers=1, n_heads=5, **LONG))
    assert kinds(found)[0][0] == "sink"
    assert kinds(found)[0][1:4] == ["long-range", "local", "diffuse"]
    assert kinds(found)[0][4] == "balanced"
    assert sum(found.kind_count().values()) == 5
    assert str(found.names()[0][3]) == "L0H3"


def test_a_place_with_chance_one_names_no_head():
    def near(place: PlantedPlace) -> np.ndarray:
        return np.where(np.arange(len(place.table)) == len(place.table) - 1, 1.0, 0.05) * np.ones(
            place.visible.shape
        )

    found = table(planted_trace(widths=(1, 1), prompt_length=4, rows=near))
    np.testing.assert_array_equal(found.chance_column("local_without_sink"), 1)
    assert kinds(found) == [["balanced"] * 2] * 2


def test_shares_and_distances_have_their_planted_values():
    def row(place: PlantedPlace) -> np.ndarray:
        """0.5 sink, 0.1 at 12 back, 0.3 at 2 back, 0.1 itself."""
        rows = np.zeros(place.visible.shape)
        query = place.queries[0]
        rows[:, [0, query - 12, query - 2, query]] = [0.5, 0.1, 0.3, 0.1]
        return rows if place.step else uniform(place)

    found = table(planted_trace(widths=(1,), prompt_length=20, relation="greedy", rows=row))
    expected = {
        "sink": 0.5,
        "self": 0.1,
        "siblings": 0.0,
        "recent": 0.3,
        "distant": 0.1,
        "earlier_sets": 0.0,
        "local_without_sink": 0.8,
        "distant_without_sink": 0.2,
        "distance_without_sink": (0.1 * 12 + 0.3 * 2) / 0.5,
        "max_weight": 0.5,
    }
    for measure, value in expected.items():
        np.testing.assert_allclose(found.column(measure), value, atol=1e-6, err_msg=measure)
    np.testing.assert_allclose(found.chance_column("recent"), 8 / 21)
    np.testing.assert_allclose(found.chance_column("distance_without_sink"), np.mean(range(20)))


def test_prompts_are_averaged_first_and_those_without_data_left_out():
    few = planted_trace(widths=(1,), rows=with_sink(0.2), relation="greedy")
    many = planted_trace(widths=(1,) * 9, rows=with_sink(0.6), relation="greedy")
    none = planted_trace(widths=())
    found = table(few, many, none)
    np.testing.assert_allclose(found.column("sink"), 0.4, atol=1e-6)
    assert found.n == 2


def test_heads_without_data_have_no_kind():
    found = table(planted_trace(widths=()))
    assert np.isnan(found.value).all()
    assert (found.kind == UNTYPED).all()
    assert (found.n, sum(found.kind_count().values())) == (0, 0)


def test_a_reduced_trace_is_refused():
    with pytest.raises(LevelError, match="level weights or qk"):
        table(planted_trace(level="reduced"))


def test_the_rule_names_every_kind():
    assert all(f"{kind}:" in RULE for kind in KINDS)
    assert set(PLACES) < set(MEASURES)
