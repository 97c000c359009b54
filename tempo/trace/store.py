"""Traces on disk: safetensors shards written during the run, read lazily with numpy.

A shard and the header that names it are written under a temporary name and renamed, so they are
complete or absent, and a killed run leaves a readable prefix. See `docs/trace-format.md`.
"""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tempo.errors import CorruptTraceError, FormatVersionError, OutputError
from tempo.trace.schema import TRACE_FORMAT, TraceHeader, tensor_name
from tempo.trace.trace import Trace

HEADER_FILE = "trace.json"
TRACE_KIND = "tempo-trace"
SHARD_BYTES = 32 * 2**20
SHARD_STEPS = 8
"""A shard is written when it reaches either: a killed run loses at most these last steps."""

NamedTensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of tensors: those of the steps `first` to `last`, and the SHA-256 of its bytes."""

    file: str
    first: int
    last: int
    sha256: str


@dataclass(slots=True)
class TraceWriter:
    """Receives the steps of one trace and writes them shard by shard."""

    folder: Path
    header: TraceHeader
    shards: list[Shard] = field(default_factory=list)
    _pending: dict[str, np.ndarray] = field(default_factory=dict)
    _first: int = 0

    def add(self, step: int, tensors: NamedTensors, header: TraceHeader) -> None:
        """Add one step; write a shard when enough steps or bytes are pending."""
        named = {tensor_name(step, name): value for name, value in tensors.items()}
        self._pending, self.header = self._pending | named, replace(header, last_step=step)
        size = sum(value.nbytes for value in self._pending.values())
        if size >= SHARD_BYTES or step - self._first + 1 >= SHARD_STEPS:
            self.flush()

    def flush(self) -> None:
        """Write pending steps; afterwards the folder is a readable trace up to the last step.

        Raises:
            OutputError: The disk refused.
        """
        if not self._pending:
            return
        file = f"shard-{len(self.shards):05d}.safetensors"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            digest = write_tensors(self.folder / file, self._pending)
        shard = Shard(file, self._first, self.header.last_step, digest)
        self.shards, self._pending, self._first = [*self.shards, shard], {}, shard.last + 1
        # After the shard: a header never names a file that is not complete yet.
        self._write_header()

    def close(self, stopped: str, **run: Any) -> None:
        """Write pending steps, the reason why decoding ended, and facts known only at the end."""
        self.flush()
        self.header = replace(self.header, stopped=stopped, run={**self.header.run, **run})
        self._write_header()

    def _write_header(self) -> None:
        document = {"format": TRACE_FORMAT, "kind": TRACE_KIND} | header_document(self.header)
        document["shards"] = [asdict(shard) for shard in self.shards]
        with disk_errors(self.folder):
            write_json(self.folder / HEADER_FILE, document)


@dataclass(slots=True)
class TraceKeeper:
    """Receives the steps of one trace and keeps them in memory."""

    header: TraceHeader
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, step: int, tensors: NamedTensors, header: TraceHeader) -> None:
        """Add one step."""
        self.header = replace(header, last_step=step)
        self.tensors |= {tensor_name(step, name): value for name, value in tensors.items()}

    def flush(self) -> None:
        """Nothing is pending."""

    def close(self, stopped: str, **run: Any) -> None:
        """Record the reason why decoding ended, and facts known only at the end."""
        self.header = replace(self.header, stopped=stopped, run={**self.header.run, **run})

    def trace(self) -> Trace:
        """The trace of the steps added so far."""
        return Trace(self.header, self.tensors)


class ShardTensors(Mapping[str, np.ndarray]):
    """The tensors of a trace folder, read at access; a shard is hashed before its first use.

    Raises:
        CorruptTraceError: A shard is missing or damaged.
    """

    def __init__(self, files: Mapping[Path, str]) -> None:
        self._hashes = dict(files)
        self._readers = {file: _reader(file) for file in files}
        self._file_of = {
            name: file
            for file, reader in self._readers.items()
            for name in reader.keys()  # noqa: SIM118
        }

    def __getitem__(self, name: str) -> np.ndarray:
        file = self._file_of[name]
        # Removed once checked: a shard is hashed once, not at every tensor.
        expected = self._hashes.pop(file, None)
        if expected is not None and _sha256(file) != expected:
            raise CorruptTraceError(
                f"expected the bytes that were written at {file}, got others; decode again, or "
                "restore the file"
            )
        return self._readers[file].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _reader(file: Path) -> Any:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CorruptTraceError(
            f"expected a whole shard at {file}, got {error}; decode again, or restore the file"
        ) from error


def read_trace(folder: Path) -> Trace:
    """Open the trace in a folder.

    Raises:
        CorruptTraceError: Its header is missing, damaged or contradicts itself.
        FormatVersionError: It was written in an unknown format.
    """
    document = read_json(folder / HEADER_FILE, kind=TRACE_KIND, format_number=TRACE_FORMAT)
    try:
        shards = tuple(Shard(**shard) for shard in document["shards"])
        header = header_from(document)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptTraceError(
            f"expected a whole header in {folder / HEADER_FILE}, got a problem with {error}; "
            "decode again"
        ) from error
    # Shards must join without a gap: a missing one would shift every later slot.
    follows = [shard.first for shard in shards] == [0, *(shard.last + 1 for shard in shards[:-1])]
    if not shards or not follows or shards[-1].last != header.last_step:
        raise CorruptTraceError(
            f"expected shards for steps 0 to {header.last_step} in {folder}, got "
            f"{[(shard.first, shard.last) for shard in shards]}; decode again"
        )
    return Trace(header, ShardTensors({folder / shard.file: shard.sha256 for shard in shards}))


def header_document(header: TraceHeader) -> dict[str, Any]:
    """A header as JSON."""
    document = {item.name: getattr(header, item.name) for item in fields(header)}
    # JSON has text keys only.
    return document | {"tokens": {str(token): text for token, text in header.tokens.items()}}


def header_from(document: Mapping[str, Any]) -> TraceHeader:
    """The header in a JSON document."""
    values: dict[str, Any] = {item.name: document[item.name] for item in fields(TraceHeader)}
    for name in ("layers", "heads", "scaling", "window", "softcap"):
        values[name] = tuple(values[name])
    if values["sinks"] is not None:
        values["sinks"] = tuple(row and tuple(row) for row in values["sinks"])
    values["tokens"] = {int(token): text for token, text in values["tokens"].items()}
    return TraceHeader(**values)


def write_tensors(path: Path, tensors: NamedTensors) -> str:
    """Write a safetensors file atomically; return the SHA-256 of its bytes."""
    # In the same folder, since a rename is atomic within one file system only.
    temporary = path.with_name(path.name + ".tmp")
    content = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    temporary.write_bytes(content)
    temporary.replace(path)
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(
        json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8"
    )
    temporary.replace(path)


def read_json(path: Path, *, kind: str, format_number: int) -> dict[str, Any]:
    """Read a JSON document of this kind and format number."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptTraceError(
            f"expected a {kind} at {path.parent}, got no {path.name}; give another folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptTraceError(
            f"expected JSON in {path}, got {error}; decode again, or restore the file"
        ) from None
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise CorruptTraceError(
            f"expected a {kind} in {path}, got another document; give another folder"
        )
    if document.get("format") != format_number:
        raise FormatVersionError(
            f"expected format {format_number} in {path}, got {document.get('format')}; "
            "read it with the version of tempo that wrote it"
        )
    return document


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turn an error of the disk into a one-line error with advice."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"expected to write to {folder}, got {error}; free some space or give another --out, "
            "then run the same command again to go on from what was saved"
        ) from error
