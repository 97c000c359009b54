"""What `tempo.forward` keeps, against transformers' own."""

import numpy as np
import pytest
import torch

import tempo
from tempo.causal.eager_rows import eager_rows
from tempo.causal.forward import DEFAULT_KEEP, QUANTITIES, forward_each
from tempo.errors import InputError
from tempo.models.language_model import attention_as
from tempo.policy.edits import EmbeddingOffset, zero_heads
from tempo.testing.tiny import FAMILIES
from tests.decoding import model_of, random_prompt

T = 12


@pytest.mark.parametrize("family", FAMILIES)
def test_every_quantity_is_the_models_own(family: str):
    model = model_of(family)
    ids = random_prompt(model, T)
    found = tempo.forward(model, ids, keep=QUANTITIES)
    with torch.inference_mode(), attention_as(model.hf, "eager"):
        own = model.hf(torch.tensor([ids]), output_hidden_states=True)
    hidden = [state[0].numpy() for state in own.hidden_states]
    np.testing.assert_allclose(found.residual[:-1], hidden[:-1], atol=1e-4)
    np.testing.assert_allclose(found.final, hidden[-1], atol=1e-4)  # behind the final norm
    (rows,) = eager_rows(model, [np.array(ids)], keep=("head_outputs", "value_norm"))
    np.testing.assert_allclose(found.head_outputs, rows.head_outputs, atol=1e-5)
    np.testing.assert_allclose(found.value_norm, rows.value_norm, rtol=1e-3, atol=1e-6)
    assert found.values.shape == (model.n_layers, model.n_kv_heads, T, model.head_dim)
    # a head that reads one slot only gives that slot's value: query 0 sees slot 0 alone
    if family != "gpt_oss":  # whose rows lose weight to a learned sink
        first = found.values[:, :, 0].repeat(model.n_heads // model.n_kv_heads, axis=1)
        np.testing.assert_allclose(found.head_outputs[:, 0], first, atol=1e-5)


def test_what_was_not_kept_is_refused_by_name():
    ids = random_prompt(model_of("llama"), T)
    found = tempo.forward(model_of("llama"), ids, keep=["residual"])
    assert list(found.kept) == ["residual"]
    with pytest.raises(InputError, match="expected logits to be kept, got"):
        _ = found.logits
    assert set(tempo.forward(model_of("llama"), ids).kept) == set(DEFAULT_KEEP)


@pytest.mark.parametrize("keep", ["residual", ["logits", "rows"]])
def test_a_name_that_is_not_known_is_refused(keep):
    with pytest.raises(InputError, match="expected a list of logits, attention"):
        tempo.forward(model_of("llama"), [1, 2, 3], keep=keep)


def test_variants_keep_their_own_rows_with_their_edits():
    model = model_of("llama")
    ids = random_prompt(model, T)
    offset = EmbeddingOffset(
        vector=np.ones(model.config.hidden_size, np.float32), slots=[3], parallel_only=False
    )
    variants = [[], [zero_heads("L0H1")], [offset]]
    together = forward_each(model, ids, variants, keep=QUANTITIES)
    for found, edits in zip(together, variants, strict=True):
        alone = tempo.forward(model, ids, edits=edits, keep=QUANTITIES)
        for name in QUANTITIES:
            np.testing.assert_allclose(found.kept[name], alone.kept[name], atol=1e-5)
    moved = together[2].residual[0] - together[0].residual[0]
    assert np.flatnonzero(moved.any(-1)).tolist() == [3]
