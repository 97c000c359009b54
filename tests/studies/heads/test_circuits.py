"""What weights say of heads: exact identities, planted circuits, groups, autograd."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tempo.causal.eager_rows import eager_rows
from tempo.errors import InputError
from tempo.models.circuit_weights import CircuitWeights, LayerWeights, Norm, ProcessedEmbedding
from tempo.models.head_weights import circuit_weights, processed_embedding
from tempo.prompts.word_runs import Family
from tempo.testing.tiny import tiny_model
from tempo_analysis.studies.heads.detectors.circuit_maps import (
    every_head,
    slot_share,
    value_weighted_share,
)
from tempo_analysis.studies.heads.detectors.copying import (
    copy_suppression,
    eigenvalue_score,
    ov_copying,
    token_ends,
)
from tempo_analysis.studies.heads.detectors.s_inhibition import direct_copy
from tempo_analysis.studies.heads.detectors.successor import (
    Order,
    order_of,
    successor_ov,
    tail_of_hits,
)
from tests.decoding import model_of, random_prompt, real_model

V = 24  # tokens, channels and hidden width of the planted models: tokens are one-hot
EYE = np.eye(V, dtype=np.float32)


def planted(*ov: np.ndarray, qk: np.ndarray = EYE) -> CircuitWeights:
    """One layer whose heads have these OV maps, each with its own KV head; all tokens one-hot."""
    n = len(ov)
    layer = LayerWeights(
        query=np.stack([qk] * n),
        key=np.stack([EYE] * n),
        value=np.stack([EYE] * n),
        out=np.stack([each.astype(np.float32) for each in ov]),
        query_bias=None,
        key_bias=None,
        value_bias=None,
        out_bias=None,
        input_norm=None,
        branch_norm=None,
        clip=None,
        normalises=False,
    )
    norm = Norm("rms", np.ones(V, np.float32), None, 0.0)
    return CircuitWeights((layer,), EYE, EYE, norm, None, False, True)


def one_hot() -> ProcessedEmbedding:
    return ProcessedEmbedding(tuple(range(V)), EYE, EYE)


def quarter_turns() -> np.ndarray:
    """A rotation by 90 degrees in every pair of channels."""
    turned = np.zeros((V, V), np.float32)
    turned[range(0, V, 2), range(1, V, 2)] = -1
    turned[range(1, V, 2), range(0, V, 2)] = 1
    return turned


def shift() -> np.ndarray:
    """Writes the token after the one that was read."""
    return np.roll(EYE, 1, axis=0)


# --- OV copying


def test_identity_copies_minus_identity_inverts_and_a_quarter_turn_does_neither():
    found = ov_copying(planted(EYE, -EYE, quarter_turns(), 3.5 * EYE), draws=20)
    np.testing.assert_allclose(found.full[0], [1, -1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found.stream[0], [1, -1, 0, 1], atol=1e-6)


def test_random_heads_score_about_nothing_and_are_the_null():
    rng = np.random.default_rng(1)
    weights = planted(*rng.standard_normal((40, V, V)))
    found = ov_copying(weights, draws=400)
    assert abs(found.full.mean()) < 0.06
    assert abs(found.null.mean()) < 0.03
    assert (found.full > found.null_p99).mean() <= 0.05
    assert np.quantile(found.p, 0.5) == pytest.approx(0.5, abs=0.2)
    copier = ov_copying(planted(EYE), draws=400)
    assert copier.p[0, 0] == 1 / 401


def test_the_small_product_has_the_eigenvalues_of_the_whole_circuit():
    rng = np.random.default_rng(2)
    read, write = rng.standard_normal((5, 30)), rng.standard_normal((30, 5))
    whole = np.linalg.eigvals(write @ read)
    expected = whole.sum().real / np.abs(whole).sum()
    assert eigenvalue_score(read @ write) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt_neox"])
def test_the_full_circuit_runs_from_token_to_logit(family: str):
    weights = circuit_weights(model_of(family))
    found = ov_copying(weights, draws=5)
    part = weights.layers[1]
    centre = np.eye(64) - (1 / 64 if weights.final_norm.kind == "layer" else 0)
    before = np.eye(64) if part.input_norm is None else np.diag(part.input_norm.gain)
    after = np.eye(64) if part.branch_norm is None else np.diag(part.branch_norm.gain)
    entered = weights.embedding.astype(np.float64)
    if part.input_norm is not None:
        if part.input_norm.kind == "layer":
            entered = entered - entered.mean(-1, keepdims=True)
        entered = entered / np.sqrt((entered**2).mean(-1, keepdims=True) + part.input_norm.eps)
    logits = weights.unembedding @ np.diag(weights.final_norm.gain) @ centre @ after @ part.out[3]
    whole = np.linalg.eigvals(logits @ weights.value_of(1, 3) @ before @ entered.T)
    expected = whole.sum().real / np.abs(whole).sum()
    assert found.full[1, 3] == pytest.approx(expected, abs=1e-4)


def test_a_head_that_writes_nothing_has_no_score():
    assert np.isnan(ov_copying(planted(0 * EYE), draws=3).full[0, 0])
    assert np.isnan(ov_copying(planted(0 * EYE), draws=3).stream[0, 0])


# --- copy suppression


def test_a_head_that_subtracts_what_it_reads_suppresses_every_copy():
    found = copy_suppression(planted(-EYE, EYE, shift() - EYE), one_hot(), lowest=5)
    assert found.ov[0].tolist() == [1, 0, 1]
    assert found.qk[0].tolist() == [1, 1, 1]
    assert found.both[0].tolist() == [1, 0, 1]
    assert not found.control.any()
    assert (found.ov_chance, found.qk_chance) == (5 / V, 1 / V)


def test_a_head_that_looks_elsewhere_does_not_suppress_what_it_would():
    found = copy_suppression(planted(-EYE, qk=shift()), one_hot(), lowest=5)
    assert (found.ov[0, 0], found.qk[0, 0], found.both[0, 0]) == (1, 0, 0)


def test_random_heads_suppress_at_chance():
    rng = np.random.default_rng(0)
    weights = planted(*rng.standard_normal((60, V, V)))
    weights = replace(
        weights,
        layers=(replace(weights.layers[0], query=_normal(60, rng), key=_normal(60, rng)),),
    )
    found = copy_suppression(weights, one_hot(), lowest=5)
    assert found.ov.mean() == pytest.approx(found.ov_chance, abs=0.03)
    assert found.qk.mean() == pytest.approx(found.qk_chance, abs=0.02)
    assert found.both.mean() == pytest.approx(found.chance, abs=0.01)
    assert found.control.mean() == pytest.approx(found.chance, abs=0.01)


def _normal(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((n, V, V)).astype(np.float32)


@pytest.mark.parametrize("tokens", [(1, 1, *range(2, V)), tuple(range(10))])
def test_a_sample_that_repeats_or_is_too_small_is_refused(tokens: tuple[int, ...]):
    rows = EYE[: len(tokens)]
    with pytest.raises(InputError, match="more than 10 distinct tokens, got"):
        copy_suppression(planted(EYE), ProcessedEmbedding(tokens, rows, rows))


# --- successors


WHOLE = Order("all", tuple(range(V)), tuple(range(V - 1)), tuple(range(1, V)))


def test_a_shift_finds_every_successor_and_identity_none():
    found = successor_ov(planted(shift(), EYE, shift().T), [WHOLE], one_hot())
    assert found.score[0].tolist() == [1, 0, 0]
    assert found.n == V - 1
    assert found.chance == pytest.approx(1 / (V - 1))
    assert found.p[0, 0] < 1e-20
    assert found.p[0, 1] == 1
    assert found.by_family.shape == (1, 1, 3)


def test_a_head_that_raises_one_word_hits_once_and_is_no_successor_head():
    constant = np.zeros((V, V), np.float32)
    constant[7] = 1
    found = successor_ov(planted(constant), [WHOLE], one_hot())
    assert found.hits[0, 0].sum() == 1
    assert found.p[0, 0] > 0.5
    assert found.score[0, 0] <= found.null_p99


def test_ties_are_no_hits():
    assert successor_ov(planted(np.ones((V, V))), [WHOLE], one_hot()).score[0, 0] == 0


def test_a_lost_element_is_no_succession():
    family = Family("days", (4, 5, 9, 10), ("a", "b", "d", "e"), ("c",), True, ((0, 1), (2, 3)))
    order = order_of(family)
    assert (order.before, order.after) == ((0, 2), (1, 3))
    assert successor_ov(planted(shift()), [order], one_hot()).n == 2
    lost = Family("none", (), (), ("a",), False, ())
    assert order_of(lost).before == ()


def test_the_tail_is_that_of_independent_trials():
    tail = tail_of_hits([0.5, 0.5, 0.25])
    np.testing.assert_allclose(tail, [1, 1 - 0.25 * 0.75, 0.0625 + 0.1875 + 0.125, 0.0625, 0])


@pytest.mark.parametrize("orders", [[], [Order("two", (1, 2), (0,), (1,))]])
def test_no_family_is_refused(orders: list[Order]):
    with pytest.raises(InputError, match="got 0 families"):
        successor_ov(planted(EYE), orders, one_hot())


def test_a_token_that_was_not_embedded_is_refused():
    sample = ProcessedEmbedding((1, 2, 3), EYE[1:4], EYE[1:4])
    order = Order("four", (1, 2, 3, 4), (0, 1, 2), (1, 2, 3))
    with pytest.raises(InputError, match="1 tokens that are not"):
        successor_ov(planted(EYE), [order], sample)


# --- the copy score


@pytest.mark.parametrize("norm", [False, True])
def test_identity_gives_a_name_its_own_size_and_minus_identity_takes_it(norm: bool):
    found = direct_copy(planted(EYE, -EYE), [3, 5, 8], norm=norm)
    assert found.score[0].tolist() == [1, -1]
    assert found.others[0].tolist() == [0, 0]
    assert found.by_name[0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma3", "phi3", "gpt_neox"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_copy_score_is_the_gradient_of_a_forward_with_a_one_hot_row(family: str, norm: bool):
    """d logit_t / d A[end, t] of the model's own modules, the norms' sizes held fixed."""
    model = model_of(family)
    weights = circuit_weights(model)
    tokens = [20, 50, 90]
    found = direct_copy(weights, tokens, norm=norm)
    decoder: Any = model.hf.get_decoder()
    for layer, head in every_head(weights):
        block = decoder.layers[layer]
        expected = [_logit_gradient(model, weights, block, (head, token, norm)) for token in tokens]
        np.testing.assert_allclose(found.by_name[layer, head], expected, atol=1e-4, rtol=1e-4)


def _logit_gradient(
    model: Any, weights: CircuitWeights, block: Any, which: tuple[int, int, bool]
) -> float:
    head, token, norm = which
    stream = torch.from_numpy(np.array(weights.embedding[token]))
    attention = getattr(block, "self_attn", None) or block.attention
    bare = _without_shift(block.input_layernorm, stream) if norm else stream
    values = _values(attention, bare, model)
    row = torch.zeros(model.n_heads, requires_grad=True)
    z = row[:, None] * values.repeat_interleave(model.n_heads // model.n_kv_heads, 0)
    linear = getattr(attention, "o_proj", None) or attention.dense
    wrote = torch.nn.functional.linear(z.flatten(), linear.weight)
    if norm and hasattr(block, "post_feedforward_layernorm"):
        gain = 1 + block.post_attention_layernorm.weight
        wrote = wrote * gain
    if norm:
        final = weights.final_norm
        wrote = wrote - wrote.mean() if final.kind == "layer" else wrote
        wrote = wrote * torch.from_numpy(np.array(final.gain))
    logit = model.hf.get_output_embeddings().weight[token] @ wrote
    logit.backward()
    return float(row.grad[head])


def _without_shift(module: Any, stream: torch.Tensor) -> torch.Tensor:
    shift = getattr(module, "bias", None)
    return module(stream) - (0 if shift is None else shift)


def _values(attention: Any, stream: torch.Tensor, model: Any) -> torch.Tensor:
    """By the module itself, without its bias."""
    if hasattr(attention, "v_proj"):
        return (attention.v_proj.weight @ stream).reshape(model.n_kv_heads, -1)
    if hasattr(attention, "qkv_proj"):
        whole = attention.qkv_proj.weight @ stream
        return whole[-model.n_kv_heads * model.head_dim :].reshape(model.n_kv_heads, -1)
    whole = (attention.query_key_value.weight @ stream).view(model.n_heads, 3 * model.head_dim)
    return whole.chunk(3, dim=-1)[2]


def test_one_name_is_refused():
    with pytest.raises(InputError, match="at least 2 names, got 1"):
        direct_copy(planted(EYE), [3], norm=False)


# --- groups


Score = Callable[[CircuitWeights, ProcessedEmbedding], np.ndarray]
SCORES: dict[str, Score] = {
    "copying": lambda weights, _: ov_copying(weights, draws=2).full,
    "suppression": lambda weights, sample: copy_suppression(weights, sample).ov,
    "looks": lambda weights, sample: copy_suppression(weights, sample).qk,
    "copy": lambda weights, _: direct_copy(weights, [20, 50, 90], norm=True).score,
    "successor": lambda weights, sample: successor_ov(weights, [_letters(sample)], sample).score,
}


def _letters(sample: ProcessedEmbedding) -> Order:
    return Order("first", sample.tokens[:20], tuple(range(19)), tuple(range(1, 20)))


@pytest.mark.parametrize("name", SCORES)
def test_permuting_kv_heads_permutes_the_results_by_groups(name: str):
    model = tiny_model("llama", num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    weights = circuit_weights(model)
    sample = processed_embedding(model, range(20, 80))
    layers = tuple(
        replace(
            part,
            query=part.query[[4, 5, 0, 1, 2, 3]],
            out=part.out[[4, 5, 0, 1, 2, 3]],
            key=part.key[[2, 0, 1]],
            value=part.value[[2, 0, 1]],
        )
        for part in weights.layers
    )
    own = SCORES[name](weights, sample)
    permuted = SCORES[name](replace(weights, layers=layers), sample)
    np.testing.assert_allclose(own[:, [4, 5, 0, 1, 2, 3]], permuted, atol=1e-5)
    assert len(np.unique(own.round(9))) > 3


@pytest.mark.parametrize("name", SCORES)
def test_duplicated_kv_heads_score_as_the_groups_they_came_from(name: str):
    model = model_of("llama")
    weights = circuit_weights(model)
    sample = processed_embedding(model, range(20, 80))
    layers = tuple(
        replace(part, key=part.key[[0, 0, 1, 1]], value=part.value[[0, 0, 1, 1]])
        for part in weights.layers
    )
    copy = replace(weights, layers=layers)
    assert (weights.n_kv_heads, copy.n_kv_heads) == (2, 4)
    np.testing.assert_allclose(SCORES[name](weights, sample), SCORES[name](copy, sample), atol=1e-6)


# --- values


def test_a_sink_with_a_small_value_loses_its_share():
    weights = np.zeros((1, 1, 3, 3), np.float32)
    weights[0, 0] = [[1, 0, 0], [0.9, 0.1, 0], [0.8, 0.1, 0.1]]
    norms = np.array([[[0.1, 1.0, 3.0]]], np.float32)
    share = value_weighted_share(weights, norms)[0, 0]
    np.testing.assert_allclose(share[2], np.array([0.08, 0.1, 0.3]) / 0.48, rtol=1e-6)
    np.testing.assert_allclose(share.sum(-1), 1)
    expected = np.mean([0.09 / 0.19, 0.08 / 0.48])
    assert slot_share(weights, norms)[0, 0] == pytest.approx(expected)


def test_equal_values_leave_the_weights_as_they_are():
    (one,) = eager_rows(model_of("llama"), np.array([random_prompt(model_of("llama"), 9)]))
    ones = np.ones((2, 4, 9), np.float32)
    np.testing.assert_allclose(value_weighted_share(one.weights, ones), one.weights, atol=1e-6)


def test_rows_that_write_nothing_have_no_share():
    nothing = np.zeros((1, 1, 2), np.float32)
    rows = np.tril(np.full((1, 1, 2, 2), 0.5, np.float32))
    assert np.isnan(value_weighted_share(rows, nothing)).all()
    assert np.isnan(slot_share(rows, nothing)).all()
    assert np.isnan(slot_share(rows, nothing + 1, slot=1)).all()


@pytest.mark.slow
def test_the_real_model_has_copying_heads_beyond_the_null():
    weights = circuit_weights(real_model())
    found = ov_copying(weights, draws=100)
    assert found.full.shape == (30, 9)
    assert (found.full > found.null_p99).sum() > 10
    assert token_ends(weights).shape == (576, 576)
