"""Asks: one folder for each question, with its prediction, its options and its result."""
