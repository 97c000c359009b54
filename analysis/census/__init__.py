"""A census of attention heads: its document, its comparison with another, what shows it."""
