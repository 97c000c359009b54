"""Tiny models and planted traces for tests, built in code without a network."""
