import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from tempo.errors import InputError, ModelError
from tempo.models import gguf as dequantise
from tempo.models.load import load_model
from tempo.testing.tiny import tiny_model

BYTES = sorted(ByteLevel.alphabet())
TOKENS = ["<end>", *BYTES, "12", "Ġ1"]
VOCAB_SIZE = 260
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def file(llama, tmp_path_factory):
    return write(llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def interleaved(weight, n_heads):
    """GGUF keeps the two rotary halves of llama's q and k interleaved."""
    return weight.view(n_heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def write(model, path, *, rule="smollm", adds_bos=False):
    """A llama GGUF in float32, with a byte-level tokenizer that knows the token "12"."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(model.n_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(TOKENS + [f"<{number}>" for number in range(VOCAB_SIZE - len(TOKENS))])
    writer.add_token_types([3] + [1] * (VOCAB_SIZE - 1))
    writer.add_token_merges(["1 2", "Ġ 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(adds_bos)
    writer.add_chat_template("{{ messages[0]['content'] }}!")
    for name, weight in model.hf.state_dict().items():
        writer.add_tensor(translated(name), stored(name, weight, model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def translated(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def stored(name, weight, model):
    heads = {"q_proj": model.n_heads, "k_proj": model.n_kv_heads}
    turned = [interleaved(weight, n) for part, n in heads.items() if part in name]
    return np.ascontiguousarray((turned or [weight])[0].numpy())


def refused(path, error=ModelError, **options):
    with pytest.raises(error) as caught:
        load_model(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_gguf_file_gives_the_weights_it_was_written_from(llama, file):
    model = load_model(file)
    assert model.dtype == "float32"
    weights = model.hf.state_dict()
    assert all(torch.equal(weights[name], each) for name, each in llama.hf.state_dict().items())
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad():
        assert torch.equal(model.hf(ids).logits, llama.hf(ids).logits)


def test_a_gguf_model_can_be_saved_and_keeps_its_fingerprint(file, tmp_path):
    model = load_model(file)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.fingerprint == model.fingerprint
    assert again.tokenizer_hash == model.tokenizer_hash


def test_the_digit_rule_of_the_file_is_kept(file):
    model = load_model(file)
    digits = [TOKENS.index(each) for each in ("Ġ", "1", "2")]
    assert model.encode(" 12") == digits
    assert model.decode(digits) == " 12"


def test_the_rule_of_gpt2_is_kept_where_the_file_names_it(llama, tmp_path):
    model = load_model(write(llama, tmp_path / "other.gguf", rule="gpt-2"))
    assert model.encode("12") == [TOKENS.index("12")]


def test_a_word_rule_that_transformers_would_ignore_is_refused(llama, tmp_path):
    message = refused(write(llama, tmp_path / "other.gguf", rule="viking"))
    assert "got 'viking'" in message
    assert message.endswith("load the original folder with its tokenizer.json")


def test_the_files_special_tokens_stay_whole_and_named(file):
    tokenizer = load_model(file).tokenizer
    assert tokenizer("a<end>")["input_ids"] == [TOKENS.index("a"), 0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0)


def test_a_bos_token_is_added_where_the_file_says_so(llama, file, tmp_path):
    added = load_model(write(llama, tmp_path / "other.gguf", adds_bos=True))
    assert added.encode("a") == [0, *load_model(file).encode("a")]


def test_the_chat_template_comes_from_the_file(file):
    model = load_model(file)
    assert model.decode(model.encode("hi", chat=True)) == "hi!"


def test_special_tokens_other_than_the_files_are_refused(llama, tmp_path, monkeypatch):
    path = write(llama, tmp_path / "other.gguf", rule="qwen2")
    read = dequantise.AutoTokenizer.from_pretrained

    def misread(*args, **options):
        tokenizer = read(*args, **options)
        tokenizer.eos_token = "12"
        return tokenizer

    monkeypatch.setattr(dequantise, "_rules_of_transformers", lambda: {"qwen2"})
    monkeypatch.setattr(dequantise.AutoTokenizer, "from_pretrained", misread)
    assert refused(path).endswith("upgrade transformers")


def test_an_architecture_that_transformers_does_not_know_is_refused(file, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes().replace(b"llama", b"lloma"))
    assert "got other.gguf" in refused(other)


@pytest.mark.parametrize("kept", [0, 3, 20, 200, 4000, -1000, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(file, tmp_path, kept):
    part = tmp_path / "part.gguf"
    part.write_bytes(file.read_bytes()[:kept])
    assert refused(part).startswith("expected a complete GGUF file, got part.gguf")


def test_another_kind_of_file_is_refused(tmp_path):
    text = tmp_path / "text.gguf"
    text.write_text("not a model\n" * 100)
    assert "cannot be read" in refused(text)


def test_a_device_map_is_refused(file):
    assert "got device_map" in refused(file, InputError, device_map="cpu")


def test_unpacking_leaves_the_terminal_and_the_progress_bars_alone(file, capfd):
    from transformers.utils import logging

    load_model(file)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
