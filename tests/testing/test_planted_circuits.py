"""Circuits whose every number is known, run through a real forward with edits and measured."""

import numpy as np
import pytest
import torch

from tempo.causal.forward import forward
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.projections import output_projections
from tempo.policy.edits import Edit, KnockOut, ReplaceHeadOutput, ValueZero
from tempo.testing.circuits import (
    LONGEST,
    PlantedHead,
    circuit,
    previous_and_self,
    uniform_head,
)
from tempo_analysis.studies.ablation.passes import Comparison, Pass, nip
from tempo_analysis.studies.ablation.redundancy import (
    COMPARISONS,
    CURVES,
    PASSES,
    PromptRedundancy,
    PromptSweep,
    index_of,
    prompt_redundancy,
    prompt_sweep,
    redundancy,
    sweep,
)
from tempo_analysis.studies.ablation.result import prompt_numbers
from tempo_analysis.studies.ablation.verdict import redundancy_sentences, sweep_sentences

T = 12
PREVIOUS, SELF = "L0H0", "L0H1"


@pytest.fixture(scope="module", name="two_heads")
def previous_and_self_heads() -> LanguageModel:
    return previous_and_self()


@pytest.fixture(scope="module", name="even_head")
def one_even_head() -> LanguageModel:
    return uniform_head()


def ids_of(n: int = T, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 120, n)


def a_pass(model: LanguageModel, ids: np.ndarray, t: int, *edits: Edit) -> Pass:
    """One forward, measured at t; the output projection is applied by its own module."""
    found = forward(model, ids, edits=edits)
    linears = output_projections(model, range(model.n_layers))
    with torch.inference_mode():
        outputs = [
            linear(torch.from_numpy(found.head_outputs[layer, t].reshape(-1))).numpy()
            for layer, linear in linears.items()
        ]
    return Pass(t, np.stack(outputs), found.logits, found.attention[:, :, t])


def without(head: str, t: int) -> ReplaceHeadOutput:
    return ReplaceHeadOutput(heads=[head], queries=[t])


def without_values(slot: int, *heads: str) -> ValueZero:
    return ValueZero(heads=heads, slots=[slot]) if heads else ValueZero(layers=[0], slots=[slot])


def six_passes(
    model: LanguageModel, head: str, t: int, *, offset: int = 1, seed: int = 0
) -> PromptRedundancy:
    ids, a = ids_of(seed=seed), without(head, t)
    scopes = (without_values(t - offset), without_values(t - offset, head))
    edits: dict[str, tuple[Edit, ...]] = {"base": (), "A": (a,)}
    edits |= {name: (b,) for name, b in zip(PASSES[2:4], scopes, strict=True)}
    edits |= {name: (a, b) for name, b in zip(PASSES[4:], scopes, strict=True)}
    passes = {name: a_pass(model, ids, t, *each) for name, each in edits.items()}
    return prompt_redundancy({name: one.attention_output for name, one in passes.items()})


def value(found: PromptRedundancy, name: str) -> float:
    names = [str(each) for each in COMPARISONS]
    return float(found.nip[names.index(name), 0])


def swept(model: LanguageModel, head: str, t: int, *, n_offsets: int = 4) -> PromptSweep:
    ids, a = ids_of(), without(head, t)

    def output(*edits: Edit) -> np.ndarray:
        return a_pass(model, ids, t, *edits).attention_output

    offsets = range(1, min(n_offsets, t) + 1)
    at = ((o, output(without_values(t - o)), output(a, without_values(t - o))) for o in offsets)
    return prompt_sweep(output(), output(a), at=at, n_offsets=n_offsets)


# --- the circuits are what they say


def test_the_planted_heads_give_one_slot_everything(two_heads: LanguageModel):
    found = forward(two_heads, ids_of(LONGEST))
    previous, own = found.attention[0]
    np.testing.assert_array_equal(np.diagonal(previous, -1), 1)
    np.testing.assert_array_equal(np.diagonal(own), 1)
    assert previous[0, 0] == 1


