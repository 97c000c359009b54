import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from tempo.testing.planted import PlantedPlace, noisy, planted_trace, uniform, with_sink
from tempo.trace.trace import Trace
from tempo_analysis.parallel.entropy import (
    PromptEntropy,
    binary_entropy_nats,
    entropy_funnel,
    entropy_with_sink,
    entropy_without_sink,
    prompt_entropy,
)
from tempo_analysis.parallel.observation import observe


def measured(trace: Trace) -> PromptEntropy:
    return prompt_entropy(observe(trace))


def one_row(probabilities: list[float]) -> Trace:
    """A greedy trace whose first generated query pays exactly these shares."""

    def row(place: PlantedPlace) -> np.ndarray:
        return np.array([probabilities]) if place.step else uniform(place)

    return planted_trace(
        widths=(1,), prompt_length=len(probabilities) - 1, relation="greedy", rows=row
    )


def chain(p: np.ndarray) -> tuple[float, float]:
    """H from H' and the sink mass, and H' from H and the rest, by the chain rule."""
    whole, rest = scipy_entropy(p), scipy_entropy(p[1:])
    joined = entropy_with_sink(np.array([rest]), p[:1])
    parted = entropy_without_sink(np.array([whole]), p[1:].sum(keepdims=True))
    return joined.item() - whole, parted.item() - rest


def test_the_chain_rule_holds_for_the_worked_example():
    p = np.array([0.7, 0.1, 0.1, 0.05, 0.05])
    assert scipy_entropy(p) == pytest.approx(1.00976, abs=5e-6)
    assert chain(p) == pytest.approx((0, 0), abs=1e-12)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=12))
def test_the_chain_rule_is_exact(raw):
    assert chain(np.array(raw) / np.sum(raw)) == pytest.approx((0, 0), abs=1e-12)


