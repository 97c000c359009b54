"""The command line: `tempo generate`, `compare`, `analyze`, `report`, `doctor`, `models`."""

from tempo.cli.main import main

__all__ = ["main"]