def test_the_planted_heads_write_orthogonal_unit_vectors(two_heads: LanguageModel):
    t = 5
    base, previous, own = (
        a_pass(two_heads, ids_of(), t, *edits).attention_output[0]
        for edits in ((), (without(SELF, t),), (without(PREVIOUS, t),))
    )
    np.testing.assert_allclose(base, previous + own, atol=1e-6)
    np.testing.assert_allclose(
        [previous @ previous, own @ own, previous @ own], [1, 1, 0], atol=1e-6
    )


@pytest.mark.parametrize("offset", [0, 1, 2, 7, 12])
def test_a_head_may_be_planted_at_any_offset(offset: int):
    found = forward(circuit([PlantedHead(offset)]), ids_of(18))
    np.testing.assert_allclose(np.diagonal(found.attention[0, 0], -offset), 1, atol=1e-6)


def test_a_circuit_without_heads_or_with_a_blunt_one_is_refused():
    for heads in ([], [PlantedHead(LONGEST)], [PlantedHead(-1)]):
        with pytest.raises(InputError, match="positions back"):
            circuit(heads)


# --- (i) a previous-token head and a self head


def test_removing_the_previous_token_head_leaves_half(two_heads: LanguageModel):
    found = six_passes(two_heads, PREVIOUS, 7)
    assert value(found, "base|A") == pytest.approx(0.5, abs=1e-6)
    for scope in ("all", "listed"):
        assert value(found, f"base|B_{scope}") == pytest.approx(0.5, abs=1e-6)
        assert value(found, f"base|AB_{scope}") == pytest.approx(0.5, abs=1e-6)
        assert value(found, f"A|AB_{scope}") == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.cosine[0], np.sqrt(0.5), atol=1e-6)


def test_the_previous_token_head_is_fully_redundant_with_the_token_before(
    two_heads: LanguageModel,
):
    prompts = [six_passes(two_heads, PREVIOUS, t) for t in range(2, 11)]
    found = redundancy(prompts, layers=(0,))
    for index in found.indices:
        assert index.pooled.estimate[0] == pytest.approx(1, abs=1e-5)
        assert index.per_prompt.curve.estimate[0] == pytest.approx(1, abs=1e-5)
        assert index.overlap.curve.estimate[0] == pytest.approx(1, abs=1e-5)
    assert all("all that B removes" in told for told in redundancy_sentences("A", found))


def test_values_at_any_other_offset_change_nothing_and_r_is_undefined(two_heads: LanguageModel):
    for offset in (2, 3, 5):
        found = six_passes(two_heads, PREVIOUS, 7, offset=offset)
        alone, after = value(found, "base|B_all"), value(found, "A|AB_all")
        assert (alone, after) == pytest.approx((1, 1), abs=1e-6)
        assert np.isnan(index_of(np.array([alone]), np.array([after])))[0]
        assert np.isnan(found.overlap).all()


def test_the_self_head_is_independent_by_overlap_though_its_r_is_minus_one(
    two_heads: LanguageModel,
):
    found = six_passes(two_heads, SELF, 7)
    alone, after = value(found, "base|B_all"), value(found, "A|AB_all")
    assert index_of(np.array([alone]), np.array([after]))[0] == pytest.approx(-1, abs=1e-5)
    assert found.overlap[0, 0] == pytest.approx(0, abs=1e-6)
    # in the listed head itself, which looks at t alone, the token before has no part
    assert value(found, "base|B_listed") == 1
    assert np.isnan(found.overlap[1, 0])


