"""Atomic writing of text files: complete, or not there."""

from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write a file under another name and move it into place; line ends are kept as they are."""
    # In the same folder: a rename is atomic only within one file system.
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(path)
