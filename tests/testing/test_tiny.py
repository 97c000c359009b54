import random
import time

import pytest
import torch

from tempo.errors import InputError
from tempo.testing.tiny import FAMILIES, REFUSED, refused_model, tiny_model

TEXT = "The cat sat on the mat and the dog ran to it."
HYBRID = ("gemma2", "gemma3", "gpt_oss")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request):
    return tiny_model(request.param)


def forward(model, **options):
    with torch.no_grad():
        return model.hf(torch.tensor([model.encode(TEXT)]), **options)


def test_building_is_fast():
    tiny_model("llama")
    for family in FAMILIES:
        start = time.perf_counter()
        tiny_model(family)
        assert time.perf_counter() - start < 0.3, family


def test_several_tokens_have_a_real_chance(tiny):
    chances = forward(tiny).logits[0].softmax(-1)
    likely = (chances > 0.05).sum(-1)
    assert likely.float().mean() >= 3
    assert chances.max(-1).values.mean() < 0.6


def test_no_two_tokens_tie(tiny):
    for row in forward(tiny).logits[0]:
        assert row.unique().numel() == tiny.vocab_size


def test_attention_is_uneven_and_not_stuck_on_one_slot(tiny):
    tiny.hf.set_attn_implementation("eager")
    weights = torch.stack(forward(tiny, output_attentions=True).attentions)[:, 0, :, -1]
    strongest = weights.max(-1).values
    visible = (weights > 0).sum(-1)
    assert bool((strongest * visible > 1.2).all())
    assert 0.1 < strongest.mean() < 0.9


def test_the_past_reaches_the_next_token(tiny):
    ids = torch.tensor([tiny.encode(TEXT)])
    other = ids.clone()
    other[0, -3] = 50
    with torch.no_grad():
        change = tiny.hf(ids).logits[0, -1] - tiny.hf(other).logits[0, -1]
    assert change.abs().max() > 0.05


def test_embeddings_are_untied(tiny):
    assert tiny.hf.get_output_embeddings().weight is not tiny.hf.get_input_embeddings().weight


@pytest.mark.parametrize("family", HYBRID)
@pytest.mark.parametrize("n_layers", [2, 4])
def test_hybrid_families_have_both_layer_types(family, n_layers):
    model = tiny_model(family, num_hidden_layers=n_layers)
    assert set(model.layer_types) == {"sliding_attention", "full_attention"}
    assert set(model.windows) == {8, None}


@pytest.mark.parametrize("family", [*HYBRID, "mistral"])
def test_a_window_of_eight_shows_eight_slots(family):
    model = tiny_model(family)
    model.hf.set_attn_implementation("eager")
    attentions = forward(model, output_attentions=True).attentions
    n_slots = len(model.encode(TEXT))
    seen = [int((weights[0, 0, -1] > 0).sum()) for weights in attentions]
    assert seen == [window or n_slots for window in model.windows]


def test_gpt_oss_has_sinks_that_take_a_share():
    model = tiny_model("gpt_oss")
    model.hf.set_attn_implementation("eager")
    assert all(layer.self_attn.sinks.abs().min() > 0 for layer in model.hf.model.layers)
    assert all(rows.sum(-1).max() < 1 for rows in forward(model, output_attentions=True).attentions)


def test_gemma2_caps_scores_and_logits_where_it_shows():
    model = tiny_model("gemma2")
    free = tiny_model("gemma2", attn_logit_softcapping=None, final_logit_softcapping=30.0)
    assert (forward(model).logits - forward(free).logits).abs().max() > 0.1


def test_smollm3_leaves_out_the_rotation_in_some_layers():
    assert sorted(set(tiny_model("smollm3").config.no_rope_layers)) == [0, 1]


def test_gpt_neox_rotates_a_part_of_each_head():
    model = tiny_model("gpt_neox")
    assert model.config.rope_parameters["partial_rotary_factor"] == 0.25


def test_the_seed_decides_the_weights_and_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (tiny_model("llama", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_rotary_frequencies_in_float32(dtype):
    model = tiny_model("llama", dtype=dtype)
    assert model.dtype == dtype
    assert model.hf.lm_head.weight.dtype == getattr(torch, dtype)
    assert model.hf.model.rotary_emb.inv_freq.dtype == torch.float32


def test_overrides_reach_the_configuration():
    assert tiny_model("llama", num_hidden_layers=3).n_layers == 3


def test_printable_text_survives_the_tokenizer():
    model = tiny_model("qwen2")
    letters = [chr(code) for code in range(32, 127)] + ["\n", " the", " cat"]
    rng = random.Random(0)
    for _ in range(100):
        text = "".join(rng.choices(letters, k=20))
        assert model.decode(model.encode(text)) == text


def test_the_tokenizer_knows_as_many_tokens_as_the_model(tiny):
    assert len(tiny.tokenizer) == tiny.vocab_size == 128
    assert tiny.eos_ids == (tiny.tokenizer.eos_token_id,)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_models_run_in_transformers(kind):
    hf, tokenizer = refused_model(kind)
    ids = torch.tensor([tokenizer.encode("a cat")])
    extra = {"decoder_input_ids": ids} if hf.config.is_encoder_decoder else {}
    with torch.no_grad():
        assert hf(ids, **extra).logits.shape == (1, ids.shape[1], 128)


@pytest.mark.parametrize("build", [tiny_model, refused_model])
def test_unknown_names_are_refused_with_the_known_ones(build):
    with pytest.raises(InputError, match=r"^expected a .*\(.*\), got 'nonesuch'; choose one$"):
        build("nonesuch")
