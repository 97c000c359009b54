"""Find, load, identify and refuse models."""
