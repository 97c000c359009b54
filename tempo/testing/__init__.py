"""Tiny models for tests, built in code, that need no network."""
