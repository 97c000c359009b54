"""Run folders: the manifest, the traces, and the checks before writing or resuming."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempo.errors import CorruptTraceError, InputError, OutputError
from tempo.trace.run import Prompt, Run
from tempo.trace.store import HEADER_FILE, disk_errors, read_json, read_trace, write_json
from tempo.trace.trace import Trace

RUN_FILE = "run.json"
RUN_KIND = "tempo-run"
RUN_FORMAT = 1
# `--force` removes these only: other files in the folder belong to the user.
OURS = (
    *("traces", "figures", "tables", "page"),
    *(RUN_FILE, "results.json", "report.md", "report.html"),
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `run.json`.

    Attributes:
        policies: The policy of each arm.
        batches: For each batch, the (prompt id, arm) pairs decoded together.
        settings: Options, model and versions; the configuration hash is over all of this.
        complete: Every trace was decoded.
    """

    prompts: tuple[Prompt, ...]
    policies: Mapping[str, Mapping[str, Any]]
    batches: tuple[tuple[tuple[str, str], ...], ...]
    settings: Mapping[str, Any]
    complete: bool = False

    def document(self) -> dict[str, Any]:
        """The manifest as JSON."""
        return {
            "format": RUN_FORMAT,
            "kind": RUN_KIND,
            "complete": self.complete,
            "configuration_hash": self.configuration_hash(),
            "prompts": [{"id": p.id, "category": p.category, "text": p.text} for p in self.prompts],
            "policies": dict(self.policies),
            "batches": [[list(pair) for pair in batch] for batch in self.batches],
            "settings": dict(self.settings),
        }

    def configuration_hash(self) -> str:
        """SHA-256 of everything that decides the content of the run.

        `command` and `versions` are left out: they record how a run was made, not what it is.
        """
        decisive = {
            key: value for key, value in self.settings.items() if key not in ("command", "versions")
        }
        prompts = [(p.id, p.category, p.text) for p in self.prompts]
        # The batches too: what decodes together changes the rounding, and with it near ties.
        # Sorted keys: the order in which options were given must not change the hash.
        content = json.dumps([prompts, self.policies, self.batches, decisive], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def claim(folder: Path, manifest: Manifest, *, force: bool) -> bool:
    """Prepare a folder for a run; True if the same run is already complete there.

    With `force`, a run's own files are removed first; anything else in the folder stays.

    Raises:
        OutputError: The folder holds something else and `force` was not given, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"expected a folder at {folder}, got a file; give another --out")
    if force:
        _clear(folder)
    # The manifest is written before any trace: an interrupted run can be recognised and resumed.
    if force or not folder.exists() or not any(folder.iterdir()):
        write_manifest(folder, manifest)
        return False
    if (folder / RUN_FILE).exists():
        found = read_json(folder / RUN_FILE, kind=RUN_KIND, format_number=RUN_FORMAT)
        if found.get("configuration_hash") == manifest.configuration_hash():
            pairs = [pair for batch in manifest.batches for pair in batch]
            # Both: a trace can have been removed since the run was marked complete.
            return found["complete"] and all(is_whole(trace_folder(folder, *p)) for p in pairs)
        raise OutputError(
            f"expected an empty folder or the same run at {folder}, got a run with other options; "
            "give another --out, or --force to replace it"
        )
    raise OutputError(
        f"expected an empty folder or a run at {folder}, got other files; "
        "give another --out, or --force to write beside them"
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `run.json`."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN_FILE, manifest.document())


def trace_folder(folder: Path, prompt_id: str, arm: str) -> Path:
    """Folder of one trace of a run."""
    return folder / "traces" / prompt_id / arm


def is_whole(folder: Path) -> bool:
    """Whether a trace was decoded to its end."""
    return (folder / HEADER_FILE).exists() and read_trace(folder).header.stopped != "running"


def open_trace(path: str | Path) -> Trace:
    """Open a trace folder, or a run folder that holds exactly one trace.

    Args:
        path: `runs/cat`, or `runs/cat/traces/p0000/isolated`.

    Returns:
        The trace; tensors are read from the disk at access, without a model.

    Raises:
        InputError: The run holds several; the message lists them.
        CorruptTraceError: There is no trace, or a damaged one.
        FormatVersionError: A format that this version does not know.

    Example:
        >>> tempo.open_trace("runs/cat").attention(3, head="L3H5")
    """
    folder = Path(path)
    if not (folder / RUN_FILE).exists():
        return read_trace(folder)
    run = open_run(folder)
    choices = [trace_folder(folder, *pair) for pair in run.traces]
    if len(choices) != 1:
        listed = ", ".join(str(choice) for choice in choices[:12])
        raise InputError(
            f"expected a run of one trace at {folder}, got {len(choices)}; open one of {listed}"
        )
    return read_trace(choices[0])


def open_run(path: str | Path) -> Run:
    """Open a run folder; traces not yet decoded are left out.

    Args:
        path: The folder that `out` or `--out` named.

    Returns:
        The run; each trace is opened at access.

    Raises:
        CorruptTraceError: There is no run, or a damaged one.
        FormatVersionError: A format that this version does not know.

    Example:
        >>> tempo.open_run("runs/cat").trace("p0000", "isolated")
    """
    folder = Path(path)
    document = read_json(folder / RUN_FILE, kind=RUN_KIND, format_number=RUN_FORMAT)
    pairs = [
        (p["id"], name)
        for p in document["prompts"]
        for arm in document["policies"]
        for name in _arms_in(folder / "traces" / p["id"], arm)
    ]
    return Run(
        prompts=tuple(Prompt(**prompt) for prompt in document["prompts"]),
        arms=tuple(document["policies"]),
        policies=document["policies"],
        traces=_LazyTraces(
            folder, [pair for pair in pairs if (trace_folder(folder, *pair) / HEADER_FILE).exists()]
        ),
        settings=document["settings"],
        folder=folder,
    )


def _arms_in(folder: Path, arm: str) -> list[str]:
    """The arm; or, if its folder holds several traces of one prompt, the name of each."""
    if (folder / arm / HEADER_FILE).exists() or not (folder / arm).is_dir():
        return [arm]
    return [f"{arm}/{one.name}" for one in sorted((folder / arm).iterdir()) if one.is_dir()]


class _LazyTraces(Mapping[tuple[str, str], Trace]):
    """Opens a trace at every access and keeps none, so that a suite fits into memory."""

    def __init__(self, folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
        self._folder = folder
        self._pairs = dict.fromkeys(pairs)

    def __getitem__(self, pair: tuple[str, str]) -> Trace:
        if pair not in self._pairs:
            raise KeyError(pair)
        trace = read_trace(trace_folder(self._folder, *pair))
        # A folder copied or renamed by hand would put its numbers under another prompt.
        found = (trace.header.prompt_id, trace.header.arm)
        if found != pair:
            raise CorruptTraceError(
                f"expected the trace of {'/'.join(pair)} at {trace_folder(self._folder, *pair)}, "
                f"got that of {'/'.join(found)}; decode again"
            )
        return trace

    def __contains__(self, pair: object) -> bool:
        # Mapping's own would open the trace to find out.
        return pair in self._pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


def _clear(folder: Path) -> None:
    for name in OURS:
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
