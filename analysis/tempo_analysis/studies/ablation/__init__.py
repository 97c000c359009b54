"""Heads, values and edges taken out at one token, and what that changes."""