def test_a_row_without_anything_but_the_sink_has_no_sink_free_entropy():
    assert np.isnan(entropy_without_sink(np.array([0.0]), np.array([0.0]))).all()
    assert binary_entropy_nats(np.array([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_the_worked_example_is_measured_in_a_trace():
    found = measured(one_row([0.7, 0.1, 0.1, 0.05, 0.05]))
    rest = scipy_entropy([0.1, 0.1, 0.05, 0.05])
    assert found.entropy_nats.overall() == pytest.approx(1.00976, abs=1e-5)
    assert found.normalised.overall() == pytest.approx(1.00976 / np.log(5), abs=1e-5)
    assert found.entropy_without_sink_nats.overall() == pytest.approx(rest, abs=1e-6)
    assert found.normalised_without_sink.overall() == pytest.approx(rest / np.log(4), abs=1e-6)
    assert found.sink_mass.overall() == pytest.approx(0.7, abs=1e-6)
    assert found.sink_chance.overall() == pytest.approx(0.2)


@pytest.mark.parametrize("relation", ["isolated", "visible", "ordered"])
def test_even_attention_has_normalised_entropy_one_whatever_a_query_may_see(relation: str):
    found = measured(planted_trace(relation=relation, windows=[None, 3]))
    assert found.normalised.overall() == pytest.approx(1, abs=1e-6)
    assert found.normalised_without_sink.overall() == pytest.approx(1, abs=1e-6)
    assert found.entropy_nats.overall() == pytest.approx(found.even_nats.overall(), abs=1e-6)
    assert found.sink_mass.overall() == pytest.approx(found.sink_chance.overall(), abs=1e-6)


def test_the_sink_hides_how_even_the_rest_is():
    found = measured(planted_trace(rows=with_sink(0.9)))
    assert found.normalised.overall() < 0.4
    assert found.normalised_without_sink.overall() == pytest.approx(1, abs=1e-5)


def test_entropies_of_rows_are_averaged_not_entropies_of_an_average_row():
    def opposite(place: PlantedPlace) -> np.ndarray:
        """Each head looks at one slot; their mean row would be spread over two."""
        rows = np.zeros((1, 2, *place.visible.shape))
        rows[0, 0, :, 1] = rows[0, 1, :, 2] = 1.0
        return rows if place.step else np.broadcast_to(uniform(place), rows.shape)

    found = measured(planted_trace(widths=(1,), rows=opposite, n_layers=1, relation="greedy"))
    assert found.entropy_nats.overall() == 0
    assert found.normalised_without_sink.overall() == 0


@pytest.mark.parametrize("level", ["qk", "reduced"])
def test_every_level_gives_the_same_entropies(level: str):
    plan = {"rows": noisy(with_sink(0.8), 1.5), "windows": [None, 4]}
    ours, other = measured(planted_trace(**plan)), measured(planted_trace(**plan, level=level))
    for name in PromptEntropy.__dataclass_fields__:
        expected = getattr(ours, name).by_head()
        np.testing.assert_allclose(getattr(other, name).by_head(), expected, atol=2e-5)


def test_rows_with_all_their_mass_on_the_sink_are_left_out_without_it():
    found = measured(planted_trace(rows=with_sink(1 - 1e-8)))
    assert np.isnan(found.normalised_without_sink.overall())
    assert found.kept_without_sink.overall() == 0
    assert found.normalised.overall() == pytest.approx(0, abs=1e-5)


def test_a_reduced_row_needs_more_mass_outside_the_sink():
    plan = {"rows": with_sink(1 - 2e-5)}
    assert measured(planted_trace(**plan)).kept_without_sink.overall() == 1
    assert measured(planted_trace(**plan, level="reduced")).kept_without_sink.overall() == 0


def test_a_row_that_sees_one_slot_beside_the_sink_has_no_sink_free_entropy():
    found = measured(planted_trace(widths=(1,), prompt_length=1, relation="greedy"))
    assert found.normalised.overall() == pytest.approx(1, abs=1e-6)
    assert np.isnan(found.normalised_without_sink.overall())
    only_itself = planted_trace(widths=(1,), relation="greedy", windows=[1, 1])
    assert np.isnan(measured(only_itself).normalised.overall())


def test_rows_that_a_learned_sink_shortens_are_scaled_to_sum_to_one():
    for level in ("weights", "reduced"):
        trace = planted_trace(rows=noisy(uniform, 1.0), level=level)
        short = {
            name: _shorten(name, tensor, trace.tensors) for name, tensor in trace.tensors.items()
        }
        ours, other = measured(trace), measured(Trace(trace.header, short))
        for name in PromptEntropy.__dataclass_fields__:
            expected = getattr(ours, name).by_head()
            np.testing.assert_allclose(getattr(other, name).by_head(), expected, atol=1e-5)


def _shorten(name: str, tensor: np.ndarray, tensors) -> np.ndarray:
    """As if half of every row had gone to a learned sink."""
    if name.endswith(("/weights", "/group_mass")):
        return tensor / 2
    if name.endswith("/entropy_nats") and "readout" not in name:
        return (tensor / 2 + np.log(2) / 2).astype(np.float32)
    return tensor


def test_layers_are_averaged_over_prompts_with_intervals():
    def layered(place: PlantedPlace) -> np.ndarray:
        rows = np.stack([uniform(place), with_sink(0.95)(place)])
        return np.broadcast_to(rows[:, None], (2, 2, *place.visible.shape))

    prompts = [measured(planted_trace(rows=noisy(layered, 0.1), seed=n)) for n in range(12)]
    found = entropy_funnel(prompts, layers=(4, 7))
    assert found.normalised.x.tolist() == [4, 7]
    assert found.normalised.estimate[0] > 0.95 > 0.4 > found.normalised.estimate[1]
    assert (found.normalised.low < found.normalised.estimate).all()
    assert found.normalised_without_sink.estimate[1] > 0.95
    assert found.normalised.n.tolist() == [12, 12]


def test_a_prompt_that_generated_nothing_has_no_data():
    empty = measured(planted_trace(widths=()))
    assert np.isnan(empty.normalised.overall())
    full = [measured(planted_trace(seed=n, rows=noisy(uniform, 1.0))) for n in range(9)]
    found = entropy_funnel([empty, *full], layers=(0, 1))
    assert found.normalised.n.tolist() == [9, 9]
    assert np.isfinite(found.normalised.estimate).all()
