"""Reads traces and says what parallel tokens do; numpy and scipy only, never a model."""
