"""Reads traces and says what parallel tokens do; only the studies run a model."""
