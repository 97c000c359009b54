"""A hand-built induction circuit: two heads whose jobs we wrote, in an unmodified Llama."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tempo.causal.eager_rows import eager_rows
from tempo.causal.silence import HeadIndex, ablated, delta_nll
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model

V, WIDTH, HEAD_DIM = 64, 256, 128
ROPE = 1e12  # the upper half of the frequencies does not turn
PAIRS = HEAD_DIM // 2
STILL = 32  # pairs from here on carry content
PREVIOUS: HeadIndex = (0, 0)
INDUCTION: HeadIndex = (1, 1)
CONSTANT = 2 * V  # channels: token, token before, and one that is always on


def induction_model() -> LanguageModel:
    """L0H0 writes the token before; L1H1 looks for a slot whose token before is its own token."""
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE},
        tie_word_embeddings=False,
    )
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        _write(hf)
    hf.config.name_or_path = "induction"
    return load_model((hf, None))


def _write(hf: LlamaForCausalLM) -> None:
    hf.model.embed_tokens.weight[:, :V] = torch.eye(V)
    hf.model.embed_tokens.weight[:, CONSTANT] = 1.0
    hf.lm_head.weight[:, V : 2 * V] = torch.eye(V)
    first, second = (layer.self_attn for layer in hf.model.layers)
    frequency = ROPE ** (-torch.arange(PAIRS) / PAIRS)
    size = 12.0
    # one position back, in the pairs that turn
    first.q_proj.weight[:STILL, CONSTANT] = size * torch.cos(-frequency[:STILL])
    first.q_proj.weight[PAIRS : PAIRS + STILL, CONSTANT] = size * torch.sin(-frequency[:STILL])
    first.k_proj.weight[:STILL, CONSTANT] = size
    first.v_proj.weight[:V, :V] = torch.eye(V)
    first.o_proj.weight[V : 2 * V, :V] = torch.eye(V)
    # own token against the token before, in the pairs that do not
    content = [*range(STILL, PAIRS), *range(PAIRS + STILL, HEAD_DIM)]
    rows = [HEAD_DIM + row for row in content]
    second.q_proj.weight[rows, :V] = size * torch.eye(V)
    second.k_proj.weight[rows, V : 2 * V] = size * torch.eye(V)
    second.v_proj.weight[HEAD_DIM : HEAD_DIM + V, :V] = torch.eye(V)
    second.o_proj.weight[V : 2 * V, HEAD_DIM : HEAD_DIM + V] = 20 * torch.eye(V)


MODEL = induction_model()


def repeated(n_half: int, n: int = 4) -> np.ndarray:
    """`[bos, R, R]`: without the bos, the first token of R would follow itself."""
    rng = np.random.default_rng(n_half)
    halves = np.stack([1 + rng.choice(V - 1, n_half, replace=False) for _ in range(n)])
    return np.concatenate([np.zeros((n, 1), np.int64), halves, halves], axis=1)


def stripe(head: HeadIndex, ids: np.ndarray) -> float:
    """Mean weight from the second copy of a token to what followed the first."""
    n = ids.shape[1] // 2
    rows = [one.weights[head] for one in eager_rows(MODEL, ids)]
    return float(np.mean([[row[1 + n + i, i + 2] for i in range(n - 1)] for row in rows]))


def uniform(n: int) -> float:
    return float(np.mean([1 / (q + 1) for q in range(n + 1, 2 * n)]))


def test_the_first_head_looks_one_back():
    ids = repeated(30)
    for one in eager_rows(MODEL, ids):
        row = one.weights[PREVIOUS]
        assert np.mean(np.diagonal(row, -1)) > 0.99


@pytest.mark.parametrize("n_half", [4, 8, 20, 50])
def test_the_second_head_induces_at_every_length_and_no_other_does(n_half: int):
    ids = repeated(n_half)
    assert stripe(INDUCTION, ids) > 0.99
    for other in ((0, 0), (0, 1), (1, 0)):
        assert stripe(other, ids) < 0.3


@pytest.mark.parametrize("n_half", [8, 20, 50])
def test_without_the_first_head_the_second_falls_to_even_spreading(n_half: int):
    with ablated(MODEL, [PREVIOUS]):
        assert stripe(INDUCTION, repeated(n_half)) == pytest.approx(uniform(n_half), abs=1e-5)


def test_halves_that_do_not_repeat_leave_it_nothing_to_find():
    rng = np.random.default_rng(0)
    control = np.stack([rng.permutation(V)[:61] for _ in range(4)])
    assert stripe(INDUCTION, control) == pytest.approx(uniform(30), abs=0.01)


def test_both_heads_are_needed_to_predict_the_second_half_and_the_idle_ones_are_not():
    n = 20
    found = delta_nll(MODEL, repeated(n), [PREVIOUS, INDUCTION, (0, 1), (1, 0)], counted=n + 2)
    assert found.base.max() < 0.1
    assert found.delta[:2].min() > 1
    assert np.abs(found.delta[2:]).max() == 0
