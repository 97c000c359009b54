import copy

import pytest
import torch

from tempo.errors import ModelError
from tempo.models.fingerprint import tokenizer_hash, weights_fingerprint
from tempo.models.load import load_model
from tempo.testing.tiny import FAMILIES, tiny_model


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def nudged(model, name):
    """A copy in which the last weight of one parameter is the next float32."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        last = hf.get_parameter(name).view(-1)[-1:]
        last.copy_(torch.nextafter(last, last + 1))
    return hf


def test_one_weight_changed_by_a_hair_changes_it(llama):
    changed = [weights_fingerprint(nudged(llama, name)) for name, _ in llama.hf.named_parameters()]
    assert len({llama.fingerprint, *changed}) == 1 + len(changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_same_after_saving_and_loading(family, tmp_path):
    model = tiny_model(family)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.fingerprint == model.fingerprint
    if family != "qwen2":  # transformers gives every Qwen-2 folder the rules of Qwen-2's tokenizer
        assert again.tokenizer_hash == model.tokenizer_hash


def test_it_does_not_depend_on_the_attention_in_use(llama):
    hf = copy.deepcopy(llama.hf)
    hf.set_attn_implementation("eager")
    assert weights_fingerprint(hf) == llama.fingerprint


def test_it_depends_on_what_the_weights_are_used_for(llama):
    hf = copy.deepcopy(llama.hf)
    hf.config.rms_norm_eps = 1e-3
    assert weights_fingerprint(hf) != llama.fingerprint


def test_seeds_families_and_dtypes_differ(llama):
    others = [
        tiny_model("llama", seed=1),
        tiny_model("llama", dtype="bfloat16"),
        tiny_model("llama", dtype="float16"),
        tiny_model("llama_mha"),
        tiny_model("olmo2"),
    ]
    assert len({model.fingerprint for model in (llama, *others)}) == 6


def test_tied_weights_count_once_and_keep_their_fingerprint(tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path).fingerprint == model.fingerprint


def test_weights_that_are_not_in_memory_are_refused(llama):
    hf = copy.deepcopy(llama.hf).to("meta")
    with pytest.raises(ModelError, match=r"^expected all weights in memory, got lm_head.weight"):
        weights_fingerprint(hf)


def test_a_tokenizer_is_known_by_its_rules_and_its_template():
    plain, with_bos, chatty = (
        tiny_model("qwen2").tokenizer,
        tiny_model("llama").tokenizer,
        tiny_model("qwen2").tokenizer,
    )
    chatty.chat_template = "{{ messages }}"
    assert len({tokenizer_hash(each) for each in (plain, with_bos, chatty)}) == 3
    assert tokenizer_hash(None) is None


def test_padding_a_batch_does_not_change_a_tokenizer():
    tokenizer = tiny_model("llama").tokenizer
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == before


@pytest.mark.slow
def test_the_real_model_has_the_fingerprint_of_every_pull():
    model = load_model("smollm2-135m")
    assert model.fingerprint == weights_fingerprint(model.hf)
