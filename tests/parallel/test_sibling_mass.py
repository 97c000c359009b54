import numpy as np
import pytest

from tempo.testing.planted import PlantedPlace, noisy, planted_trace, uniform
from tempo.trace.trace import Trace
from tempo_analysis.parallel.observation import observe
from tempo_analysis.parallel.sibling_mass import SiblingMass, prompt_siblings, sibling_mass


def measured(*traces: Trace) -> SiblingMass:
    prompts = [prompt_siblings(observe(trace)) for trace in traces]
    return sibling_mass(prompts, layers=traces[0].layers)


@pytest.mark.parametrize("level", ["weights", "qk", "reduced"])
def test_isolated_members_pay_each_other_exactly_nothing(level: str):
    traces = [planted_trace(rows=noisy(uniform, 2.0), level=level, seed=n) for n in range(9)]
    found = measured(*traces)
    assert found.largest == found.largest_hidden == 0
    np.testing.assert_array_equal(found.by_layer.estimate, [0, 0])
    np.testing.assert_array_equal(found.chance_by_layer.estimate, [0, 0])


def test_a_leak_between_isolated_members_is_seen():
    trace = planted_trace(widths=(2,))
    leaking = {name: tensor.copy() for name, tensor in trace.tensors.items()}
    leaking["step/00001/weights"][1, 0, 0, -1] = 1e-7
    assert measured(Trace(trace.header, leaking)).largest_hidden == pytest.approx(1e-7)


@pytest.mark.parametrize(("relation", "chance"), [("visible", 1 / 7), ("ordered", 1 / 14)])
def test_even_members_that_see_each_other_have_the_chance_value(relation, chance):
    found = measured(planted_trace(widths=(2,), relation=relation))
    np.testing.assert_allclose(found.by_layer.estimate, chance, rtol=1e-6)
    np.testing.assert_allclose(found.chance_by_layer.estimate, chance, rtol=1e-6)


def test_mass_between_members_is_found_in_its_layer():
    def second_layer(place: PlantedPlace) -> np.ndarray:
        rows = np.ones((2, 2, *place.visible.shape))
        rows[1] = np.where(place.is_group("siblings"), 50.0, 1.0)
        return rows

    found = measured(planted_trace(widths=(2, 1), relation="visible", rows=second_layer))
    assert found.by_layer.estimate == pytest.approx([1 / 7, 50 / 56], rel=1e-6)
    assert found.largest == pytest.approx(50 / 56, rel=1e-6)
    assert np.isnan(found.largest_hidden)


def test_without_a_set_there_is_no_data():
    found = measured(planted_trace(widths=(1, 1)))
    assert np.isnan(found.largest)
    assert np.isnan(found.by_layer.estimate).all()
