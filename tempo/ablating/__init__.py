"""Heads, values and edges taken out of plain forwards, and what that changed."""
