"""The command line: `tempo generate`, `compare`, `analyze`, `report`, `doctor`, `models`."""

from tempo.cli.app import main

__all__ = ["main"]
