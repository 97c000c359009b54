"""Traces and runs: their format on disk, and reading them with numpy only, without a model."""
