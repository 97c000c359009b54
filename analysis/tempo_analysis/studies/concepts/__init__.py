"""Heads that separate the two sides of a concept, with a null and a causal check."""
