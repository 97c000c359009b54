"""Causal forwards of a finished text: attention rows, attributions, lens, ablations."""
