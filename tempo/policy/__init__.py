"""Decoding policies: rules over the slot table, in numpy."""
