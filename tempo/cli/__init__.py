"""The command line `tempo`, one module for each command."""

from tempo.cli.main import main

__all__ = ["main"]