def test_the_sweep_of_the_previous_token_head_dips_at_offset_1_only(two_heads: LanguageModel):
    found = swept(two_heads, PREVIOUS, 7).nip[..., 0]
    by_name = dict(zip(CURVES, found, strict=True))
    np.testing.assert_allclose(by_name["base|B"], [0.5, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(by_name["A|AB"], 1, atol=1e-6)
    np.testing.assert_allclose(by_name["base|AB"], 0.5, atol=1e-6)
    np.testing.assert_allclose(by_name["base|A"], 0.5, atol=1e-6)


def test_a_flat_sweep_licenses_captured_for_the_head_that_did_it(two_heads: LanguageModel):
    prompts = [swept(two_heads, PREVIOUS, t) for t in range(4, 12)]
    (told,) = sweep_sentences("A", sweep(prompts, layers=(0,)))
    assert "at offset 1 B alone changes the output" in told
    assert "has captured at least 90% of it" in told
    assert "at offset 2-4 B alone is not shown to change anything" in told


def test_a_sweep_stops_at_the_first_token(two_heads: LanguageModel):
    found = swept(two_heads, PREVIOUS, 2)
    np.testing.assert_array_equal(np.isnan(found.nip[0, :, 0]), [False, False, True, True])


def test_a_redundancy_of_two_heads_that_share_the_token_before_is_a_half():
    model = circuit([PlantedHead(1), PlantedHead(1)])
    found = six_passes(model, PREVIOUS, 7)
    assert found.overlap[0, 0] == pytest.approx(0.5, abs=1e-6)
    assert found.overlap[1, 0] == pytest.approx(1, abs=1e-6)


# --- (ii) one even head


@pytest.mark.parametrize("t", [1, 4, 11])
def test_an_even_head_loses_one_share_at_every_offset(even_head: LanguageModel, t: int):
    found = swept(even_head, "L0H0", t, n_offsets=t)
    np.testing.assert_allclose(found.nip[CURVES.index("base|B"), :, 0], 1 - 1 / (t + 1), atol=1e-6)


# --- a reference of zero


def test_an_output_of_zero_has_no_nip(even_head: LanguageModel):
    t = 6
    ids = ids_of()
    base = a_pass(even_head, ids, t)
    silent = a_pass(even_head, ids, t, without("L0H0", t))
    assert nip(base.attention_output, silent.attention_output)[0] == 0
    assert np.isnan(nip(silent.attention_output, silent.attention_output)[0])


# --- every measure at once, through a forward


def test_an_edit_at_t_changes_the_next_token_at_t_and_nothing_after_it_in_one_layer(
    two_heads: LanguageModel,
):
    t = 7
    passes = {
        "base": a_pass(two_heads, ids_of(), t),
        "A": a_pass(two_heads, ids_of(), t, without(PREVIOUS, t)),
    }
    compared = Comparison("base", "A")
    found = prompt_numbers(passes, [compared]).effects[compared]
    assert found.kl_at_t_nats > 1e-4
    assert found.kl_after_t_nats == pytest.approx(0, abs=1e-9)
    assert found.kl_published_nats == pytest.approx(found.kl_at_t_nats / T)


def test_values_and_edge_at_t_are_one_and_the_same_in_the_layer_that_is_edited(
    two_heads: LanguageModel,
):
    t = 7
    values, edge = (
        a_pass(two_heads, ids_of(), t, edit).attention_output
        for edit in (
            without_values(t - 1),
            KnockOut(layers=[0], queries=[t], slots=[t - 1], softmax="after"),
        )
    )
    np.testing.assert_array_equal(values, edge)


def test_a_knock_out_moves_attention_by_what_it_takes_away(even_head: LanguageModel):
    t, n_bins = 9, 5
    ids = ids_of()
    base = a_pass(even_head, ids, t)
    compared = Comparison("base", "out")
    for softmax, lost in (("before", 0.0), ("after", 0.1)):
        edit = KnockOut(heads=["L0H0"], queries=[t], slots=[t - 2], softmax=softmax)
        passes = {"base": base, "out": a_pass(even_head, ids, t, edit)}
        found = prompt_numbers(passes, [compared], n_offsets=n_bins - 2)
        away = found.offsets["out"].share[0, 0] - found.offsets["base"].share[0, 0]
        assert away.sum() == pytest.approx(-lost, abs=1e-6)
        assert away[2] == pytest.approx(-0.1, abs=1e-6)
        moved = found.variations[compared][0]
        assert moved == pytest.approx([0.1 if softmax == "before" else 0.05, 0], abs=1e-6)
