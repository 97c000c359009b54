"""Reads traces and says what parallel tokens do; numpy and scipy, a model only where a study measures."""
