import http.server
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tempo.errors import InputError, ModelError
from tempo.models.load import _from_pair, _hub_is_reachable, load_model
from tempo.testing.tiny import tiny_model


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.fixture
def folder(llama, tmp_path):
    llama.hf.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refusal(source, error=ModelError, **options):
    with pytest.raises(error) as caught:
        load_model(source, **options)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "\n" not in message
    return message


def test_a_folder_loads_to_the_same_logits(llama, folder):
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(load_model(folder).hf(ids).logits, llama.hf(ids).logits)


def test_a_folder_is_known_by_its_path(folder):
    model = load_model(str(folder))
    assert (model.name, model.revision, model.dtype) == (str(folder), None, "float32")
    assert not model.hf.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_one_asked_for(folder, dtype):
    model = load_model(folder, dtype=dtype)
    assert model.dtype == dtype
    assert {parameter.dtype for parameter in model.hf.parameters()} == {getattr(torch, dtype)}


def test_device_map_is_passed_on(folder):
    assert load_model(folder, device_map="cpu").device == torch.device("cpu")


def test_a_loaded_model_comes_back_as_it_is(llama):
    assert load_model(llama) is llama


def test_a_pair_keeps_its_own_dtype():
    half = tiny_model("llama", dtype="bfloat16")
    model = load_model((half.hf, half.tokenizer))
    assert model.hf is half.hf
    assert model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"dtype": "float64"}, "got 'float64'"),
        ({"device": "cpu", "device_map": "cpu"}, "got both"),
        ({"device": "nonesuch"}, "got 'nonesuch'"),
        ({"device": "meta:9x"}, "got 'meta:9x'"),
    ],
)
def test_unusable_arguments_are_refused(options, got):
    assert got in refusal("smollm2-135m", InputError, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused(folder):
    assert "got 'cuda'" in refusal(folder, InputError, device="cuda")


def test_a_model_built_elsewhere_is_not_cast_or_moved_in_silence(llama):
    assert "in float32" in refusal(llama, InputError, dtype="bfloat16")
    assert "on cpu" in refusal((llama.hf, None), InputError, device="meta")


def test_a_pair_in_double_precision_is_refused():
    hf = tiny_model("llama").hf.double()
    assert "got float64" in refusal((hf, None))


def test_what_is_no_pair_is_refused():
    with pytest.raises(InputError, match=r"^expected \(.*\), got \(str, int, int\); "):
        _from_pair(("model", 1, 2))


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "a/b/c", "no such model"])
def test_a_missing_folder_is_refused_as_a_path(source, offline):
    assert f"got {source!r}, which is not there" in refusal(source)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    assert "expected config.json" in refusal(tmp_path)


def test_a_damaged_configuration_is_refused(folder):
    (folder / "config.json").write_text("{")
    assert "save or download it again" in refusal(folder)


def test_an_unknown_architecture_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    assert "nonesuch" in refusal(folder)


def test_a_configuration_that_contradicts_itself_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 63}))
    assert refusal(folder).startswith("expected ")


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "expected a readable model folder" in refusal(folder)


def test_missing_weights_are_refused_and_not_drawn_at_random(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "got none for 1 (first: model.layers.1.mlp.up_proj.weight)" in refusal(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt_neox"])
def test_a_folder_without_a_tokenizer_is_refused_and_none_is_made_up(family, tmp_path):
    tiny_model(family).hf.save_pretrained(tmp_path)
    assert "tokenizer" in refusal(tmp_path)


def test_a_preset_that_is_not_installed_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPO_CACHE", str(tmp_path))
    assert refusal("smollm2-135m").endswith("run `tempo models pull smollm2-135m`")


def test_an_unknown_name_offline_names_the_presets_and_fails_at_once(offline):
    start = time.perf_counter()
    message = refusal("nobody/nothing")
    assert time.perf_counter() - start < 2
    assert "a preset (smollm2-135m)" in message
    assert "the hub cannot be reached" in message


def test_a_misspelt_preset_is_corrected(offline):
    assert refusal("smollm2").endswith("did you mean smollm2-135m?")


def test_a_cached_hub_model_loads_offline_and_knows_its_commit(
    llama, tmp_path, monkeypatch, offline
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    llama.hf.save_pretrained(repository / "snapshots" / commit)
    llama.tokenizer.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        model = load_model("someone/tiny", revision=revision)
        assert (model.name, model.revision) == ("someone/tiny", commit)
        assert model.fingerprint == llama.fingerprint
    assert "no copy is cached" in refusal("someone/tiny", revision="other")


def test_a_hub_that_does_not_answer_counts_as_out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not _hub_is_reachable()


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(403)

    def log_message(self, *_):
        pass


def test_a_hub_that_answers_anything_counts_as_reachable(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert _hub_is_reachable()
        server.shutdown()


def test_a_missing_gguf_file_is_refused():
    assert "expected a GGUF file, got 'no.gguf', which is not there" in refusal(Path("no.gguf"))


@pytest.mark.slow
def test_the_preset_loads_in_a_few_seconds():
    load_model("smollm2-135m")
    start = time.perf_counter()
    model = load_model("smollm2-135m")
    assert time.perf_counter() - start < 5
    assert model.name == "smollm2-135m"


def test_a_revision_of_something_that_has_none_is_refused(tmp_path) -> None:
    for source in ("smollm2-135m", str(tmp_path), str(tmp_path / "x.gguf")):
        with pytest.raises(InputError, match="leave out --revision"):
            load_model(source, revision="main")
