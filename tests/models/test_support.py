import pytest
import torch
from transformers import AutoModel

from tempo.errors import ModelError
from tempo.models.load import load_model
from tempo.models.support import check_rope
from tempo.testing.tiny import FAMILIES, REFUSED, refused_model, tiny_model

REASONS = {
    "gpt2": r"absolute positions \(transformer.wpe\)",
    "opt": r"absolute positions \(model.decoder.embed_positions\)",
    "bloom": "ALiBi",
    "mpt": "ALiBi",
    "falcon": "ALiBi",
    "gptj": "attention-function registry",
    "stablelm": "attention-function registry",
    "t5": "encoder-decoder",
    "mamba": "(linear_attention|mamba) layers",
    "recurrent_gemma": "linear_attention layers|attention-function registry|recurrent state",
    "lfm2": "conv layers",
    "llama4_text": "chunked_attention layers cut the context at fixed positions",
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def longrope():
    return tiny_model("phi3", rope_parameters=dict(LONGROPE), original_max_position_embeddings=64)


def dynamic():
    return tiny_model("llama", rope_parameters=dict(DYNAMIC), max_position_embeddings=64)


def two_bases():
    local = {"rope_type": "default", "rope_theta": 1e4}
    both = {"full_attention": dict(DYNAMIC), "sliding_attention": local}
    return tiny_model("gemma3", rope_parameters=both, max_position_embeddings=64)


def read_alone_and_after(model, largest):
    """Logits of a short text before, after and in a call whose last position is `largest`."""
    ids = torch.tensor([[5, 6, 7, 8]])
    positions = torch.tensor([[0.0, 1.0, 2.0, largest]])
    with torch.no_grad():
        alone = model.hf(ids).logits
        packed = model.hf(ids, position_ids=positions).logits
        return alone, model.hf(ids).logits, packed


def test_every_refused_kind_has_a_reason_here():
    assert set(REASONS) == set(REFUSED)


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_models_are_refused_with_their_reason(kind):
    with pytest.raises(ModelError, match=REASONS[kind]) as refusal:
        load_model(refused_model(kind))
    message = str(refusal.value)
    assert message.startswith("expected a causal decoder with rotary positions")
    assert "\n" not in message


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_are_not_refused(family):
    model = tiny_model(family)
    assert load_model((model.hf, None)).tokenizer is None


def test_a_model_without_a_head_is_refused():
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no language-model head"):
        load_model((AutoModel.from_config(model.hf.config), None))


def test_bidirectional_attention_is_refused():
    with pytest.raises(ModelError, match="its attention is bidirectional"):
        tiny_model("gemma3", use_bidirectional_attention=True)


def test_rotary_positions_with_three_axes_are_refused():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    with pytest.raises(ModelError, match="three axes"):
        tiny_model("qwen2", rope_parameters=rope)


@pytest.mark.parametrize(
    ("model", "kind"), [(dynamic, "dynamic"), (longrope, "longrope"), (two_bases, "dynamic")]
)
def test_positions_past_the_original_length_are_refused_by_name(model, kind):
    loaded = model()
    check_rope(loaded, 62)
    check_rope(loaded, 62.75)
    with pytest.raises(ModelError, match=rf"^expected positions below 63, got 63: .*'{kind}'"):
        check_rope(loaded, 63)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_rope_types_have_no_limit(family):
    check_rope(tiny_model(family), 1e6)


@pytest.mark.parametrize("model", [dynamic, longrope, two_bases])
def test_within_the_limit_no_call_changes_another(model):
    alone, after, packed = read_alone_and_after(model(), 62.0)
    assert torch.equal(alone, after)
    assert torch.allclose(alone[0, :3], packed[0, :3], atol=1e-5)


@pytest.mark.parametrize("model", [dynamic, longrope, two_bases])
def test_past_the_limit_one_position_turns_the_keys_of_earlier_tokens(model):
    alone, _, packed = read_alone_and_after(model(), 64.0)
    assert (packed - alone)[0, 1:3].abs().max() > 1e-4
