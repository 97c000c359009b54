"""Runs: options and requests, batches within a budget, execution, recording, replay."""
