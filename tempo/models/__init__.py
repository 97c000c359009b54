"""Models: finding, loading, identifying and refusing them."""
