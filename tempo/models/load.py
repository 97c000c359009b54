"""Finds a model by preset, hub id, folder, GGUF file or object, and loads it."""

import contextlib
import difflib
import os
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tempo.errors import InputError, ModelError
from tempo.models import registry
from tempo.models.fingerprint import tokenizer_hash, weights_fingerprint, weights_mark
from tempo.models.gguf import dense_model, first_line, quiet
from tempo.models.language_model import LanguageModel
from tempo.models.support import check_supported

Source = str | Path | LanguageModel | tuple[PreTrainedModel, PreTrainedTokenizerBase | None]

_Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Seconds. Long enough for a slow connection, short enough to wait for when offline.
_PROBE_S = 3.0
_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


def load_model(
    source: Source,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Load a model, refuse it if it cannot be decoded in parallel, and identify it.

    Args:
        source: A preset ("smollm2-135m"), hub id, folder, `.gguf` file, pair (hf_model,
            tokenizer), or a LanguageModel, which comes back as it is. A pair is used as it is,
            except that the model is switched to eval mode.
        dtype: "float32" (the default for what is loaded here), "bfloat16" or "float16".
        device: Where to put the model; "cpu" unless a device_map is given.
        device_map: Passed on to `from_pretrained`; the weights must stay in memory.
        revision: Commit, tag or branch of a hub repository.

    Returns:
        The model, its tokenizer and what identifies them; every function of `tempo` takes it.

    Raises:
        InputError: An argument cannot be used.
        ModelError: The model cannot be found, read or supported.

    Example:
        >>> model = tempo.load_model("smollm2-135m")
        >>> model = tempo.load_model((hf_model, tokenizer))
    """
    _check_arguments(dtype, device, device_map)
    if isinstance(source, LanguageModel):
        return _as_asked(source, dtype, device)
    if isinstance(source, tuple):
        return _as_asked(_from_pair(source), dtype, device)
    if not isinstance(cast(object, source), str | Path):
        raise InputError(
            f"expected a model name, path or pair, got {type(source).__name__}; see `load_model`"
        )
    placing: dict[str, Any] = {"dtype": _DTYPES[dtype or "float32"], "device_map": device_map}
    hf, tokenizer, commit = _read(str(source), placing, revision)
    if device_map is None:
        torch.nn.Module.to(hf, torch.device(device or "cpu"))
    return _identified(hf, tokenizer, name=str(source), revision=commit)


def _check_arguments(dtype: str | None, device: str | None, device_map: object) -> None:
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"expected dtype {', '.join(_DTYPES)}, got {dtype!r}; choose one of them")
    if device is not None and device_map is not None:
        raise InputError("expected device or device_map, got both; leave out one of them")
    if device is not None and not _is_available(device):
        raise InputError(f"expected a device that torch can use, got {device!r}; use cpu")


def _is_available(device: str) -> bool:
    """Whether torch can put a tensor there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def _as_asked(model: LanguageModel, dtype: str | None, device: str | None) -> LanguageModel:
    """A model that was built elsewhere, if it has the dtype and device asked for.

    Weights that were changed since it was identified are hashed again.
    """
    # A trace must not carry the hash of weights that have been edited since.
    if weights_mark(model.hf) != model.mark:
        model = _identified(model.hf, model.tokenizer, name=model.name, revision=model.revision)
    if dtype is not None and dtype != model.dtype:
        raise InputError(
            f"expected a model in {dtype}, got {model.name} in {model.dtype}; cast it before"
        )
    if device is not None and torch.device(device).type != model.device.type:
        raise InputError(
            f"expected a model on {device}, got {model.name} on {model.device}; move it before"
        )
    return model


def _from_pair(pair: tuple[Any, ...]) -> LanguageModel:
    if len(pair) != 2 or not isinstance(pair[0], PreTrainedModel):
        kinds = ", ".join(type(part).__name__ for part in pair)
        raise InputError(f"expected (transformers model, tokenizer), got ({kinds}); pass those two")
    hf, tokenizer = pair
    name = hf.config.name_or_path or type(hf).__name__
    return _identified(hf, tokenizer, name=name, revision=None)


def _identified(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    revision: str | None,
) -> LanguageModel:
    """Check support and dtype, then hash."""
    check_supported(hf)
    dtype = str(hf.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ModelError(f"expected weights in {', '.join(_DTYPES)}, got {dtype}; cast the model")
    return LanguageModel(
        # Dropout would make capture on and off, and every replay, differ.
        hf=hf.eval(),
        tokenizer=tokenizer,
        name=name,
        revision=revision,
        fingerprint=weights_fingerprint(hf),
        tokenizer_hash=tokenizer_hash(tokenizer),
        dtype=dtype,
        mark=weights_mark(hf),
    )


def _read(
    source: str, placing: dict[str, Any], revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """Find out whether a source is a preset, file, folder or hub id, and read it."""
    path = Path(source).expanduser()
    # Presets, files and folders come before the hub: offline is the usual case.
    is_local = source in registry.names() or path.suffix == ".gguf" or path.is_dir()
    if is_local and revision is not None:
        raise InputError(
            f"expected a hub id with revision {revision!r}, got {source!r}, which has no "
            "revisions; leave out --revision"
        )
    if source in registry.names():
        return *_read_folder(registry.path(source), placing), None
    if path.suffix == ".gguf":
        return *_read_gguf(path, placing), None
    if path.is_dir():
        return *_read_folder(path, placing), None
    if not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise ModelError(
            f"expected an existing folder or .gguf file, got {source!r}, which is not there; "
            "check the path"
        )
    revision = revision or "main"
    parts = _read_hub(source, placing, revision)
    return *parts, _cached_commit(source, revision)


def _read_gguf(path: Path, placing: dict[str, Any]) -> _Parts:
    if not path.is_file():
        raise ModelError(
            f"expected a GGUF file, got {str(path)!r}, which is not there; check the path"
        )
    if placing["device_map"] is not None:
        raise InputError("expected device for a GGUF file, got device_map; use device")
    return dense_model(path, placing["dtype"])


def _read_folder(folder: Path, placing: dict[str, Any]) -> _Parts:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"expected config.json in the model folder, got {str(folder)!r} without one; "
            "point at the folder that save_pretrained wrote"
        )
    try:
        with quiet():
            return _from_pretrained(str(folder), placing, local_files_only=True)
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"expected a readable model folder, got {str(folder)!r}: {first_line(error)}; "
            "save or download it again"
        ) from error


def _read_hub(source: str, placing: dict[str, Any], revision: str) -> _Parts:
    reachable = _hub_is_reachable()
    try:
        if not (reachable or _cached_commit(source, revision)):
            raise ModelError(_unknown(source, "the hub cannot be reached and no copy is cached"))
        with contextlib.nullcontext() if reachable else quiet():
            return _from_pretrained(
                source, placing, local_files_only=not reachable, revision=revision
            )
    except _LOAD_ERRORS as error:
        raise ModelError(_unknown(source, first_line(error))) from error


def _cached_commit(source: str, revision: str) -> str | None:
    """The commit of the copy in the hub's cache folder, None if there is none."""
    found = huggingface_hub.try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _from_pretrained(source: str, placing: dict[str, Any], **where: Any) -> _Parts:
    """Model and tokenizer; refuses missing weights, which transformers would draw at random."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, output_loading_info=True, trust_remote_code=False, **placing, **where
    )
    hf, report = loaded
    # transformers fills missing weights with random numbers and only logs it.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"expected weights for every parameter, got none for {len(missing)} "
            f"(first: {missing[0]}) in {source!r}; save or download the model again"
        )
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # special tokens only
        raise ModelError(
            f"expected tokenizer files beside the model, got none in {source!r}; add them, or "
            "pass (hf_model, None) and give prompts as token ids"
        )
    return hf, tokenizer


def _unknown(source: str, reason: str) -> str:
    """The message for a name that is neither a preset nor a folder nor found on the hub."""
    near = difflib.get_close_matches(source, registry.names(), n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else "check the name or your connection"
    return (
        f"expected a preset ({', '.join(registry.names())}), a folder, a .gguf file or a hub id, "
        f"got {source!r}: {reason}; {advice}"
    )


def _hub_is_reachable() -> bool:
    """Ask the hub once, briefly: its own client retries for half a minute."""
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE"):
        return False
    question = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(question, timeout=_PROBE_S).close()
    except urllib.error.HTTPError:  # it answered
        return True
    except urllib.error.URLError as error:  # certificates are its own client's business
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
